"""The life of a server: it answers, or says why not, and leaves no process behind."""

import os
import signal
import socket
import time

import pytest


def line_with(process, text, timeout=60):
    give_up = time.monotonic() + timeout
    while time.monotonic() < give_up and (line := process.stdout.readline()):
        if text in line:
            return line
    raise AssertionError(f"no line with {text!r}: {process.stderr.read()}")


def log_of(tmp_path, port):
    return tmp_path / "logs" / f"my-model-{port}.log"


def test_it_answers_and_is_stopped(
    automodel, recipe, fake_vllm, model_directory, port, tmp_path, processes_of, is_alive
):
    said = automodel("deploy", "-c", recipe, "--checkpoint", model_directory, "--check", "--prompt", "Hello?").stdout
    assert f"http://127.0.0.1:{port}/v1, model my-model" in said
    assert "my-model heard: Hello?" in said
    assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in said
    assert not is_alive(processes_of(log_of(tmp_path, port)))


def test_a_model_without_chat_template_completes(automodel, recipe, fake_vllm, model_directory):
    (model_directory / "chat_template.jinja").unlink()
    said = automodel("deploy", "-c", recipe, "--checkpoint", model_directory, "--check", "--prompt", "Once").stdout
    assert "Once and so on" in said
    assert "/v1/completions" in said


def test_a_crash_shows_the_end_of_the_log(automodel, recipe, fake_vllm, model_directory, port):
    fake_vllm("crash")
    said = automodel("deploy", "-c", recipe, "--checkpoint", model_directory, expect=1).stderr
    assert "the server ended (exit code 3) before it was ready" in said
    assert "| ValueError: the model is too large" in said
    assert f"logs/my-model-{port}.log" in said


def test_one_that_is_never_ready_is_given_up(
    automodel, recipe, fake_vllm, model_directory, port, tmp_path, processes_of, is_alive
):
    fake_vllm("hang")
    words = ["deploy", "-c", recipe, "--checkpoint", model_directory, "deployment.serving_config.start_timeout_s=1"]
    said = automodel(*words, expect=1).stderr
    assert "not ready after 1 seconds (deployment.serving_config.start_timeout_s)" in said
    assert not is_alive(processes_of(log_of(tmp_path, port)))


def test_a_refusal_is_told(automodel, recipe, fake_vllm, model_directory):
    fake_vllm("refuse")
    said = automodel("deploy", "-c", recipe, "--checkpoint", model_directory, expect=1).stderr
    assert "refused /v1/chat/completions (400)" in said
    assert "no such model" in said


def test_a_port_in_use_is_told_before_the_start(automodel, recipe, fake_vllm, model_directory, port, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        said = automodel("deploy", "-c", recipe, "--checkpoint", model_directory, expect=2).stderr
    assert f"port {port} of 127.0.0.1 cannot be used" in said
    assert f"deployment.serving_config.port={port + 1}" in said
    assert not log_of(tmp_path, port).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(
    automodel, recipe, fake_vllm, model_directory, port, tmp_path, processes_of, number, is_alive
):
    process = automodel.start("deploy", "-c", recipe, "--checkpoint", model_directory)
    line_with(process, "Ctrl-C stops it")
    worker = processes_of(log_of(tmp_path, port))
    assert is_alive(worker)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert f"stopped by {number.name}; the server has ended" in stdout
    assert not is_alive(worker)


def test_a_signal_during_the_start_leaves_nothing(
    automodel, recipe, fake_vllm, model_directory, port, tmp_path, processes_of, is_alive
):
    fake_vllm("hang")
    process = automodel.start("deploy", "-c", recipe, "--checkpoint", model_directory)
    worker = processes_of(log_of(tmp_path, port))
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in stderr
    assert not is_alive(worker)


def test_one_that_is_deaf_is_killed_by_a_second_signal(
    automodel, recipe, fake_vllm, model_directory, port, tmp_path, processes_of, is_alive
):
    fake_vllm("deaf")
    process = automodel.start("deploy", "-c", recipe, "--checkpoint", model_directory)
    line_with(process, "Ctrl-C stops it")
    worker = processes_of(log_of(tmp_path, port))
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None  # it is given time
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert not is_alive(worker)


def test_a_server_that_dies_later_is_told(
    automodel, recipe, fake_vllm, model_directory, port, tmp_path, processes_of, is_alive
):
    process = automodel.start("deploy", "-c", recipe, "--checkpoint", model_directory)
    line_with(process, "Ctrl-C stops it")
    worker = processes_of(log_of(tmp_path, port))
    os.killpg(os.getpgid(worker), signal.SIGKILL)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the server ended (SIGKILL) while it was needed" in stderr
