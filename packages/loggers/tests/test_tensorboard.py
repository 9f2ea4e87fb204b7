"""Event files are those that TensorBoard reads."""

import pytest
from automodel import InputError
from automodel_loggers.tensorboard import TensorBoardLogger


def train(logger, run, steps):
    logger.fit_start(run=run)
    for step in steps:
        logger.step_end(step=step, metrics={"loss": 1 / step})
    logger.validation_end(step=step, metrics={"val_loss": 0.5})
    logger.fit_end()


def scalars(directory, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_metrics_are_read_back(run):
    pytest.importorskip("tensorboard")
    train(TensorBoardLogger(run), run, range(1, 5))
    assert scalars(run.directory / "tensorboard", "train/loss") == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3), 4: 0.25}
    assert scalars(run.directory / "tensorboard", "validation/val_loss") == {4: 0.5}


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(run):
    pytest.importorskip("tensorboard")
    train(TensorBoardLogger(run), run, range(1, 5))
    run.step = 2
    train(TensorBoardLogger(run), run, range(3, 4))
    assert sorted(scalars(run.directory / "tensorboard", "train/loss")) == [1, 2, 3]


def test_files_lie_where_the_recipe_says(run, tmp_path):
    pytest.importorskip("tensorboard")
    train(TensorBoardLogger(run, log_dir=str(tmp_path / "elsewhere")), run, [1])
    assert scalars(tmp_path / "elsewhere", "train/loss") == {1: 1.0}


def test_it_can_be_switched_off(run):
    train(TensorBoardLogger(run, enable=False), run, [1])
    assert not list(run.directory.iterdir())


def test_without_tensorboard_the_message_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr("automodel_loggers.extras.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r'pip install "automodel-loggers\[tensorboard\]"'):
        TensorBoardLogger(run)
