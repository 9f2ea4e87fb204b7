"""Runs of several processes that lose some of them, or are asked to stop, end as if nothing had happened."""

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from automodel.checkpoint import directory
from automodel.training.metrics import read_metrics
from support import metrics, processes_with, workers

STEPS = (
    *("step_scheduler.max_steps=40", "step_scheduler.ckpt_every_steps=5", "step_scheduler.grad_acc_steps=null"),
    *("step_scheduler.global_batch_size=8", "dataloader.batch_size=2"),
)


def wait_for_step(run, step, *processes):
    while not (lines := read_metrics(run / "metrics.jsonl")) or lines[-1]["step"] < step:
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture
def undisturbed(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe, *STEPS, "checkpoint.checkpoint_dir=whole")
    return metrics(tmp_path / "whole")


@pytest.mark.slow  # the test of two machines loses a process too
def test_a_killed_rank_is_started_again_and_the_run_ends_the_same(automodel, recipe, tmp_path, undisturbed):
    command = ("train", "-c", recipe, *STEPS, "--nproc-per-node", 2, "--max-restarts", 2, "--monitor-interval", 0.2)
    agent = automodel.start(*command)
    for victim, step in ((1, 7), (0, 17)):
        wait_for_step(tmp_path / "run", step, agent)
        os.kill(workers(agent)[victim], signal.SIGKILL)
        time.sleep(1)
    stdout, stderr = agent.communicate()
    assert agent.returncode == 0, stderr
    assert stdout.count("resuming from") == 2
    assert "Traceback" not in stderr
    assert metrics(tmp_path / "run") == pytest.approx(undisturbed, rel=1e-5)


def test_without_restarts_a_killed_rank_is_named_once(automodel, recipe, tmp_path):
    agent = automodel.start("train", "-c", recipe, *STEPS, "--nproc-per-node", 2)
    wait_for_step(tmp_path / "run", 3, agent)
    os.kill(workers(agent)[1], signal.SIGKILL)
    _, stderr = agent.communicate()
    assert agent.returncode == 1
    assert "rank 1" in stderr
    assert "was killed by SIGKILL" in stderr
    assert stderr.count("lost the connection") <= 1
    assert "Traceback" not in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_the_agent_saves_and_the_same_command_goes_on(automodel, recipe, tmp_path, undisturbed, number):
    command = ("train", "-c", recipe, *STEPS, "step_scheduler.ckpt_every_steps=1000", "--nproc-per-node", 2)
    command = (*command, "dataloader.num_workers=1")  # which the agent's signal must not reach
    agent = automodel.start(*command)
    wait_for_step(tmp_path / "run", 4, agent)
    agent.send_signal(number)
    _, stderr = agent.communicate(timeout=60)
    assert agent.returncode == 128 + number, stderr
    assert stderr.count(f"stopped by {number.name} after step") == 1
    [(saved, _)] = directory.checkpoints(tmp_path / "run")
    assert 4 <= saved < 40
    agent = automodel.start(*command)
    _, stderr = agent.communicate()
    assert agent.returncode == 0, stderr
    assert metrics(tmp_path / "run") == pytest.approx(undisturbed, rel=1e-5)


def test_data_workers_take_no_signal_and_end_with_the_process_that_reads_from_them(automodel, recipe, tmp_path):
    variable = f"AUTOMODEL_TEST={tmp_path}"
    command = ("train", "-c", recipe, *STEPS, "dataloader.num_workers=2", "dataloader.persistent_workers=true")
    for number, step in ((signal.SIGTERM, 3), (signal.SIGKILL, 25)):
        process = automodel.start(*command, env=dict([variable.split("=", 1)]), start_new_session=True)
        wait_for_step(tmp_path / "run", step, process)
        assert len(processes_with(variable)) == 5  # the run, two workers, what forks them, what counts their semaphores
        if number == signal.SIGTERM:
            os.killpg(process.pid, number)  # as a scheduler does: every process of the job
        else:
            process.kill()
        process.communicate(timeout=60)
        assert process.returncode in (128 + signal.SIGTERM, -signal.SIGKILL)
        deadline = time.monotonic() + 10
        while processes_with(variable):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert [step for step, _ in directory.checkpoints(tmp_path / "run")]


@pytest.mark.slow  # the signal to the agent goes on bit for bit too
def test_a_signal_to_a_single_process_saves_and_it_goes_on_bit_for_bit(automodel, recipe, tmp_path, undisturbed):
    process = automodel.start("train", "-c", recipe, *STEPS)
    wait_for_step(tmp_path / "run", 3, process)
    process.terminate()
    _, stderr = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, stderr
    automodel("train", "-c", recipe, *STEPS)
    assert metrics(tmp_path / "run") == undisturbed


@pytest.fixture
def machines():
    """Two machines: (prefix of commands, address, environment) each.

    They are network namespaces joined by a cable, or this machine's loopback twice where namespaces are not allowed.
    """
    names = [f"automodel-{os.getpid()}-{number}" for number in (0, 1)]
    links = [f"am{os.getpid()}-{number}" for number in (0, 1)]
    addresses = ["10.77.0.1", "10.77.0.2"]
    if not all(ip("netns", "add", name) for name in names):
        yield [((), "127.0.0.1", {})] * 2
        return
    assert ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
    for name, link, address in zip(names, links, addresses, strict=True):
        assert ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
        assert ip("-n", name, "link", "set", link, "up")
        assert ip("-n", name, "link", "set", "lo", "up")
    yield [
        (("ip", "netns", "exec", name), address, {"GLOO_SOCKET_IFNAME": link})
        for name, link, address in zip(names, links, addresses, strict=True)
    ]
    for name in names:
        ip("netns", "del", name)


def ip(*words):
    return shutil.which("ip") is not None and subprocess.run(["ip", *words], check=False).returncode == 0


@pytest.fixture
def agents(automodel, recipe, machines):
    """Start the agent of machine 0 or 1 of a run on both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(number, nnodes):
        prefix, address, env = machines[number]
        conf = f"is_host={1 - number},keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=8"
        return automodel.start(
            *("train", "-c", recipe, *STEPS, "--nproc-per-node", 1, "--nnodes", nnodes, "--max-restarts", 3),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{machines[0][1]}:{port}", "--rdzv-id", "job"),
            *("--rdzv-conf", conf, "--local-addr", address, "--monitor-interval", 0.2, "dist_env.timeout_minutes=1"),
            prefix=prefix,
            env=env,
        )

    return start


def lose(agent):
    """Kill all processes of a machine at once."""
    os.kill(next(iter(workers(agent).values())), signal.SIGKILL)
    agent.kill()
    agent.communicate()


def test_two_machines_lose_a_process_then_one_of_them_and_end_the_run_the_same(agents, tmp_path, undisturbed):
    first, second = agents(0, "1:2"), agents(1, "1:2")
    wait_for_step(tmp_path / "run", 7, first, second)
    assert len(workers(first)) == len(workers(second)) == 1
    os.kill(next(iter(workers(first).values())), signal.SIGKILL)
    time.sleep(1)
    wait_for_step(tmp_path / "run", 17, first, second)
    lose(second)
    stdout, stderr = first.communicate(timeout=300)
    assert first.returncode == 0, stderr
    assert stdout.count("resuming from") == 2
    assert metrics(tmp_path / "run") == pytest.approx(undisturbed, rel=1e-5)


@pytest.mark.slow
def test_a_machine_that_is_replaced_joins_the_run_again(agents, tmp_path, undisturbed):
    first, second = agents(0, "2"), agents(1, "2")
    wait_for_step(tmp_path / "run", 7, first, second)
    lose(second)
    second = agents(1, "2")
    told = [agent.communicate(timeout=300)[1] for agent in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], told
    assert metrics(tmp_path / "run") == pytest.approx(undisturbed, rel=1e-5)


@pytest.mark.slow
def test_machines_that_do_not_share_the_directory_of_checkpoints_are_told_so(automodel, recipe, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "elsewhere").mkdir()
    commands = [
        (
            "--nnodes",
            2,
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            f"127.0.0.1:{port}",
            "--rdzv-conf",
            f"is_host={host}",
        )
        for host in (1, 0)
    ]
    places = [tmp_path / "run", tmp_path / "elsewhere" / "run"]
    agents = [
        automodel.start("train", "-c", recipe, *words, f"checkpoint.checkpoint_dir={place}")
        for words, place in zip(commands, places, strict=True)
    ]
    told = [agent.communicate(timeout=120)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [2, 2], told
    assert "".join(told).count("is not the same directory on all machines (rank 1 does not see that of rank 0)") == 1
    assert not any(place.exists() for place in places)
