"""An export appears whole or not at all, is used again while it is whole, and says what is wrong with its input."""

import resource

import pytest
from automodel import Provider
from automodel.checkpoint import manifest
from automodel.plugins import installed
from automodel_deploy.export import Export, export_checkpoint
from automodel_deploy.formats import pytorch, safetensors


def exports(run):
    return run / "exports" / "step_3-O1"


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def test_an_export_is_not_made_twice(export, exported_run):
    before = files(exported_run / "exports")
    again = export(exported_run, formats="[safetensors, pytorch]").stdout.splitlines()
    assert len(again) == 2
    assert all(line.startswith("already exported: ") and "generated tokens equal" in line for line in again)
    assert files(exported_run / "exports") == before


def test_other_settings_replace_an_export(export, exported_run):
    told = export(exported_run, formats="[safetensors]", max_shard_size="20KB").stdout
    assert told.startswith("exported: ")
    assert not (exports(exported_run) / "safetensors" / "model.safetensors").exists()
    assert {path.name for path in exports(exported_run).iterdir()} == {"safetensors", "pytorch"}


@pytest.mark.parametrize("damaged", ["model.safetensors", "manifest.json"])
def test_a_damaged_export_is_made_again(export, exported_run, damaged):
    path = exports(exported_run) / "safetensors" / damaged
    whole = path.read_bytes()
    rest = b"" if damaged == "manifest.json" else b"?" + whole[len(whole) // 2 + 1 :]  # cut off, or one byte changed
    path.write_bytes(whole[: len(whole) // 2] + rest)
    told = export(exported_run, formats="[pytorch, safetensors]").stdout.splitlines()
    assert told[0].startswith("already exported: ") and told[1].startswith("exported: ")
    assert not manifest.problems(path.parent)


def test_a_directory_of_other_things_is_not_overwritten(export, run):
    mine = exports(run) / "safetensors" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    told = export(run, formats="[safetensors]", expect=2).stderr
    assert "safetensors exists and is no export" in told and "move it away" in told
    assert mine.read_text() == "mine"


def test_a_model_that_is_not_the_trained_one_is_not_published(export, run, monkeypatch):
    def wrong(module, directory, max_shard_size):
        safetensors.write(module, directory, max_shard_size)
        (path,) = directory.glob("*.safetensors")
        data = bytearray(path.read_bytes())
        data[-2] ^= 0x10  # one bit of one weight
        path.write_bytes(data)

    monkeypatch.setattr(pytorch, "write", wrong)
    told = export(run, formats="[safetensors, pytorch]", expect=1).stderr
    assert "the exported model is not the trained one: not equal" in told and "standard deviations" in told
    assert not (run / "exports").exists()


def test_a_missing_tensor_is_told(export, run, monkeypatch):
    def torn(module, directory, max_shard_size):
        del module.model.layers[1].mlp.up_proj.weight
        safetensors.write(module, directory, max_shard_size)

    monkeypatch.setattr(pytorch, "write", torn)
    told = export(run, formats="[pytorch]", expect=1).stderr
    assert "does not hold what transformers loads: model.layers.1.mlp.up_proj.weight" in told


@pytest.mark.parametrize("name", ["safetensors", "pytorch"])
def test_a_full_disk_leaves_nothing(export, run, name):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, limits[1]))  # the embedding has 6.3 MB
    try:
        told = export(run, formats=f"[{name}]", expect=1).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"could not export to {exports(run)}" in told and "Traceback" not in told
    assert not (run / "exports").exists()


def test_an_interruption_leaves_nothing(run, monkeypatch):
    def interrupted(module, directory, max_shard_size):
        safetensors.write(module, directory, max_shard_size)
        raise KeyboardInterrupt

    monkeypatch.setattr(pytorch, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(run, Export(formats=["safetensors", "pytorch"]))
    assert not (run / "exports").exists()


def test_what_a_killed_export_left_is_removed(export, run):
    left = exports(run) / ".incomplete" / "pytorch"
    left.mkdir(parents=True)
    (left / "pytorch_model.bin").write_bytes(b"half")
    export(run, formats="[safetensors]")
    assert [path.name for path in exports(run).iterdir()] == ["safetensors"]


def test_one_checkpoint_and_the_library_call(run):
    said = []
    first = export_checkpoint(run / "step_3", Export(), say=said.append)
    assert first == [exports(run.resolve()) / "safetensors"]
    assert len(said) == 1 and said[0].startswith("exported: ")
    assert export_checkpoint(run, Export()) == first


def test_without_checkpoint_the_recipes_own_run_is_taken(automodel, full, run, tmp_path):
    (tmp_path / "export.yaml").write_text("checkpoint_management: {export_config: {formats: [pytorch]}}\n")
    recipe = full.parent / "recipe.yaml"
    automodel("export", "-c", recipe, "-c", "export.yaml", f"checkpoint.checkpoint_dir={run}")
    assert (exports(run) / "pytorch" / "pytorch_model.bin").exists()
    automodel("export", "-c", recipe, f"checkpoint.checkpoint_dir={run}")
    assert (exports(run) / "safetensors" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "place", "message"),
    [
        ({"formats": "[safetensor]"}, "3:15", "did you mean `safetensors`"),
        ({"formats": "[gguf]"}, "3:15", "safetensors"),
        ({"formats": "[]"}, "3:14", "formats is empty"),
        ({"optimization_level": "O4"}, "3:25", "O3"),
        ({"optimisation_level": "O1"}, "3:5", "did you mean `optimization_level`"),
        ({"dtype": "float16"}, "3:12", "dtype: float16 is for optimization_level O2 and O3; O1 keeps"),
        ({"max_shard_size": "5 apples"}, "3:21", "`5 apples` is no size; write it as 5GB"),
        ({"optimization_level": "O0", "max_shard_size": "5GB"}, "4:21", "O0 writes one file"),
    ],
)
def test_wrong_settings_are_told_with_their_place(export, run, settings, place, message):
    told = export(run, expect=2, **settings).stderr
    assert f"export.yaml:{place}: checkpoint_management.export_config" in told
    assert message in told
    assert not (run / "exports").exists()


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An exporter of another package."""
    (tmp_path / "their_exporter.py").write_text(
        "def write(module, directory, max_shard_size):\n    module.save_pretrained(directory)\n"
        "    (directory / 'NOTES').write_text('theirs')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = installed().registry
    registry.add("exporter", Provider("annotated", "their_exporter:write"), "their-package")
    yield
    registry.remove("their-package")


def test_formats_of_other_packages_are_exported_and_suggested(export, run, plugin):
    export(run, formats="[annotated]")
    assert (exports(run) / "annotated" / "NOTES").read_text() == "theirs"
    assert "did you mean `annotated`" in export(run, formats="[anotated]", expect=2).stderr


def test_no_checkpoint(export, tmp_path):
    assert "nowhere is no directory" in export("nowhere", formats="[safetensors]", expect=2).stderr
    (tmp_path / "empty").mkdir()
    assert "empty holds no whole checkpoint" in export("empty", formats="[safetensors]", expect=2).stderr


def test_a_checkpoint_without_a_model(automodel, export, full, tmp_path):
    recipe = full.parent / "recipe.yaml"
    automodel("train", "-c", recipe, f"checkpoint.checkpoint_dir={tmp_path}/bare", "checkpoint.save_consolidated=false")
    told = export("bare", formats="[safetensors]", expect=2).stderr
    assert "has no model/, since checkpoint.save_consolidated was false" in told
    assert not (tmp_path / "bare" / "exports").exists()
