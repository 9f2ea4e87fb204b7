"""Which process tells an error, and which signals end a run."""

import os
import signal
import threading

import pytest
import torch.distributed as dist
from automodel.launch import failures, signals
from automodel.launch.failures import is_lost_connection, is_ours_to_tell
from automodel.launch.signals import StopRequest, stop_with_agent


@pytest.fixture(autouse=True)
def signals_as_before():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)  # which a process that has failed ignores, and its children would


@pytest.fixture
def one_of_two(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")


def test_before_the_processes_have_met_the_first_on_a_machine_tells(one_of_two, monkeypatch, tmp_path):
    assert not is_ours_to_tell(ValueError())  # torchrun's process 1 leaves it to 0
    monkeypatch.setenv("AUTOMODEL_AGENT_EXIT", str(tmp_path / "exit"))
    assert is_ours_to_tell(ValueError())
    assert not is_ours_to_tell(ValueError())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_ours_to_tell(ValueError())


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("DataLoader timed out after 30 seconds"), False),
        (RuntimeError("Timed out reading parquet"), False),
        (ValueError("connection"), False),
    ],
)
def test_only_what_torch_distributed_raises_is_a_lost_connection(one_of_two, error, lost):
    assert is_lost_connection(error) == lost


def test_without_its_agent_and_the_agents_store_the_first_process_tells(one_of_two, monkeypatch):
    monkeypatch.setattr(failures, "_store", object())
    monkeypatch.setenv("AUTOMODEL_AGENT", "1000000000")
    assert not is_ours_to_tell(ValueError())
    monkeypatch.setenv("RANK", "0")
    assert is_ours_to_tell(ValueError())


def test_a_process_whose_agent_is_gone_is_asked_to_stop(monkeypatch):
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    parents = iter([7, 7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setenv("AUTOMODEL_AGENT", "7")
    try:
        stop_with_agent()
        assert asked.wait(timeout=30)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_ends_the_process(monkeypatch):
    ended = []
    monkeypatch.setattr(signals, "SAME_SECONDS", 1000.0)
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal is signal.SIGTERM
            assert not ended
            monkeypatch.setattr(signals, "SAME_SECONDS", 0.0)
            signal.raise_signal(signal.SIGTERM)
            assert ended == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
