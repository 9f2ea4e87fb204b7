"""The built parts of a run, as the loop receives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from automodel.interfaces import DocumentInputs, Loader, Loss, Parallelism, Run
from automodel.training.options import TrainingOptions
from automodel.training.step_scheduler import Progress, StepScheduler

if TYPE_CHECKING:
    from automodel.checkpoint.checkpointer import Checkpointer
    from automodel.recipe import Recipe


@dataclass
class Parts:
    """Everything one run consists of.

    Args:
        recipe: what it was built from.
        run: what life-cycle hooks may know.
        hooks: pluggy's relay; calls reach every plugin and logger.
        loggers: of the recipe, built and not yet started.
        device: of this process, where the model lies.
        processor: the tokenizer or processor, saved beside the model.
        module: the model, adapted; its names are those of checkpoints.
        forward: what is called in the forward pass: the model, or what the parallelism has wrapped it in.
        reload: loads what `save_pretrained` has written to a directory as another module of this kind, with its forward
            and document_inputs.
        fingerprint: of the pretrained weights, before adapters and training.
        micro_batches_per_step: of each process.
        samples_per_step: of all processes.
        document_inputs: how rows are laid end to end; None: they are padded.
        num_steps: optimizer steps of the run, None if unknown.
    """

    recipe: Recipe
    run: Run
    hooks: Any
    loggers: list[object]
    device: torch.device
    processor: Any
    module: nn.Module
    forward: nn.Module
    reload: Callable[[Path], tuple[nn.Module, nn.Module, DocumentInputs | None]]
    parallelism: Parallelism
    fingerprint: str
    optimizer: torch.optim.Optimizer
    lr_scheduler: LRScheduler
    loader: Loader
    validation_loader: Loader | None
    loss_fn: Loss
    options: TrainingOptions
    scheduler: StepScheduler
    checkpointer: Checkpointer
    micro_batches_per_step: int
    num_steps: int | None
    samples_per_step: int
    document_inputs: DocumentInputs | None = None
    progress: Progress = field(default_factory=Progress)
