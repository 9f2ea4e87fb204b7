"""The contract between core and plugins: every hook a plugin may implement, and nothing else.

A plugin is a module named by an entry point of the group `automodel`. It marks functions with `@automodel.hookimpl`.
The hooks that end in `_providers` are called once, at discovery, and must be cheap: they return records that name what
there is; nothing they name is imported before a recipe uses it. The others are called during a run, in the order
last registered first (pluggy's rule); whatever they return is ignored.

A plugin module may say `AUTOMODEL_HOOKS = 1`, the major version of this contract that it was written for. One that
was written for another version is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from automodel.interfaces import Run
    from automodel.providers import Kind, Provider

HOOKS_VERSION = 1

hookspec = pluggy.HookspecMarker("automodel")
hookimpl = pluggy.HookimplMarker("automodel")


@hookspec
def kinds() -> Iterable[Kind]:
    """Return new kinds of provider. Core then calls the hook `<name>_providers` of every plugin for each of them."""


@hookspec
def model_providers() -> Iterable[Provider]:
    """Return providers whose call gives an `automodel.interfaces.ModelSource`."""


@hookspec
def peft_providers() -> Iterable[Provider]:
    """Return providers whose call gives an `automodel.interfaces.Peft`."""


@hookspec
def dataset_providers() -> Iterable[Provider]:
    """Return providers whose call gives a map-style or iterable data set of samples (`automodel.interfaces.Sample`)."""


@hookspec
def packing_providers() -> Iterable[Provider]:
    """Return providers whose call with a map-style data set gives one whose samples are several of it end to end.

    These have `position_ids` as well, which begin with 0 in each document.
    """


@hookspec
def collate_providers() -> Iterable[Provider]:
    """Return providers whose call gives an `automodel.interfaces.Collate`."""


@hookspec
def dataloader_providers() -> Iterable[Provider]:
    """Return providers whose call gives an `automodel.interfaces.Loader`."""


@hookspec
def parallelism_providers() -> Iterable[Provider]:
    """Return providers whose call gives an `automodel.interfaces.Parallelism`."""


@hookspec
def dist_env_providers() -> Iterable[Provider]:
    """Return providers whose call gives what `automodel.parallel.process_group.ProcessGroup` is."""


@hookspec
def launcher_providers() -> Iterable[Provider]:
    """Return providers whose call gives an `automodel.interfaces.Launcher`, for `automodel launch NAME`."""


@hookspec
def step_scheduler_providers() -> Iterable[Provider]:
    """Return providers whose call gives an `automodel.training.step_scheduler.StepScheduler`."""


@hookspec
def optimizer_providers() -> Iterable[Provider]:
    """Return providers whose call with the trainable parameters first gives a `torch.optim.Optimizer`."""


@hookspec
def lr_scheduler_providers() -> Iterable[Provider]:
    """Return providers whose call gives a torch `LRScheduler`, stepped once an optimizer step."""


@hookspec
def loss_providers() -> Iterable[Provider]:
    """Return providers whose call gives an `automodel.interfaces.Loss`."""


@hookspec
def training_providers() -> Iterable[Provider]:
    """Return providers whose call gives the options of the loop (`automodel.training.options.TrainingOptions`)."""


@hookspec
def checkpoint_providers() -> Iterable[Provider]:
    """Return providers whose call gives what `automodel.checkpoint.checkpointer.Checkpointer` is."""


@hookspec
def rng_providers() -> Iterable[Provider]:
    """Return providers whose call gives the seeds of a run (`automodel.training.rng.Seeds`)."""


@hookspec
def logger_providers() -> Iterable[Provider]:
    """Return providers whose call gives an object with life-cycle hooks; each one's name is a section of the recipe."""


@hookspec
def cli_commands() -> Iterable[Provider]:
    """Return commands: the provider's name is the verb, its target a `click.Command`, its summary the line of help."""


@hookspec
def model_built(module: Any, run: Run) -> None:
    """The model (a `torch.nn.Module`) is loaded, adapted and placed; its optimizer does not exist yet."""


@hookspec
def fit_start(run: Run) -> None:
    """The first step comes next. `run.step` is above zero when the run resumes."""


@hookspec
def step_end(step: int, metrics: Mapping[str, float]) -> None:
    """An optimizer step is done; an accelerator may be at work on the next one.

    `metrics`: loss, grad_norm, lr, label_tokens_per_s, step_time_s, ...
    """


@hookspec
def validation_end(step: int, metrics: Mapping[str, float]) -> None:
    """A validation pass is done. `metrics`: val_loss, val_token_accuracy, val_exact_match, ..."""


@hookspec
def checkpoint_saved(step: int, path: Path) -> None:
    """The checkpoint at `path` is complete and on disk."""


@hookspec
def exception(error: BaseException, run: Run) -> None:
    """The run ends by this error, which is raised again after every plugin has seen it."""


@hookspec
def fit_end(run: Run) -> None:
    """The run has ended, well or not; release what `fit_start` took."""
