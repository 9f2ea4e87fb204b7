"""The logger `wandb`: metrics to Weights & Biases, which never ends a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from automodel import hookimpl
from automodel.interfaces import Run
from automodel.notices import notice

from automodel_loggers.extras import require

if TYPE_CHECKING:
    import wandb

ID_FILE = "wandb_run_id"
"""In the run's directory; a resumed run goes on under this id."""

_WAIT_FOR_SERVER_S = 30
_WAIT_FOR_UPLOAD_S = 300


@dataclass
class WandbLogger:
    """Weights & Biases. What it gets is the metrics, the recipe without secrets, and where checkpoints lie.

    Without an API key, or where the server cannot be reached, it logs offline and says so once. An error of wandb
    during the run stops the logging, not the run. A resumed run goes on under the same id.

    Args:
        run: given by core.
        enable: false leaves the section without effect.
        project: the project; wandb's default is `uncategorized`.
        name: the run's name; wandb makes one up.
        entity: the team or user; your default one otherwise.
        group: runs of one group are shown together.
        job_type: a further way to group runs.
        tags: labels.
        notes: a longer description.
        dir: where wandb keeps its files; WANDB_DIR, or else the run's directory.
        id: the run's id on the server; kept in the run's directory otherwise.
        mode: null is WANDB_MODE, or else online.
        resume: whether a run of that id may, must or must not exist. Null allows it.
        save_code: upload the main script.
    """

    run: Run
    enable: bool = True
    project: str | None = None
    name: str | None = None
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    dir: str | None = None
    id: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    resume: Literal["allow", "must", "never", "auto"] | None = None
    save_code: bool | None = None
    _tracked: wandb.Run | None = field(default=None, init=False, repr=False)
    _failed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.enable:
            require("wandb", extra="wandb")

    @hookimpl
    def fit_start(self, run: Run) -> None:
        """Begin or continue the run on the server, or offline."""
        if self.enable:
            self._tracked = self._init(run)

    @hookimpl
    def step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the step's metrics."""
        self._tell(lambda tracked: tracked.log(dict(metrics), step=step))

    @hookimpl
    def validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the validation's metrics under the same step."""
        self._tell(lambda tracked: tracked.log(dict(metrics), step=step))

    @hookimpl
    def checkpoint_saved(self, step: int, path: Path) -> None:
        """Note in the run's summary where the newest checkpoint lies."""
        self._tell(lambda tracked: tracked.summary.update({"checkpoint": str(path), "checkpoint_step": step}))

    @hookimpl
    def exception(self, error: BaseException) -> None:
        """Remember that the run failed."""
        self._failed = True

    @hookimpl
    def fit_end(self) -> None:
        """Finish the run, as failed if it was."""
        self._tell(lambda tracked: tracked.finish(exit_code=int(self._failed)))
        self._tracked = None

    def _init(self, run: Run) -> wandb.Run | None:
        import wandb  # takes a second, and is an extra

        own = wandb.setup(settings=wandb.Settings(silent=True)).settings  # with WANDB_* and the settings files
        mode = self.mode or own.mode
        if mode in {"online", "run"}:
            try:
                if not wandb.login(prompt=False, verify=False):
                    raise wandb.errors.UsageError("there is no API key (WANDB_API_KEY, or `wandb login`)")
                return self._start(run, mode)
            except Exception as error:  # whatever hinders it to go online is a reason to go offline
                wandb.finish(exit_code=0)
                notice(f"wandb logs offline: {_first_line(error)}")
                mode = "offline"
        try:
            return self._start(run, mode)
        except Exception as error:  # tracking is no reason not to train, whatever wandb raises
            notice(f"wandb does not log: {_first_line(error)}")
            return None

    def _start(self, run: Run, mode: Any) -> wandb.Run:
        import wandb

        limits = {} if "WANDB_INIT_TIMEOUT" in os.environ else {"init_timeout": _WAIT_FOR_SERVER_S}
        limits |= {} if "WANDB_FINISH_TIMEOUT" in os.environ else {"finish_timeout": _WAIT_FOR_UPLOAD_S}
        tracked = wandb.init(
            project=self.project,
            name=self.name,
            entity=self.entity,
            group=self.group,
            job_type=self.job_type,
            tags=self.tags,
            notes=self.notes,
            dir=self.dir or os.environ.get("WANDB_DIR") or run.directory,
            id=self.id or os.environ.get("WANDB_RUN_ID") or self._kept_id(run),
            mode=mode,
            resume=self.resume or "allow",
            save_code=self.save_code,
            config={
                **run.config,
                "num_parameters": run.num_parameters,
                "num_trainable_parameters": run.num_trainable_parameters,
            },
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off", **limits),
        )
        run.directory.joinpath(ID_FILE).write_text(f"{tracked.id}\n", encoding="utf-8")
        if mode == "offline":
            print(f"wandb: offline; upload with `wandb sync {Path(tracked.dir).parent}`", flush=True)
        elif tracked.url:
            print(f"wandb: {tracked.url}", flush=True)
        return tracked

    def _kept_id(self, run: Run) -> str | None:
        """The id of the run that is continued; None lets wandb make one."""
        path = run.directory / ID_FILE
        return path.read_text(encoding="utf-8").strip() if run.step and path.exists() else None

    def _tell(self, action: Callable[[wandb.Run], object]) -> None:
        """Do something with the run on the server; the first error is said, and is the end of logging."""
        if self._tracked is None:
            return
        try:
            action(self._tracked)
        except Exception as error:  # nor to end a run
            self._tracked = None
            # no notice(): that would end a strict run in the middle
            print(f"note: wandb stops logging: {_first_line(error)}; the run goes on", file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
