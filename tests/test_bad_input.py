"""Each mistake gets one clear message and exit code 2, and nothing is written or lost."""

import pytest
from support import TINY_MODEL

ROW = '{"instruction": "What is the alpha-3 code of Kenya?", "output": "KEN"}\n'
LORA = "peft: {_target_: lora, target_modules: [no_such_proj]}\n"


def edit(old, new):
    """A mistake in the recipe."""

    def make(recipe, data):
        text = recipe.read_text()
        assert old in text
        recipe.write_text(text.replace(old, new))

    return make


def rows(content):
    """A mistake in the data."""

    def make(recipe, data):
        (data / "train.jsonl").write_text(content)

    return make


def arguments(*words):
    """A mistake on the command line."""
    return lambda recipe, data: words


MISTAKES = {
    "typo in a section": (edit("optimizer:", "optimzer:"), ["recipe.yaml:", "did you mean `optimizer`?", "^"]),
    "typo in a key": (edit("lr: 1e-2", "lrr: 1e-2"), ["optimizer.lrr", "did you mean `lr`?", "    lrr: 1e-2", "^"]),
    "wrong type": (edit("max_steps: 6", "max_steps: six"), ["step_scheduler.max_steps", "integer", "max_steps: six"]),
    "two mistakes at once": (
        lambda recipe, data: edit("lr: ", "lrr: ")(recipe, data) or edit("seed: ", "sed: ")(recipe, data),
        ["2 problems", "optimizer.lrr", "rng.sed"],
    ),
    "unset variable": (edit("lr: 1e-2", "lr: ${NO_SUCH_VARIABLE}"), ["NO_SUCH_VARIABLE", "not set", "optimizer.lr"]),
    "malformed variable": (edit("lr: 1e-2", "lr: ${LR:1e-2"), ["${", "optimizer.lr"]),
    "tabs": (edit("  lr: 1e-2", "\tlr: 1e-2"), ["recipe.yaml:", "tab"]),
    "duplicate keys": (edit("  lr: 1e-2", "  lr: 1e-2\n  lr: 1e-3"), ["lr", "twice"]),
    "unknown provider": (
        edit("_target_: text-instruction", "_target_: text-instructoin"),
        ["did you mean `text-instruction`?"],
    ),
    "code of a colleague": (edit("  lr: 1e-2", "  _target_: os.system"), ["os.system", "--allow-target"]),
    "value out of range": (edit("lr: 1e-2", "lr: -1"), ["recipe.yaml:", "optimizer", "-1"]),
    "value that a provider refuses": (
        edit("batch_size: 4", "batch_size: 0"),
        ["recipe.yaml:19:15: dataloader.batch_size must be at least 1"],
    ),
    "value of the command line that a provider refuses": (
        arguments("model.torch_dtype=bf17"),
        ["command line: model.torch_dtype: 'bf17' is no data type", "did you mean `bf16`?"],
    ),
    "value that does not fit the data": (
        arguments("checkpoint.metric_for_best_model=val_loss"),
        ["command line: checkpoint.metric_for_best_model: val_loss needs a section validation_dataset"],
    ),
    "missing recipe": (arguments("-c", "nowhere.yaml"), ["nowhere.yaml"]),
    "override of a typo": (arguments("--optimizer.lrr", "1"), ["command line", "did you mean `lr`?"]),
    "missing data file": (edit("train.jsonl", "trian.jsonl"), ["trian.jsonl", "recipe.yaml:"]),
    "empty data file": (rows(""), ["train.jsonl", "empty"]),
    "broken JSONL": (rows(ROW * 3 + '{"instruction": "x", "output\n' + ROW), ["train.jsonl:4", "JSON"]),
    "missing column": (rows(ROW + '{"instruction": "x", "outptu": "y"}\n'), ["train.jsonl:2", "output"]),
    "row that is too long": (
        lambda recipe, data: ("--dataset.max_length", "12"),
        ["train.jsonl:1", "max_length", "truncation"],
    ),
    "all labels masked": (rows(ROW + '{"instruction": "x", "output": ""}\n'), ["train.jsonl:2"]),
    "unknown model directory": (
        edit(TINY_MODEL, "model:\n  _target_: causal-lm\n  pretrained_model_name_or_path: ./no/such/model\n"),
        ["no/such/model", "recipe.yaml:"],
    ),
    "LoRA target that matches nothing": (
        edit("dataset:\n", LORA + "dataset:\n"),
        ["recipe.yaml:15:40: peft.target_modules: `no_such_proj` matches no linear module", "q_proj"],
    ),
    "checkpoint directory not writable": (
        lambda recipe, data: ("--checkpoint.checkpoint_dir", str(data / "train.jsonl" / "run")),
        ["checkpoint.checkpoint_dir", "cannot write"],
    ),
    "no checkpoint to resume from": (arguments("--resume", "nowhere"), ["nowhere", "no checkpoint"]),
    "global batch that does not fit": (
        arguments("step_scheduler.global_batch_size=6", "step_scheduler.grad_acc_steps=null"),
        ["global_batch_size"],
    ),
    "schedule without an end": (
        arguments("dataset.streaming=true", "step_scheduler.max_steps=null", "lr_scheduler._target_=linear"),
        ["max_steps"],
    ),
    "no such device": (arguments("training.device=cuda:7"), ["training.device", "cuda:7"]),
    "strict about a fallback": (arguments("--strict", "dataloader.pin_memory=true"), ["pin_memory", "--strict"]),
}


@pytest.mark.parametrize(("mistake", "fragments"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_message_and_nothing_is_written(automodel, recipe, data, tmp_path, mistake, fragments):
    words = mistake(recipe, data) or ()
    before = set(tmp_path.rglob("*"))
    config = () if "-c" in words else ("-c", recipe)
    done = automodel("train", *config, *words, expect=2)
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    missing = [fragment for fragment in fragments if fragment not in done.stderr]
    assert not missing, done.stderr
    assert set(tmp_path.rglob("*")) == before
    assert len(done.stderr.splitlines()) <= 12, done.stderr


def times(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_checkpoint_of_another_model_is_refused_and_stays(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe)
    before = times(tmp_path)
    for other in ("rng.seed=8", "model.config.hidden_size=64"):  # other random weights, other shapes
        done = automodel("train", "-c", recipe, other, "step_scheduler.max_steps=9", expect=2)
        assert "another model" in done.stderr
    done = automodel("train", "-c", recipe, "--resume", "never", expect=2)
    assert "already holds step_6" in done.stderr
    assert times(tmp_path) == before


def test_the_installed_command_ends_with_exit_code_2(automodel, recipe):
    recipe.write_text(recipe.read_text().replace("optimizer:", "optimzer:"))
    process = automodel.start("train", "-c", recipe)
    assert process.wait() == 2
    assert "did you mean `optimizer`?" in process.stderr.read()
