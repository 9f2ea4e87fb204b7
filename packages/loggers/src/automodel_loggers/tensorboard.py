"""The logger `tensorboard`: metrics as event files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from automodel import hookimpl
from automodel.interfaces import Run

from automodel_loggers.extras import require

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


@dataclass
class TensorBoardLogger:
    """Event files that `tensorboard --logdir` shows.

    Args:
        run: given by core.
        enable: false leaves the section without effect.
        log_dir: where they are written; `tensorboard` in the run's directory otherwise.
        flush_secs: seconds after which what was logged is on disk.
    """

    run: Run
    enable: bool = True
    log_dir: str | None = None
    flush_secs: int = 30
    _writer: SummaryWriter | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.enable:
            require("tensorboard", extra="tensorboard")

    @hookimpl
    def fit_start(self, run: Run) -> None:
        """Open the file; a resumed run hides what an earlier one wrote after its checkpoint."""
        if self.enable:
            from torch.utils.tensorboard import SummaryWriter

            directory = Path(self.log_dir).expanduser() if self.log_dir else run.directory / "tensorboard"
            purge = run.step + 1 if run.step else None
            self._writer = SummaryWriter(str(directory), purge_step=purge, flush_secs=self.flush_secs)

    @hookimpl
    def step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the step's metrics."""
        self._write(step, metrics, "train")

    @hookimpl
    def validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the validation's metrics."""
        self._write(step, metrics, "validation")

    @hookimpl
    def fit_end(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, step: int, metrics: Mapping[str, float], group: str) -> None:
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
