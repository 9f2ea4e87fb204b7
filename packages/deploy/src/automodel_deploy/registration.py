"""What is registered of a checkpoint, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from automodel import InputError
from automodel.checkpoint.manifest import checksum, read_manifest
from automodel.recipe import Recipe

from automodel_deploy.interfaces import ModelRegistry, Version

SECTION = "model_registry"


def register_checkpoint(recipe: Recipe, checkpoint: Path, exports: Sequence[Path]) -> Version:
    """Register a whole checkpoint and its exports in the recipe's model registry.

    Raises:
        InputError: there is nothing to register, or the recipe is wrong.
        RunError: the registry refused or cannot be reached.
    """
    if not exports and not (checkpoint / "model").is_dir():
        raise InputError(f"{checkpoint} has no model/, since checkpoint.save_consolidated was false: export it first")
    target = recipe.target(SECTION)
    assert target is not None  # it is needed
    registry: ModelRegistry = target.build()
    return registry.register(checkpoint, list(exports), digest(checkpoint, exports))


def digest(checkpoint: Path, exports: Sequence[Path]) -> str:
    """SHA-256 (hex) of what a version holds: the checkpoint's files by its manifest, and every exported file."""
    total = hashlib.sha256()
    for name, file in sorted(read_manifest(checkpoint)["files"].items()):
        total.update(f"{name}\0{file['sha256']}\n".encode())
    for directory in sorted(exports):
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            total.update(f"{directory.name}/{path.relative_to(directory)}\0{checksum(path)}\n".encode())
    return total.hexdigest()
