"""Which dotted paths a recipe may name: a recipe from a colleague must not run code that nobody chose to install.

This is a fence and no sandbox: a recipe still decides what is loaded, read and written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

EXPORTING = (
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torch.optim.swa_utils",
    "torch.utils.data",
    "torch.utils.data.distributed",
    "torchdata.stateful_dataloader",
    "transformers",
)
"""Modules of libraries whose exports may be named. Not what lies deeper: that holds scripts, test helpers and loaders
that run commands, import modules by name, download code or unpickle files."""

DEFINING = (
    "torch.nn",
    "torch.optim",
    "torch.utils.data._utils",
    "torch.utils.data.dataloader",
    "torch.utils.data.dataset",
    "torch.utils.data.distributed",
    "torch.utils.data.sampler",
    "torchdata.stateful_dataloader",
    "transformers",
)
"""Where an export must be defined. Not `torch.utils.data.datapipes`, which open URLs and unpickle, and not
`torch.distributed`, whose checkpoints are read as pickles by some functions and whose launchers run commands."""

REMOTE_CODE = "transformers_modules"
"""The package into which transformers puts code that it downloads with a model."""

SAFE_VALUES: dict[str, tuple[bool | None, ...]] = {
    "trust_remote_code": (False, None),
    "allow_all_kernels": (False, None),
    "use_local_kernel": (False, None),
    "weights_only": (True,),
}
"""Arguments that let files of a model run code (a Python module, a compiled kernel, a pickle), with the values that do
not. transformers asks only whether a value is true, so that 1 and "no" let them too."""


class AllowList:
    """Exports of the libraries, targets of the installed providers, and the packages of `--allow-target`.

    Args:
        targets: of the providers, as `"package.module:attribute"`.
        chosen: packages.
    """

    def __init__(self, targets: Iterable[str], chosen: Iterable[str]) -> None:
        self.targets = frozenset(target.replace(":", ".") for target in targets)
        self.chosen = tuple(chosen)

    def admits(self, module: str) -> bool:
        """Whether a function or class that is defined in this module may be called."""
        return _within(module, self.chosen) or _within(module, DEFINING)

    def wants_export(self, module: str) -> bool:
        """Whether what is defined in this module must be named by a library's export of it."""
        return not _within(module, self.chosen)

    def safe_values(self, key: Any) -> tuple[bool | None, ...] | None:
        """The only values that this argument may have; None if it may have any."""
        return None if REMOTE_CODE in self.chosen else SAFE_VALUES.get(key)


def exporter(module: str) -> str:
    """The innermost of `EXPORTING` that holds the module."""
    return max((package for package in EXPORTING if _within(module, [package])), key=len)


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
