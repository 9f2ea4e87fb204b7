"""The real command with Megatron-FSDP's own code on the CPU: the numbers of one process, and checkpoints."""

import json

import pytest
import torch
from runs import Runs

NVFSDP = "distributed._target_=nvfsdp"
STRATEGY = "distributed.data_parallel_sharding_strategy"
REPLICAS = "distributed.dp_replicate_size=2"
LORA = ("peft._target_=lora", "peft.r=4")
STILL = ("optimizer.lr=0.0", "optimizer.weight_decay=0.0", "step_scheduler.max_steps=4")
LAYOUTS = {
    "one": (1, ()),
    "ddp": (2, ("distributed._target_=ddp",)),
    "fsdp2": (2, ("distributed._target_=fsdp2",)),
    "params": (2, (NVFSDP,)),
    "grads": (2, (NVFSDP, f"{STRATEGY}=optim_grads")),
    "optim": (2, (NVFSDP, f"{STRATEGY}=optim")),
    "no_shard": (2, (NVFSDP, f"{STRATEGY}=no_shard")),
    "params-of-4": (4, (NVFSDP, "training.activation_checkpointing=true")),
    "hsdp": (4, (NVFSDP, REPLICAS)),
    "hsdp-optim": (4, (NVFSDP, REPLICAS, f"{STRATEGY}=optim")),
    "unbucketed": (2, (NVFSDP, "distributed.disable_bucketing=true", "step_scheduler.val_at_start=true")),
}
TRAINED = [(layout, peft) for layout in LAYOUTS if LAYOUTS[layout][1][:1] == (NVFSDP,) for peft in ("full", "lora")]
RESUMED = [
    ("params", "full", "params"),
    ("params", "full", "one"),
    ("one", "full", "optim"),
    ("params", "lora", "one"),
    ("one", "lora", "grads"),
    ("optim", "full", "ddp"),
    ("fsdp2", "full", "grads"),
    ("no_shard", "full", "params"),
    ("grads", "lora", "fsdp2"),
    ("hsdp", "full", "hsdp-optim"),
    ("params-of-4", "lora", "hsdp"),
]
FAST_TRAINED = {("params", "full"), ("params", "lora")}
FAST_RESUMED = set(RESUMED[:3])


def overrides(layout, peft):
    return (*LAYOUTS[layout][1], *(LORA if peft == "lora" else ()))


def cases(every, fast):
    return [pytest.param(*one, marks=() if one in fast else pytest.mark.slow, id="-".join(one)) for one in every]


def train(runs, trained, resumed):
    """All the commands of some cases. One process comes first, and last for what goes on from more."""
    saved = {*trained, *((layout, peft) for layout, peft, _ in resumed), *(("one", peft) for _, peft in trained)}
    for size in (1, 2, 4, 1):
        for layout, peft in sorted(saved):
            if LAYOUTS[layout][0] == size:
                runs.add(f"{layout}-{peft}", *overrides(layout, peft))
        saved = {case for case in saved if LAYOUTS[case[0]][0] != size}
        for before, peft, after in resumed:
            if LAYOUTS[after][0] == size and not saved & {(before, peft)}:
                start = f"checkpoint.restore_from={runs.directory / f'{before}-{peft}' / 'step_3'}"
                runs.add(f"{before}-{peft}-{after}-still", *overrides(after, peft), start, *STILL)
                runs.add(f"{before}-{peft}-{after}", *overrides(after, peft), start)
        runs.finish(size)


@pytest.fixture(scope="module")
def fast_runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("fast"))
    train(runs, FAST_TRAINED, FAST_RESUMED)
    return runs


@pytest.fixture(scope="module")
def slow_runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("slow"))
    train(runs, set(TRAINED) - FAST_TRAINED, set(RESUMED) - FAST_RESUMED)
    return runs


@pytest.fixture
def runs(request):
    """Those of the test's kind: all are done when the first is asked for."""
    is_slow = request.node.get_closest_marker("slow") is not None
    return request.getfixturevalue("slow_runs" if is_slow else "fast_runs")


@pytest.mark.parametrize(("layout", "peft"), cases(TRAINED, FAST_TRAINED))
def test_losses_are_those_of_one_process(runs, layout, peft):
    for name in ("loss", "grad_norm", "label_tokens", "val_loss", "val_token_accuracy", "val_rows"):
        one = runs.metrics(f"one-{peft}", name)
        found = runs.metrics(f"{layout}-{peft}", name)
        assert {step: found[step] for step in one} == pytest.approx(one, rel=1e-5), name
    ours, theirs = (runs.weights(f"{run}-{peft}", 5) for run in (layout, "one"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("before", "peft", "after"), cases(RESUMED, FAST_RESUMED))
def test_a_checkpoint_goes_on_in_this_and_other_layouts_with_the_same_weights(runs, before, peft, after):
    saved, loaded = runs.weights(f"{before}-{peft}", 3), runs.weights(f"{before}-{peft}-{after}-still", 4)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name].view(torch.uint8), loaded[name].view(torch.uint8)) for name in saved)
    whole, rest = (runs.metrics(name, "loss") for name in (f"{before}-{peft}", f"{before}-{peft}-{after}"))
    assert rest == pytest.approx({step: whole[step] for step in (4, 5)}, rel=1e-5)


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """Runs of what is special: experts, DoRA, bfloat16, and commands besides `train`."""
    runs = Runs(tmp_path_factory.mktemp("special"))
    dora = (*LORA, "peft.use_dora=true")
    runs.add("moe-one", recipe="mixtral")
    runs.add("dora-one", *dora)
    runs.add("bf16-lora-one", "model.torch_dtype=bfloat16", *LORA)
    runs.finish(1)
    runs.add("moe", NVFSDP, recipe="mixtral")
    runs.add("dora", NVFSDP, *dora)
    slowly = (NVFSDP, "model.torch_dtype=bfloat16", "optimizer.lr=1e-5", "optimizer.weight_decay=0.0")
    runs.add("bf16", *slowly)
    exactly = (*slowly, "distributed.preserve_fp32_weights=true", "distributed.grad_reduce_in_fp32=true")
    runs.add("fp32", *exactly)
    start = f"checkpoint.restore_from={runs.directory / 'fp32' / 'step_3'}"
    runs.add(
        "fp32-on", *slowly, "distributed.preserve_fp32_weights=true", "distributed.grad_reduce_in_fp32=true", start
    )
    runs.add("bf16-lora", NVFSDP, "model.torch_dtype=bfloat16", *LORA)
    runs.add("measured", NVFSDP, "--checkpoint", str(runs.directory / "dora" / "step_5"), *dora, verb="evaluate")
    runs.finish(2)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moe", "dora"])
def test_experts_and_dora_train_as_in_one_process(special, name):
    assert special.metrics(name, "loss") == pytest.approx(special.metrics(f"{name}-one", "loss"), rel=1e-5)


@pytest.mark.slow
def test_float32_adapters_of_a_bfloat16_model_train_as_in_one_process(special):
    assert special.metrics("bf16-lora", "loss") == pytest.approx(special.metrics("bf16-lora-one", "loss"), rel=1e-4)


@pytest.mark.slow
def test_small_updates_are_kept_by_float32_weights_only(special):
    changed = {}
    for name in ("bf16", "fp32"):
        before, after = (special.weights(name, step)["model.norm.weight"].float() for step in (3, 5))
        changed[name] = bool((before != after).any())
    assert changed == {"bf16": False, "fp32": True}  # around 1.0 the next bfloat16 is 0.008 away
    assert special.metrics("fp32-on", "loss") == {
        step: loss for step, loss in special.metrics("fp32", "loss").items() if step > 3
    }


@pytest.mark.slow
def test_a_checkpoint_is_measured_as_it_was_in_its_run(special):
    measured = json.loads(special.said("measured", "stdout"))
    assert measured["val_loss"] == special.metrics("dora", "val_loss")[5]
