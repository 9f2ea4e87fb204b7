"""The units say what the command says, in their own languages."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from automodel_deploy.interfaces import Adapter, Model
from automodel_deploy.transformers_serve import TransformersServe
from automodel_deploy.units import kubernetes_manifest, systemd_unit, unit_name
from automodel_deploy.vllm import VLLM
from ruamel.yaml import YAML

MODEL = Model("Countries 100%", '/runs/with space "and" $more/model')
ADAPTED = Model("countries", "/runs/base", Adapter(Path("/runs/step_20/model"), {"r": 8}))


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    for module in ("vllm", "transformers_serve"):
        monkeypatch.setattr(f"automodel_deploy.{module}.num_accelerators", lambda: 0)


def settings(unit):
    """(key, value) of a unit's lines."""
    return [tuple(line.split("=", 1)) for line in unit.splitlines() if "=" in line and not line.startswith("#")]


def test_systemd_starts_the_same_words():
    server = VLLM(port=9000, max_batch_size=4)
    [start] = [value for key, value in settings(systemd_unit(server, MODEL)) if key == "ExecStart"]
    read_back = [word.replace("$$", "$").replace("%%", "%") for word in shlex.split(start)]
    assert read_back == server.command(MODEL)


def test_systemd_gives_the_environment():
    found = settings(systemd_unit(VLLM(), MODEL))
    environment = dict(value.split("=", 1) for key, value in found if key == "Environment")
    assert environment == VLLM().environment(MODEL)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong(tmp_path, fake_vllm):
    path = tmp_path / "countries.service"
    path.write_text(systemd_unit(VLLM(), MODEL), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert "countries.service" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def manifest(server, model):
    return list(YAML(typ="safe", pure=True).load_all(kubernetes_manifest(server, model)))


def test_kubernetes_gives_each_rank_a_gpu_and_probes_its_health():
    deployment, service = manifest(VLLM(tensor_parallel_size=2, port=9000), MODEL)
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == "vllm/vllm-openai:v0.32.0"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] == 600
    assert container["ports"] == [{"name": "http", "containerPort": 9000}]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]


def test_kubernetes_names_paths_of_the_container():
    deployment, _ = manifest(VLLM(), ADAPTED)
    pod = deployment["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert command[:3] == ["vllm", "serve", "/models/base"]
    assert command[command.index("--lora-modules") + 1] == "countries=/models/adapter"
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert "--enforce-eager" not in command  # there are GPUs where it runs
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if volume["name"] == "model"]
    assert claims == [{"claimName": "countries-model", "readOnly": True}]
    text = kubernetes_manifest(VLLM(), ADAPTED)
    assert "adapter/: the files of /runs/step_20/model" in text
    assert "base/: the files of /runs/base" in text
    assert "&id" not in text  # people write no anchors


def test_a_model_on_the_hub_needs_no_volume():
    deployment, _ = manifest(VLLM(), Model("llama", "meta-llama/Llama-3.2-1B"))
    pod = deployment["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["shm"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "llama", "optional": True}}]


def test_a_server_without_an_image_has_no_manifest():
    assert kubernetes_manifest(TransformersServe(), MODEL) is None
    deployment, _ = manifest(TransformersServe(image="registry/transformers", device="cpu"), MODEL)
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["transformers", "serve", "/models/model"]
    assert "resources" not in container


@pytest.mark.parametrize(
    ("name", "unit"), [("Countries 100%", "countries-100"), ("a" * 80, "a" * 50), ("--", "model"), ("x_y.z", "x-y-z")]
)
def test_names_are_those_that_both_take(name, unit):
    assert unit_name(name) == unit


def test_the_command_writes_both(automodel, recipe, model_directory, tmp_path):
    said = automodel("deploy", "-c", recipe, "--checkpoint", model_directory, "--output", "units").stdout
    assert (tmp_path / "units" / "my-model.service").exists()
    assert (tmp_path / "units" / "my-model.yaml").exists()
    assert "wrote units/my-model.service" in said
    framework = "deployment.serving_config.framework=transformers"
    said = automodel("deploy", "-c", recipe, "--checkpoint", model_directory, "--output", "other", framework).stdout
    assert "no Kubernetes manifest: deployment.serving_config.image names no container image" in said
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["my-model.service"]
