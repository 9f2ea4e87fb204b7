"""Learning rate schedules: a linear warm-up, then a shape, as a factor of the optimizer's learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from automodel.errors import InputError


def constant(optimizer: Optimizer, num_steps: int | None, warmup_steps: int = 0, warmup_ratio: float = 0.0) -> LambdaLR:
    """The optimizer's learning rate throughout.

    Args:
        optimizer: whose learning rate is scaled.
        num_steps: optimizer steps of the run, None if unknown.
        warmup_steps: optimizer steps of linear warm-up.
        warmup_ratio: the warm-up as a share of the run's steps, instead of warmup_steps.
    """
    return _scheduler(optimizer, num_steps, warmup_steps, warmup_ratio, lambda progress: 1.0, needs_end=False)


def linear(
    optimizer: Optimizer,
    num_steps: int | None,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Linear towards `min_lr_ratio` of the learning rate, which it reaches when the last step is done.

    Args:
        optimizer: whose learning rate is scaled.
        num_steps: optimizer steps of the run, None if unknown.
        warmup_steps: optimizer steps of linear warm-up.
        warmup_ratio: the warm-up as a share of the run's steps, instead of warmup_steps.
        min_lr_ratio: the last learning rate as a share of the first.
    """

    def shape(progress: float) -> float:
        return min_lr_ratio + (1 - min_lr_ratio) * (1 - progress)

    return _scheduler(optimizer, num_steps, warmup_steps, warmup_ratio, shape, min_lr_ratio)


def cosine(
    optimizer: Optimizer,
    num_steps: int | None,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Half a cosine from the learning rate to `min_lr_ratio` of it (Loshchilov and Hutter 2017, arXiv:1608.03983).

    Args:
        optimizer: whose learning rate is scaled.
        num_steps: optimizer steps of the run, None if unknown.
        warmup_steps: optimizer steps of linear warm-up.
        warmup_ratio: the warm-up as a share of the run's steps, instead of warmup_steps.
        min_lr_ratio: the last learning rate as a share of the first.
    """

    def shape(progress: float) -> float:
        return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return _scheduler(optimizer, num_steps, warmup_steps, warmup_ratio, shape, min_lr_ratio)


def wsd(
    optimizer: Optimizer,
    num_steps: int | None,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
    decay_ratio: float = 0.1,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Warm-up, stable, decay: flat, then linear to `min_lr_ratio` (Hu et al. 2024, arXiv:2404.06395).

    Args:
        optimizer: whose learning rate is scaled.
        num_steps: optimizer steps of the run, None if unknown.
        warmup_steps: optimizer steps of linear warm-up.
        warmup_ratio: the warm-up as a share of the run's steps, instead of warmup_steps.
        decay_ratio: the decay's share of the steps after the warm-up, above 0 and up to 1.
        min_lr_ratio: the last learning rate as a share of the first.
    """
    if not 0 < decay_ratio <= 1:
        raise InputError(f"decay_ratio must be above 0 and at most 1, not {decay_ratio}")

    def shape(progress: float) -> float:
        decayed = max(0.0, (progress - (1 - decay_ratio)) / decay_ratio)
        return 1 - (1 - min_lr_ratio) * decayed

    return _scheduler(optimizer, num_steps, warmup_steps, warmup_ratio, shape, min_lr_ratio)


def _scheduler(
    optimizer: Optimizer,
    num_steps: int | None,
    warmup_steps: int,
    warmup_ratio: float,
    shape: Callable[[float], float],
    min_lr_ratio: float = 0.0,
    needs_end: bool = True,
) -> LambdaLR:
    """`shape` maps progress after the warm-up, 0 to 1, to a factor."""
    if warmup_steps < 0 or not 0 <= warmup_ratio <= 1:
        raise InputError(
            f"warmup_steps must not be negative, warmup_ratio lie in 0 to 1: {warmup_steps}, {warmup_ratio}"
        )
    if not 0 <= min_lr_ratio <= 1:
        raise InputError(f"min_lr_ratio must lie in 0 to 1, not {min_lr_ratio}")
    if warmup_steps and warmup_ratio:
        raise InputError("set warmup_steps or warmup_ratio, not both")
    if num_steps is None and (needs_end or warmup_ratio):
        raise InputError("the length of the run is not known, so this schedule needs step_scheduler.max_steps")
    warmup = warmup_steps or math.ceil(warmup_ratio * (num_steps or 0))
    decay = max(1, (num_steps or 0) - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return shape(min(1.0, (step - warmup) / decay))

    return LambdaLR(optimizer, factor)
