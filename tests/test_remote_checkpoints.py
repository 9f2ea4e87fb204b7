"""Runs whose directory is in an object store: an S3 server of moto, on this machine."""

import shutil
import socket
import subprocess
import sys
import time

import boto3
import pytest
from automodel.checkpoint import directory
from support import metrics

EVERY_2 = ("step_scheduler.ckpt_every_steps=2", "checkpoint.checkpoint_dir=s3://runs/first")


@pytest.fixture(scope="module")
def endpoint():
    """The address of the server, a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        give_up = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < give_up
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.kill()


@pytest.fixture
def store(endpoint, monkeypatch):
    """A client of it, and the empty bucket `runs`."""
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    client = boto3.client("s3")
    client.create_bucket(Bucket="runs")
    yield client
    for key in keys(client):
        client.delete_object(Bucket="runs", Key=key)
    client.delete_bucket(Bucket="runs")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Be another machine: one with a cache of its own. Returns where it keeps the run."""

    def become(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return next((tmp_path / name).glob("automodel/runs/first-*"), None)

    return become


def keys(store):
    return sorted(item["Key"] for item in store.list_objects_v2(Bucket="runs").get("Contents", []))


def stored_steps(store):
    return sorted({int(key.split("/")[1].removeprefix("step_")) for key in keys(store) if "/step_" in key})


def test_a_run_goes_on_on_another_machine_as_if_nothing_had_happened(automodel, recipe, store, machine, tmp_path):
    automodel("train", "-c", recipe, "checkpoint.checkpoint_dir=whole")
    machine("one")
    done = automodel("train", "-c", recipe, *EVERY_2, "step_scheduler.max_steps=4", "checkpoint.async=true")
    assert "saved" in done.stdout
    assert stored_steps(store) == [2, 4]
    assert {"first/metrics.jsonl", "first/recipe.yaml", "first/step_4/manifest.json"} <= set(keys(store))

    machine("two")
    done = automodel("train", "-c", recipe, *EVERY_2)
    assert "resuming from" in done.stdout and "step_4" in done.stdout
    here = machine("two")
    assert metrics(here) == metrics(tmp_path / "whole")
    assert [step for step, _ in directory.checkpoints(here)] == [4, 6]
    assert stored_steps(store) == [2, 4, 6]
    stored = store.get_object(Bucket="runs", Key="first/metrics.jsonl")["Body"].read()
    assert stored == (here / "metrics.jsonl").read_bytes()

    machine("three")  # a command that reads fetches what it needs
    merged = automodel("merge", "--checkpoint", "s3://runs/first/step_2", "--output", "merged", expect=2)
    assert "trained without adapters" in merged.stderr
    shutil.rmtree(machine("two"))


@pytest.mark.slow
def test_the_oldest_go_in_the_store_too_and_a_damaged_one_is_passed_over(automodel, recipe, store, machine):
    machine("one")
    words = ("train", "-c", recipe, *EVERY_2, "checkpoint.keep_last_n_checkpoints=2")
    automodel(*words)
    assert stored_steps(store) == [4, 6]
    store.put_object(Bucket="runs", Key="first/step_6/recipe.yaml", Body=b"model: null")
    machine("two")
    done = automodel(*words, "step_scheduler.max_steps=8")
    assert "step_6 is damaged and passed over" in done.stderr
    assert "step_4" in next(line for line in done.stdout.splitlines() if "resuming from" in line)
    # a half deleted or half copied one, whose manifest is not there, does not count
    store.delete_object(Bucket="runs", Key="first/step_8/manifest.json")
    machine("three")
    done = automodel(*words, "step_scheduler.max_steps=8")
    assert "step_6" in next(line for line in done.stdout.splitlines() if "resuming from" in line)


@pytest.mark.slow
def test_what_could_not_be_copied_is_copied_by_the_same_command(automodel, recipe, store, machine):
    machine("one")
    automodel("train", "-c", recipe, *EVERY_2)
    for key in keys(store):
        if "step_6" in key:
            store.delete_object(Bucket="runs", Key=key)
    done = automodel("train", "-c", recipe, *EVERY_2)
    assert "all its steps are done" in done.stdout
    assert stored_steps(store) == [2, 4, 6]


def test_a_manifest_that_cannot_be_read_does_not_stop_a_run(automodel, recipe, store, machine):
    store.put_object(Bucket="runs", Key="first/step_9/manifest.json", Body=b"{")
    machine("one")
    done = automodel("train", "-c", recipe, *EVERY_2, "checkpoint.keep_last_n_checkpoints=1")
    assert "step_9 is damaged and passed over" in done.stderr
    assert stored_steps(store) == [6, 9]
    listed = automodel("checkpoints", "list", "s3://runs/first").stdout
    assert "step 6" in listed


def test_a_store_that_cannot_be_used_is_told_before_training(automodel, recipe, store, machine):
    machine("one")
    failed = automodel("train", "-c", recipe, "checkpoint.checkpoint_dir=s3://nowhere/run", expect=2)
    assert "the object store of s3://nowhere/run refused: " in failed.stderr
    assert "Traceback" not in failed.stderr
    failed = automodel("train", "-c", recipe, "checkpoint.checkpoint_dir=abfs://bucket/run", expect=2)
    assert "abfs://bucket/run needs a package" in failed.stderr
    failed = automodel("train", "-c", recipe, "checkpoint.checkpoint_dir=sftp://me:secret@host/run", expect=2)
    assert "an address with credentials in it" in failed.stderr and "secret" not in failed.stderr
    failed = automodel("train", "-c", recipe, "checkpoint.checkpoint_dir=nonsense://bucket/run", expect=2)
    assert "is in no object store that fsspec knows" in failed.stderr
