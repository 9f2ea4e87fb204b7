"""Devices that a plan can be made for, from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A device: its memory in bytes, and the bytes a second it sends to others of its machine and to other machines."""

    memory: float
    link: float
    network: float
    per_machine: int = 8


DEVICES = {
    "b200": Device(192e9, 900e9, 50e9),
    "h200": Device(141e9, 450e9, 50e9),
    "h100": Device(80e9, 450e9, 50e9),
    "a100": Device(80e9, 300e9, 25e9),
    "a100-40gb": Device(40e9, 300e9, 25e9),
    "l40s": Device(48e9, 32e9, 12.5e9),
    "rtx4090": Device(24e9, 32e9, 12.5e9),
}
