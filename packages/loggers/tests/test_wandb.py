"""What wandb has written offline, read back; and that nothing it does ends a run."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from automodel import InputError
from automodel.notices import strictness
from automodel_loggers.wandb import ID_FILE, WandbLogger

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def fresh_wandb():
    """wandb keeps settings and its service for the whole process."""
    wandb.teardown()
    yield
    wandb.teardown()


def train(logger, run, steps=range(1, 3)):
    """The events of a run, as core's loop sends them."""
    logger.fit_start(run=run)
    for step in steps:
        logger.step_end(step=step, metrics={"loss": 1 / step, "lr": 0.1})
    logger.validation_end(step=step, metrics={"val_loss": 0.5})
    logger.checkpoint_saved(step=step, path=run.directory / f"step_{step}")
    logger.fit_end()


def records(directory):
    """All records of the one offline run below a directory.

    Its file is a LevelDB log (blocks of 32 KiB, each chunk with checksum, length and type) of protobuf messages.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service closes the file some time after `finish`
    (path,) = Path(directory).rglob("*.wandb")
    data, position, message, found = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole message, or its last chunk
            record = Record()
            record.ParseFromString(message)
            found.append(record)
            message = b""
    return found


def values(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(directory):
    return [values(r.history.item) for r in records(directory) if r.WhichOneof("record_type") == "history"]


def about(directory):
    return next(r.run for r in records(directory) if r.WhichOneof("record_type") == "run")


def test_metrics_of_a_step_and_its_validation_make_one_row(run):
    train(WandbLogger(run, mode="offline"), run)
    first, second = history(run.directory)
    assert (first["_step"], first["loss"], first["lr"]) == (1, 1.0, 0.1)
    assert (second["_step"], second["loss"], second["val_loss"]) == (2, 0.5, 0.5)


def test_what_the_recipe_says_reaches_wandb(run):
    settings = {"project": "p", "name": "n", "entity": "e", "group": "g", "job_type": "j", "notes": "w"}
    train(WandbLogger(run, mode="offline", tags=["a", "b"], id="abc", **settings), run)
    told = about(run.directory)
    assert (told.project, told.display_name, told.entity) == ("p", "n", "e")
    assert (told.run_group, told.job_type, told.notes) == ("g", "j", "w")
    assert (list(told.tags), told.run_id) == (["a", "b"], "abc")
    config = values(told.config.update)
    assert config["optimizer"] == {"lr": 1e-3}
    assert config["num_trainable_parameters"] == 10


def test_the_newest_checkpoint_is_in_the_summary(run):
    train(WandbLogger(run, mode="offline"), run)
    summaries = [r.summary for r in records(run.directory) if r.WhichOneof("record_type") == "summary"]
    told = {key: value for summary in summaries for key, value in values(summary.update).items()}
    assert told["checkpoint"] == str(run.directory / "step_2")


def test_a_run_that_failed_is_marked_as_failed(run):
    logger = WandbLogger(run, mode="offline")
    logger.fit_start(run=run)
    logger.exception(error=ValueError("x"))
    logger.fit_end()
    assert [r.exit.exit_code for r in records(run.directory) if r.WhichOneof("record_type") == "exit"] == [1]


def test_without_a_key_it_logs_offline_and_says_so_once(run, capfd):
    train(WandbLogger(run), run)
    output = capfd.readouterr()
    assert len(history(run.directory)) == 2
    assert output.err == "note: wandb logs offline: there is no API key (WANDB_API_KEY, or `wandb login`)\n"
    assert output.out.startswith("wandb: offline; upload with `wandb sync ")
    assert output.out.count("\n") == 1
    assert Path(output.out.split("`")[1].removeprefix("wandb sync ")).is_dir()


def test_a_server_that_cannot_be_reached_means_offline(run, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    train(WandbLogger(run, mode="online"), run)
    told = capfd.readouterr().err
    assert told.startswith("note: wandb logs offline: ")
    assert told.count("\n") == 1
    assert "0" * 40 not in told
    offline = [path for path in run.directory.rglob("offline-run-*") if path.is_dir()]
    assert len(history(offline[0])) == 2


def test_a_key_that_is_no_key_means_offline(run, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    train(WandbLogger(run), run)
    assert "note: wandb logs offline: " in capfd.readouterr().err
    assert len(history(run.directory)) == 2


def test_a_strict_run_does_not_start_without_the_server(run):
    logger = WandbLogger(run, mode="online")
    with strictness(True), pytest.raises(InputError, match="wandb logs offline"):
        logger.fit_start(run=run)


@pytest.mark.parametrize("strict", [False, True])
def test_an_error_of_wandb_in_the_middle_stops_the_logging_only(run, capfd, strict):
    logger = WandbLogger(run, mode="offline")
    with strictness(strict):
        logger.fit_start(run=run)
        wandb.finish()  # behind the logger's back: whatever it sends next is an error
        for step in (1, 2):
            logger.step_end(step=step, metrics={"loss": 1.0})
        logger.fit_end()
    assert capfd.readouterr().err.count("note: wandb stops logging") == 1


def test_a_place_that_cannot_be_written_does_not_end_the_run(run, tmp_path):
    (tmp_path / "file").touch()
    train(WandbLogger(run, mode="offline", dir=str(tmp_path / "file" / "below")), run)


def test_a_resumed_run_goes_on_under_its_id(run):
    train(WandbLogger(run, mode="offline"), run)
    first = (run.directory / ID_FILE).read_text()
    run.step = 2
    train(WandbLogger(run, mode="offline"), run, steps=range(3, 5))
    assert (run.directory / ID_FILE).read_text() == first
    ids = {path.stem.removeprefix("run-") for path in run.directory.rglob("*.wandb")}
    assert ids == {first.strip()}


def test_a_new_run_in_the_same_directory_has_a_new_id(run):
    train(WandbLogger(run, mode="offline"), run)
    first = (run.directory / ID_FILE).read_text()
    train(WandbLogger(run, mode="offline"), run)
    assert (run.directory / ID_FILE).read_text() != first


@pytest.mark.parametrize("settings", [{"enable": False}, {"mode": "disabled"}])
def test_it_can_be_switched_off(run, settings, capfd):
    train(WandbLogger(run, **settings), run)
    assert not list(run.directory.rglob("*.wandb"))
    assert capfd.readouterr() == ("", "")


def test_wandb_mode_is_obeyed(run, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(WandbLogger(run), run)
    assert capfd.readouterr().err == ""
    assert len(history(run.directory)) == 2


def test_files_lie_where_the_recipe_says(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    train(WandbLogger(run, mode="offline", dir=str(tmp_path / "elsewhere")), run)
    assert len(history(tmp_path / "elsewhere")) == 2
    assert not list(run.directory.rglob("*.wandb"))


def test_a_run_that_ends_before_it_began_is_no_error(run):
    logger = WandbLogger(run, mode="offline")
    logger.exception(error=ValueError("x"))
    logger.fit_end()


def test_discovery_and_checking_import_no_tracker():
    code = (
        "import sys, automodel_loggers.plugin as p; p.logger_providers();"
        "from automodel.recipe.signature import read_signature;"
        "assert 'project' in read_signature('automodel_loggers.wandb:WandbLogger').parameters; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "wandb", "tensorboard"} & set(loaded)


def test_without_wandb_the_message_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr("automodel_loggers.extras.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r'pip install "automodel-loggers\[wandb\]"'):
        WandbLogger(run)
    WandbLogger(run, enable=False)
