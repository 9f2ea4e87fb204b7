import gzip
import json
import subprocess
import sys

import automodel as package
import pytest
from automodel import hookimpl, plugins
from automodel.checkpoint import manifest
from automodel.training.linear import onednn_is_faster
from automodel_huggingface import attention
from support import metrics


def test_a_run_leaves_metrics_its_recipe_and_the_newest_checkpoints(automodel, recipe, data, tmp_path):
    done = automodel(
        *("train", "-c", recipe, "--step_scheduler.ckpt_every_steps", 2, "checkpoint.keep_last_n_checkpoints=2"),
        *(
            "--validation_dataset._target_",
            "text-instruction",
            f"--validation_dataset.data_path={data}/validation.jsonl",
        ),
        *("--step_scheduler.val_every_steps=4", "step_scheduler.val_at_start=true"),
    )
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["step_4", "step_6"]
    losses = metrics(run)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[6] < losses[1] - 1
    assert list(metrics(run, "val_loss")) == [0, 4, 6]
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    assert {
        "grad_norm",
        "lr",
        "label_tokens_per_s",
        "tokens_per_s",
        "step_time_s",
        "data_wait_s",
        "peak_memory_mb",
    } <= set(line)
    assert manifest.problems(run / "step_6") == []
    about = manifest.read_manifest(run / "step_6")
    assert about["step"] == 6
    assert about["metrics"]["loss"] == losses[6]
    assert {"python", "torch", "transformers", "automodel-core", "automodel-models-llm"} <= about["versions"].keys()
    assert "causal-lm-from-config" in (run / "step_6" / "recipe.yaml").read_text()
    assert "step 6/6  loss" in done.stdout
    assert "exact match" in done.stdout
    assert "Traceback" not in done.stderr


def test_finetune_llm_and_python_do_what_train_does(automodel, recipe, tmp_path, monkeypatch):
    assert automodel.start("train", "-c", recipe).wait() == 0
    automodel("finetune", "llm", "-c", recipe, "checkpoint.checkpoint_dir=second")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = (
        "import gc\n"
        "from automodel import hookimpl, plugins, train\n"
        "class Watch:\n"
        "    @hookimpl\n"
        "    def model_built(self):\n"
        "        assert not gc.isenabled()\n"
        "    @hookimpl\n"
        "    def step_end(self):\n"
        "        assert gc.isenabled()\n"
        "plugins.installed().manager.register(Watch())\n"
        f"result = train({str(recipe)!r}, overrides={{'checkpoint.checkpoint_dir': 'third'}})\n"
        "assert result.step == 6 and result.checkpoint.name == 'step_6', result\n"
        "print(result.metrics['loss'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    losses = [metrics(tmp_path / run) for run in ("run", "second", "third")]
    assert losses[0] == losses[1] == losses[2]
    assert float(done.stdout.splitlines()[-1]) == losses[0][6]


def test_the_same_command_again_has_nothing_to_do_and_changes_nothing(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe)
    before = metrics(tmp_path / "run")
    done = automodel("train", "-c", recipe)
    assert "nothing to train" in done.stdout
    assert metrics(tmp_path / "run") == before
    automodel("train", "-c", recipe, "step_scheduler.max_steps=8")
    after = metrics(tmp_path / "run")
    assert list(after) == list(range(1, 9))
    assert {step: after[step] for step in before} == before


def test_resuming_says_what_has_changed_in_the_recipe(automodel, recipe):
    automodel("train", "-c", recipe)
    done = automodel("train", "-c", recipe, "optimizer.lr=1e-3", expect=2)
    assert "all steps of run/step_6 are done, but the recipe has changed since (optimizer.lr)" in done.stderr
    done = automodel("train", "-c", recipe, "step_scheduler.max_steps=7", "optimizer.lr=1e-3")
    assert "the recipe has changed since run/step_6: optimizer.lr" in done.stderr
    automodel("train", "-c", recipe, "step_scheduler.max_steps=8", "optimizer.lr=1e-2", "--strict", expect=2)


def test_a_dry_run_shows_a_batch_with_its_loss_mask_and_writes_nothing(automodel, recipe, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    done = automodel("train", "-c", recipe, "--dry-run")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert "steps        6, 8 samples each (2 micro-batches)" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("  > ")]
    assert len(rows) == 4
    assert all("<|im_end|>" in row and "<|im_start|>" not in row for row in rows)


def test_a_profile_tells_where_time_goes_leaves_a_trace_and_changes_no_loss(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe)
    profiled = ("train", "--profile", "-c", recipe, "checkpoint.checkpoint_dir=other")
    done = automodel(*profiled)
    assert metrics(tmp_path / "other") == metrics(tmp_path / "run")
    table = (tmp_path / "other" / "profile" / "summary.txt").read_text()
    assert table in done.stdout
    lines = table.splitlines()
    assert lines[0] == "profile of steps 3 to 6 of random llama on cpu"
    rows = {line[:40].strip(): line[40:].split() for line in lines[3:12]}
    together = rows.pop("together")
    assert round(sum(float(row[1]) for row in rows.values()), 1) == float(together[1]) == 100
    assert sum(float(row[0]) for row in rows.values()) == pytest.approx(float(together[0]), abs=0.05)
    for name in ("matrix products", "attention", "output layer and loss", "optimizer and clipping"):
        assert float(rows[name][0]) > 0
    assert ("mkldnn::_linear_pointwise" if onednn_is_faster() else "aten::mm") in table
    assert "MFU " in table
    assert "float32 matrices on 1 CPU thread" in table
    with gzip.open(tmp_path / "other" / "profile" / "trace_step_3_6.json.gz") as trace:
        assert {"automodel.forward", "automodel.output_layer"} <= {
            e.get("name") for e in json.load(trace)["traceEvents"]
        }
    assert sorted(path.name for path in (tmp_path / "other" / "profile").iterdir()) == [
        "summary.txt",
        "trace_step_3_6.json.gz",
    ]
    assert "nothing was profiled: no step was left to train" in automodel(*profiled).stdout
    done = automodel(*profiled, "step_scheduler.max_steps=7")
    assert "profile of step 7 of random llama" in done.stdout


def test_a_profile_of_a_dry_run_is_refused(automodel, recipe):
    done = automodel("train", "--profile", "--dry-run", "-c", recipe, expect=2)
    assert "--dry-run trains none" in " ".join(done.stderr.split())


def test_a_recipe_with_num_epochs_sees_every_row_in_each(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe, "step_scheduler.max_steps=null", "step_scheduler.num_epochs=2")
    assert len(metrics(tmp_path / "run")) == 2 * 40 / 8
    automodel("train", "-c", recipe, "step_scheduler.max_steps=null", "checkpoint.checkpoint_dir=one")
    assert len(metrics(tmp_path / "one")) == 40 / 8


@pytest.mark.parametrize("option", ["training.activation_checkpointing=true", "dataloader.num_workers=2"])
def test_options_that_only_save_memory_or_time_change_no_loss(automodel, recipe, tmp_path, option):
    automodel("train", "-c", recipe)
    automodel("train", "-c", recipe, option, "checkpoint.checkpoint_dir=other")
    assert metrics(tmp_path / "other") == pytest.approx(metrics(tmp_path / "run"), rel=1e-5)


def test_streaming_trains_on_the_rows_in_their_order_and_resumes(automodel, recipe, tmp_path):
    streaming = ("dataset.streaming=true", "dataloader.num_workers=1")
    automodel("train", "-c", recipe, *streaming)
    automodel("train", "-c", recipe, *streaming, "checkpoint.checkpoint_dir=two", "step_scheduler.max_steps=2")
    automodel("train", "-c", recipe, *streaming, "checkpoint.checkpoint_dir=two")
    assert metrics(tmp_path / "two") == metrics(tmp_path / "run")
    ordered = ("checkpoint.checkpoint_dir=three", "dataloader.sampler=sequential", "step_scheduler.max_steps=5")
    automodel("train", "-c", recipe, *ordered)
    whole = metrics(tmp_path / "run")
    assert metrics(tmp_path / "three") == pytest.approx({step: whole[step] for step in range(1, 6)}, rel=1e-5)


def test_a_run_that_is_not_finite_ends_with_one_message(automodel, recipe, tmp_path):
    wild = ("train", "-c", recipe, "optimizer.lr=1e38", "training.max_grad_norm=null")
    done = automodel(*wild, "training.on_nonfinite=stop", expect=1)
    assert done.stderr.count("error:") == 1
    assert "training.on_nonfinite" in done.stderr
    assert "Traceback" not in done.stderr
    done = automodel(*wild, "training.max_nonfinite_steps=2", "checkpoint.checkpoint_dir=two", expect=1)
    assert "2 steps in a row" in done.stderr
    assert metrics(tmp_path / "two", "skipped_steps")[max(metrics(tmp_path / "two"))] >= 1


def test_the_package_exports_what_the_docs_name():
    assert {"train", "TrainResult", "hookimpl", "Provider", "InputError"} <= set(package.__all__)
    assert package.train.__module__ == "automodel.training.train"


def test_a_run_without_checkpoints_leaves_the_metrics_of_the_one_before(automodel, recipe, tmp_path):
    for _ in range(3):
        automodel("train", "-c", recipe, "checkpoint.enabled=false")
    files = sorted(path.name for path in (tmp_path / "run").glob("metrics*"))
    assert files == ["metrics.1.jsonl", "metrics.2.jsonl", "metrics.jsonl"]


def test_data_without_a_whole_micro_batch_are_an_error(automodel, recipe):
    for verb in (("train",), ("train", "--dry-run")):
        options = ("dataloader.drop_last=true", "dataloader.batch_size=64", "step_scheduler.max_steps=null")
        assert "drop_last" in automodel(*verb, "-c", recipe, *options, expect=2).stderr


def test_a_logger_that_fails_to_start_ends_the_run_with_its_own_message(automodel, recipe, monkeypatch):
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    done = automodel("train", "-c", recipe, "wandb.project=x", "--strict", expect=2)
    assert "wandb" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plugin_may_change_the_model_before_it_is_looked_at_for_documents(automodel, recipe, monkeypatch):
    order = []

    class Plugin:
        @hookimpl
        def model_built(self, module):
            order.append("built")
            module.config.attention_dropout = 0.5

    own = attention._has_dropout
    monkeypatch.setattr(attention, "_has_dropout", lambda module: order.append(own(module)) or order[-1])
    manager = plugins.installed().manager
    plugin = Plugin()
    manager.register(plugin)
    try:
        automodel("train", "-c", recipe)
    finally:
        manager.unregister(plugin)
    assert order == ["built", True]


def test_a_parallelism_provider_lays_out_the_model(automodel, recipe, tmp_path, monkeypatch):
    (tmp_path / "acme_layout.py").write_text(
        "from automodel import InputError\n"
        "from automodel.parallel.ddp import DataParallel\n"
        "class Layout(DataParallel):\n"
        "    def __init__(self, device, scale: float = 1.0):\n"
        "        super().__init__(device)\n"
        "        self.scale = scale\n"
        "    def parallelize(self, module):\n"
        "        if self.scale < 0:\n"
        "            raise InputError(f'scale must not be negative: {self.scale}')\n"
        "        module.register_forward_hook(lambda m, i, out: print('laid out', self.scale))\n"
        "        return module\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    layout = ("distributed._target_=acme_layout.Layout", "distributed.scale=2.5")
    automodel("train", "-c", recipe, *layout, expect=2)
    assert "laid out 2.5" in automodel("train", "-c", recipe, *layout, "--allow-target", "acme_layout").stdout
    wrong = (*layout, "distributed.scale=-1", "checkpoint.checkpoint_dir=wrong", "--allow-target", "acme_layout")
    told = automodel("train", "-c", recipe, *wrong, expect=2).stderr
    assert "command line: distributed.scale must not be negative: -1" in told
