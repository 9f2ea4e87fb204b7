"""What this machine has to serve with."""

from __future__ import annotations

from automodel import InputError


def num_accelerators() -> int:
    """The accelerators that torch sees here (seconds: it imports torch)."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def require_port(port: int) -> None:
    """Check that there is such a port.

    Raises:
        InputError: there is not.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"port must be from 1 to 65535, not {port}")
