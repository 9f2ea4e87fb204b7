"""The options of the training loop that belong to no exchangeable part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from automodel.errors import InputError


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training loop.

    Args:
        max_grad_norm: clip the gradient's L2 norm over all trainable parameters to this; null does not clip.
        mixed_precision: `bf16` runs the forward pass under autocast while parameters keep the model's dtype; null
            computes in the model's dtype.
        padding_free: lay the rows of a micro-batch end to end instead of computing with their padding: the same losses
            for less time and memory. null does so where the model can, false never.
        activation_checkpointing: compute the activations of each decoder layer again in the backward pass instead of
            keeping them: less memory, about a third more time.
        compile: make each decoder layer's own code by torch.compile. It takes a minute or more before the first step
            (on a processor, with a C++ compiler), so it is for long runs.
        on_nonfinite: what a NaN or infinite loss or gradient does. `skip` leaves that step's update out and counts it;
            `stop` ends the run.
        max_nonfinite_steps: consecutive skipped steps after which the run ends all the same.
        device: where to train; `auto` takes the accelerator if there is one.
    """

    max_grad_norm: float | None = 1.0
    mixed_precision: Literal["bf16"] | None = None
    padding_free: bool | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    on_nonfinite: Literal["skip", "stop"] = "skip"
    max_nonfinite_steps: int = 10
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise InputError(f"max_grad_norm must be above 0, not {self.max_grad_norm}; null turns clipping off")
        if self.max_nonfinite_steps < 1:
            raise InputError(f"max_nonfinite_steps must be at least 1, not {self.max_nonfinite_steps}")
