"""A registered version holds recipe, metrics, lineage and files, and the same one is not made twice."""

import logging

import pytest
from automodel import InputError
from automodel_deploy.mlflow import MLflow, lineage
from automodel_deploy.registration import digest


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for all: to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def client(uri):
    mlflow = pytest.importorskip("mlflow")
    return mlflow.MlflowClient(uri)


@pytest.fixture
def registry(uri, request):
    """Each test's own experiment and model."""
    return MLflow(request.node.name, tracking_uri=uri, alias="newest")


def registered(registry, checkpoint, *exports):
    return registry.register(checkpoint, list(exports), digest(checkpoint, exports))


def test_a_version_tells_where_it_comes_from(registry, client, run_directory):
    checkpoint = run_directory() / "step_10"
    version = registered(registry, checkpoint)
    assert (version.version, version.uri, version.is_new) == ("1", f"models:/{registry.name}/1", True)
    found = client.get_model_version(registry.name, "1")
    assert found.tags["automodel.run_directory"] == str(checkpoint.parent)
    assert found.tags["automodel.checkpoint"] == "step_10"
    assert found.tags["automodel.base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found.tags["automodel.recipe_digest"] == "abc"
    assert found.tags["automodel.version.torch"] == "2"
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.params["optimizer.betas"] == "[0.9, 0.95]"
    history = client.get_metric_history(found.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in range(1, 11)]


def test_its_files_can_be_read_again(registry, uri, run_directory, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run = run_directory()
    registered(registry, run / "step_20")
    mlflow.set_tracking_uri(uri)
    back = mlflow.artifacts.download_artifacts(f"models:/{registry.name}@newest", dst_path=str(tmp_path / "back"))
    assert (tmp_path / "back" / "model" / "weights").read_text(encoding="utf-8") == "of step 20", back
    run_id = mlflow.MlflowClient(uri).get_model_version_by_alias(registry.name, "newest").run_id
    names = {file.path for file in mlflow.MlflowClient(uri).list_artifacts(run_id)}
    assert names == {"files", "recipe.yaml", "manifest.json", "environment.json"}


def test_exports_are_registered_in_place_of_the_checkpoints_model(registry, client, run_directory, tmp_path):
    checkpoint = run_directory() / "step_20"
    exports = [tmp_path / "exports" / name for name in ("safetensors", "pytorch")]
    for export in exports:
        export.mkdir(parents=True)
        (export / "weights").write_text(export.name, encoding="utf-8")
    registered(registry, checkpoint, *exports)
    run_id = client.get_model_version(registry.name, "1").run_id
    assert [file.path for file in client.list_artifacts(run_id, "files")] == ["files/pytorch", "files/safetensors"]


def test_the_same_is_registered_once(registry, client, run_directory):
    run = run_directory()
    first, again = registered(registry, run / "step_10"), registered(registry, run / "step_10")
    assert (again.version, again.is_new) == (first.version, False)
    other = registered(registry, run / "step_20")
    assert (other.version, other.is_new) == ("2", True)
    assert len(client.search_runs([client.get_experiment_by_name(registry.name).experiment_id])) == 2
    assert str(client.get_model_version_by_alias(registry.name, "newest").version) == "2"


def test_nothing_of_mlflows_own_is_printed(run_directory, capfd, caplog):
    new = MLflow("countries", tracking_uri="sqlite:///new.db")  # to make a database is what it would tell most about
    with caplog.at_level(logging.INFO):
        registered(new, run_directory() / "step_10")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_long_and_strange_parameters_are_cut_to_what_mlflow_takes(registry, client, run_directory):
    checkpoint = run_directory() / "step_10"
    path = checkpoint / "recipe.yaml"
    more = f"dataset:\n  system_prompt: {'x' * 9000}\n  'odd: key (1)': ''\n  none: null\n"
    more += "".join(f"  many_{number}: {number}\n" for number in range(250))
    path.write_text(path.read_text(encoding="utf-8") + more, encoding="utf-8")
    registered(registry, checkpoint)
    params = client.get_run(client.get_model_version(registry.name, "1").run_id).data.params
    assert len(params["dataset.system_prompt"]) == 6000
    assert params["dataset.odd_ key _1_"] == ""
    assert params["dataset.none"] == "null"
    assert params["dataset.many_249"] == "249"


def test_the_command_says_what_it_registered(automodel, recipe, run_directory, uri):
    run = run_directory()
    words = ("register", "-c", recipe, "--checkpoint", run, "model_registry.registered_model_name=codes")
    words += (f"model_registry.tracking_uri={uri}",)
    line = f"registered as version 1 of codes: models:/codes/1 at {uri}\n"
    assert automodel(*words).stdout == line
    assert automodel(*words).stdout == f"already {line}"
    without_path = (*words[:3], *words[5:], f"checkpoint.checkpoint_dir={run}")
    assert automodel(*without_path).stdout == f"already {line}"


def test_a_server_that_is_not_there_is_told(automodel, recipe, run_directory, port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    words = ("register", "-c", recipe, "--checkpoint", run_directory())
    said = automodel(*words, f"model_registry.tracking_uri=http://127.0.0.1:{port}", expect=1).stderr
    assert f"MLflow at http://127.0.0.1:{port} did not register" in said
    assert "refused" in said


def test_without_the_package_it_says_how_to_install_it(registry, run_directory, monkeypatch):
    monkeypatch.setattr("automodel_deploy.mlflow.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "automodel-deploy\[mlflow\]"'):
        registered(registry, run_directory() / "step_10")


def test_a_name_that_mlflow_refuses_is_told_with_the_recipe():
    with pytest.raises(InputError, match="takes no `/` in a model's name"):
        MLflow("team/countries")
    MLflow("team/countries", registered_model_name="countries")


def test_a_password_does_not_belong_into_a_recipe():
    with pytest.raises(InputError, match="put the URI into MLFLOW_TRACKING_URI"):
        MLflow("countries", tracking_uri="postgresql://me:secret@db/mlflow")


def test_the_digest_follows_the_files(run_directory, tmp_path):
    run = run_directory()
    export = tmp_path / "safetensors"
    export.mkdir()
    (export / "weights").write_text("1", encoding="utf-8")
    digests = {digest(run / "step_10", ()), digest(run / "step_20", ()), digest(run / "step_10", [export])}
    (export / "weights").write_text("2", encoding="utf-8")
    assert len(digests | {digest(run / "step_10", [export])}) == 4


def test_a_model_made_from_a_configuration_has_its_provider_as_base(run_directory):
    checkpoint = run_directory() / "step_10"
    (checkpoint / "recipe.yaml").write_text("model:\n  _target_: causal-lm-from-config\n", encoding="utf-8")
    assert lineage(checkpoint)["automodel.base_model"] == "causal-lm-from-config"
