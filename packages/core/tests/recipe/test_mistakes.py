"""Every mistake is reported at its line and column, with what was found and what to do."""

from collections.abc import Callable

import pytest

Message = Callable[..., str]

BAD = {
    "an unknown section": (
        "optimiser:\n  lr: 1\n",
        "1:1",
        ["optimiser: there is no section", "did you mean `optimizer`?"],
    ),
    "a section of a plugin": ("wandb:\n  x: 1\n", "1:1", ["no installed plugin brings the section `wandb`"]),
    "a kind without providers": ("peft:\n  r: 8\n", "1:1", ["no installed plugin brings a peft provider"]),
    "a provider of no plugin": (
        "peft:\n  _target_: nemo_automodel.LoRA\n",
        "2:13",
        ["peft._target_", "no installed plugin brings a peft provider called `nemo_automodel.LoRA`"],
    ),
    "a dotted section": ("model.path: x\n", "1:1", ["a dot has no meaning in a key"]),
    "a section that is no mapping": ("model: toy-model\n", "1:8", ["must be a mapping"]),
    "a section without target": ("model:\n  path: x\n", "1:1", ["needs a `_target_`", "toy-model"]),
    "a typo in a provider": ("model:\n  _target_: toy-modle\n", "2:13", ["did you mean `toy-model`?"]),
    "a provider of another kind": ("model:\n  _target_: cosine\n", "2:13", ["is a lr_scheduler provider", "model"]),
    "a target that is no name": ("model:\n  _target_: 3\n", "2:13", ["must be the name of a provider"]),
    "an unknown argument": (
        "model: {_target_: toy-model, path: x, layer: 3}\n",
        "1:39",
        ["takes no `layer`", "`layers`"],
    ),
    "a missing argument": ("model:\n  _target_: toy-model\n", "2:13", ["needs `path` (where it is, on disk)"]),
    "a missing field": ("model:\n  _target_: toy-config\n", "2:13", ["needs `width` (of each layer)"]),
    "a field that is no argument": ("model: {_target_: toy-config, width: 1, made: x}", "1:41", ["takes no `made`"]),
    "a given argument": ("dataset: {_target_: rows, path: x, seed: 3}\n", "1:36", ["is given by AutoModel"]),
    "an unknown attribute": ("optimizer:\n  _target_: torch.optim.AdamX\n", "2:13", ["`torch.optim` has no `AdamX`"]),
    "no such module": ("optimizer:\n  _target_: no_such.thing\n", "2:13", ["no installed plugin brings"]),
    "a module": ("optimizer:\n  _target_: torch.optim.lr_scheduler\n", "2:13", ["is a module"]),
    "a forbidden module": ("dataset:\n  _target_: os.system\n", "2:13", ["not allowed: add --allow-target os"]),
    "a forbidden module behind an allowed one": (
        "loss_fn:\n  _target_: torch.os.system\n",
        "2:13",
        ["is defined in `os`, which is not allowed: add --allow-target os if you trust this recipe"],
    ),
    "a forbidden module behind a plugin": ("model:\n  _target_: toybox.things.os.system\n", "2:13", ["not allowed"]),
    "a re-export of a provider": (
        "model:\n  _target_: toybox.plugin.aliased\n",
        "2:13",
        ["of the plugin toybox, a recipe names providers only; write `toy-model`, or add --allow-target toybox if you"],
    ),
    "a helper inside a plugin": (
        "dataset:\n  _target_: toybox.things.shell\n  command: ls\n",
        "2:13",
        ["`automodel plugins show toybox` lists its providers, or add --allow-target toybox"],
    ),
    "a method of a provider": (
        "dataset:\n  _target_: toybox.things.Rows.read\n",
        "2:13",
        ["names providers only"],
    ),
    "a run inside a run": (
        "dataset:\n  _target_: automodel.training.train.train\n  recipe: evil.yaml\n  allow_targets: [subprocess]\n",
        "2:13",
        ["a recipe names providers only; `automodel plugins show automodel-core` lists its providers, or add"],
    ),
    "a nested forbidden target": (
        "dataloader:\n  collate_fn:\n    _target_: subprocess.run\n    args: ls\n",
        "3:15",
        ["dataloader.collate_fn._target_", "not allowed: add --allow-target subprocess"],
    ),
    "a helper inside transformers": (
        "dataset:\n  _target_: transformers.testing_utils.run_command\n  command: [ls]\n",
        "2:13",
        ["not allowed: write it as `transformers` exports it"],
    ),
    "a module that transformers exports": (
        "dataset:\n  _target_: transformers.logging.set_verbosity\n  verbosity: 1\n",
        "2:13",
        ["not allowed: write it as `transformers` exports it"],
    ),
    "a class by the module that defines it": (
        "optimizer:\n  _target_: torch.optim.adamw.AdamW\n",
        "2:13",
        ["not allowed: write it as `torch.optim` exports it (`torch.optim.AdamW`), if it does, or add --allow-target"],
    ),
    "core itself": ("dataset:\n  _target_: automodel.plugins.installed\n", "2:13", ["not allowed"]),
    "a pickle": (
        "dataset:\n  _target_: anything\n  weights_only: false\n",
        "3:17",
        ["must be true, anything else runs code that comes with the model: add --allow-target transformers_modules"],
    ),
    "remote code": (
        "dataset:\n  _target_: anything\n  trust_remote_code: true\n",
        "3:22",
        ["must be false, anything else runs code that comes with the model: add --allow-target transformers_modules"],
    ),
    "an unset variable": ("rng:\n  seed: ${NOPE}\n", "2:9", ["NOPE is not set and has no default"]),
    "a malformed variable": ("model: {_target_: toy-model, path: '${A-b}'}\n", "1:36", ["write ${NAME}"]),
    "a nested unknown argument": (
        "dataloader:\n  _target_: toy-loader\n  collate_fn:\n    _target_: toy-collate\n    marked: x\n",
        "5:5",
        ["dataloader.collate_fn.marked", "did you mean `marker`?"],
    ),
    "a target where a number belongs": (
        "dataloader:\n  _target_: toy-loader\n  batch_size:\n    _target_: toy-collate\n",
        "4:5",
        ["expected integer, found a `_target_`"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_reported_at_its_place(case: str, problems: Message) -> None:
    text, position, fragments = BAD[case]
    message = problems(text)
    head, first = message.split("\n")[:2]
    assert head == "r.yaml: 1 problem"
    assert first.startswith(f"r.yaml:{position}: ")
    for fragment in fragments:
        assert fragment in first


VALUES = {
    "layers: '3'": ("expected integer, found `3` (string)", "write it without quotes"),
    "layers: true": ("expected integer, found true", ""),
    "layers: 2.5": ("expected integer, found 2.5 (number)", ""),
    "layers: many": ("expected integer, found `many` (string)", ""),
    "layers: null": ("expected integer, found null", ""),
    "rate: false": ("expected number, found false", ""),
    "rate: '5e-5'": ("expected number, found `5e-5` (string)", "write it without quotes"),
    "frozen: yes": ("expected true or false, found `yes` (string)", "YAML 1.2 writes true"),
    "frozen: 1": ("expected true or false, found 1 (integer)", ""),
    "path: 3": ("expected string, found 3 (integer)", 'quote it: "3"'),
    "path: true": ("expected string, found true", 'quote it: "true"'),
    "dtype: bfloat": ("expected `auto` or `bfloat16`, found `bfloat` (string)", "did you mean `bfloat16`?"),
    "size: big": ("expected integer or null, found `big` (string)", ""),
    "names: 3": ("expected list of string or string, found 3 (integer)", ""),
    "counts: 3": ("expected list of integer, found 3 (integer)", ""),
    "betas: [0.9]": ("expected list of 2 (number, number), found a list of 1", ""),
    "extra: [1]": ("expected mapping of string to integer or null, found a list of 1", ""),
    "where: 3": ("expected path, found 3 (integer)", ""),
}


@pytest.mark.parametrize("line", VALUES)
def test_a_value_of_the_wrong_type_is_reported_at_the_value(line: str, problems: Message) -> None:
    text = f"model:\n  _target_: toy-model\n  {line}\n" + ("" if line.startswith("path") else "  path: x\n")
    first = problems(text).split("\n")[1]
    column = 3 + line.index(" ") + 1
    expected, hint = VALUES[line]
    assert first.startswith(f"r.yaml:3:{column}: model.{line.partition(':')[0]}: {expected}")
    assert hint in first


def test_a_wrong_element_is_reported_at_its_own_position(problems: Message) -> None:
    message = problems("model:\n  _target_: toy-model\n  path: x\n  counts: [1, two, 3, 4.5]\n")
    assert "r.yaml:4:15: model.counts.1: expected integer, found `two` (string)" in message
    assert "r.yaml:4:23: model.counts.3: expected integer, found 4.5 (number)" in message


def test_a_wrong_element_of_a_union_and_of_a_mapping_too(problems: Message) -> None:
    message = problems("model:\n  _target_: toy-model\n  path: x\n  names:\n    - a\n    - 2\n  extra: {a: 1, b: c}\n")
    assert "r.yaml:6:7: model.names.1: expected string, found 2 (integer)" in message
    assert "r.yaml:7:20: model.extra.b: expected integer, found `c` (string)" in message


def test_all_problems_come_at_once_in_the_order_of_the_file(problems: Message) -> None:
    message = problems(
        "rng:\n  sed: 1\nmodel:\n  _target_: toy-model\n  layers: x\noptimizr: {}\n",
        overrides=["--dataset._target_", "nowhere"],
    )
    lines = [line for line in message.split("\n") if line.startswith(("r.yaml:", "command line:"))]
    assert lines[0] == "r.yaml: 5 problems"
    assert [line.split(": ")[0] for line in lines[1:]] == [
        "r.yaml:2:3",
        "r.yaml:4:13",
        "r.yaml:5:11",
        "r.yaml:6:1",
        "command line",
    ]


def test_the_offending_line_is_shown_with_a_caret(problems: Message) -> None:
    assert problems("rng:\n  seed:  none\n") == (
        "r.yaml: 1 problem\n"
        "r.yaml:2:10: rng.seed: expected integer, found `none` (string)\n"
        "      seed:  none\n"
        "             ^"
    )


def test_a_secret_is_not_repeated_in_a_message(problems: Message) -> None:
    message = problems("notebook:\n  api_key: ${WANDB_API_KEY}\n", env={"WANDB_API_KEY": "12345"})
    assert "12345" not in message
    message = problems("rng: {}\n", overrides=["--notebook.api_key", "12345"])
    assert "12345" not in message
    assert "command line: --notebook.api_key ***" in message


def test_missing_sections_are_named_with_their_providers(load: Callable[..., object], problems: Message) -> None:
    message = problems("rng: {}\n", needs=("model", "dataset"))
    assert message.startswith("r.yaml: 2 problems\nr.yaml: the section `model` is missing")
    assert "rows, anything" in message
