"""What this machine has to serve with."""

from __future__ import annotations


def num_accelerators() -> int:
    """The accelerators that torch sees here (seconds: it imports torch)."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0
