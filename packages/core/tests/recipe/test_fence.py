"""A recipe cannot run code that nobody chose to install."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from automodel.recipe import Recipe

Load = Callable[..., Recipe]
Message = Callable[..., str]


@pytest.mark.parametrize(
    "name",
    [
        "automodel.training.train.train",
        "automodel.recipe.load_recipe",
        "toybox.things.shell",
        "torch.load",
        "torch.distributed.checkpoint.format_utils.torch_save_to_dcp",
        "torch.distributed.elastic.multiprocessing.start_processes",
        "torch.nn.attention._fa4._fa4_import_module",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.utils._deprecation_utils.lazy_deprecated_import",
        "torch.utils.data.IterDataPipe",
        "torch.utils.data.datapipes.utils.decoder.basichandlers",
        "torch.utils.data.graph.traverse",
        "torchdata.nodes.Loader",
        "transformers.cached_file",
        "transformers.dynamic_module_utils.get_class_from_dynamic_module",
        "transformers.get_class_from_dynamic_module",
    ],
)
def test_what_runs_commands_pickles_or_modules_is_refused(name: str, problems: Message) -> None:
    assert "--allow-target" in problems(f"dataset:\n  _target_: {name}\n")


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("torch.nn.SiLU", "torch.nn.modules.activation:SiLU"),
        ("torch.nn.functional.mse_loss", "torch.nn.functional:mse_loss"),
        ("torch.nn.init.normal_", "torch.nn.init:normal_"),
        ("torch.optim.Muon", "torch.optim._muon:Muon"),
        ("torch.optim.lr_scheduler.StepLR", "torch.optim.lr_scheduler:StepLR"),
        ("torch.optim.swa_utils.SWALR", "torch.optim.swa_utils:SWALR"),
        ("torch.utils.data.RandomSampler", "torch.utils.data.sampler:RandomSampler"),
        ("torch.utils.data.default_collate", "torch.utils.data._utils.collate:default_collate"),
        ("transformers.DataCollatorWithPadding", "transformers.data.data_collator:DataCollatorWithPadding"),
        ("transformers.LlamaConfig", "transformers.models.llama.configuration_llama:LlamaConfig"),
        ("transformers.get_scheduler", "transformers.optimization:get_scheduler"),
        ("toybox.things.collate", "toybox.things:collate"),
        ("automodel.training.collate.pad", "automodel.training.collate:pad"),
    ],
)
def test_what_libraries_export_and_plugins_provide_is_a_target(name: str, location: str, load: Load) -> None:
    recipe = load("dataset: {_target_: anything, inside: {_target_: toy-collate}}\n")
    assert recipe.resolver.resolve(name, None).location == location


UNSAFE = ["trust_remote_code: " + value for value in ("true", "1", "yes", "'false'", "1.0", "none", "[x]", "{a: b}")]
UNSAFE += ["weights_only: " + value for value in ("false", "0", "no", "null", "'true'", "''")]
UNSAFE += ["allow_all_kernels: true", "allow_all_kernels: 1", "use_local_kernel: true"]
SAFE = ["trust_remote_code: false", "trust_remote_code: null", "weights_only: true", "allow_all_kernels: false"]
NESTED = ("{%s}", "{config: {%s}}", "{configs: [a, {%s}]}", "{part: {_target_: anything, more: [[{%s}]]}}")


@pytest.mark.parametrize("inside", NESTED)
@pytest.mark.parametrize("line", UNSAFE)
def test_code_of_a_model_runs_only_if_it_is_trusted(line: str, inside: str, load: Load, problems: Message) -> None:
    text = f"dataset:\n  _target_: anything\n  path: p\n  options: {inside % line}\n"
    message = problems(text)
    assert message.startswith("r.yaml: 1 problem\n")
    assert f"{line.partition(':')[0]}: must be" in message
    assert "runs code that comes with the model: add --allow-target transformers_modules" in message
    assert load(text, allow_targets=["transformers_modules"]).has("dataset")


@pytest.mark.parametrize("inside", NESTED)
@pytest.mark.parametrize("line", SAFE)
def test_the_safe_values_pass(line: str, inside: str, load: Load) -> None:
    assert load(f"dataset:\n  _target_: anything\n  options: {inside % line}\n").has("dataset")


@pytest.mark.parametrize("value", ["true", "1", "yes", "TRUE"])
def test_values_of_environment_and_command_line_are_judged_as_they_arrive(value: str, problems: Message) -> None:
    text = "dataset:\n  _target_: anything\n"
    wrong = "trust_remote_code: must be false"
    assert wrong in problems(f"{text}  trust_remote_code: ${{TRUST}}\n", env={"TRUST": value})
    assert wrong in problems(f"{text}  trust_remote_code: '${{TRUST}}'\n", env={"TRUST": value})
    assert wrong in problems(f"{text}  options: ${{ALL}}\n", env={"ALL": f"{{trust_remote_code: {value}}}"})
    first = problems(text, overrides=["--dataset.trust_remote_code", value]).split("\n")[1]
    assert first.startswith(f"command line: --dataset.trust_remote_code {value}: must be false")
    assert wrong in problems(text, overrides=[f"dataset.options={{a: [{{trust_remote_code: {value}}}]}}"])


@pytest.mark.parametrize("overrides", [{"dataset.trust_remote_code": 1}, {"dataset": {"a": [{"weights_only": None}]}}])
def test_values_of_a_python_caller_are_judged_too(overrides: Mapping[str, Any], problems: Message) -> None:
    assert "runs code" in problems("dataset:\n  _target_: anything\n", overrides=overrides)


def test_safe_values_of_the_environment_and_the_command_line_pass(load: Load) -> None:
    text = "dataset:\n  _target_: anything\n  trust_remote_code: ${TRUST}\n"
    recipe = load(text, overrides=["--dataset.weights_only", "true"], env={"TRUST": "false"})
    assert recipe.targets["dataset"].kwargs == {"trust_remote_code": False, "weights_only": True}
