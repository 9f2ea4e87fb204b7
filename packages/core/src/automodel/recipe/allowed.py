"""Which dotted paths a recipe may name: a recipe from a colleague must not run code that nobody chose to install.

This is a fence and no sandbox: a recipe still decides what is loaded, read and written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LIBRARIES = (
    "torch.optim",
    "torch.nn",
    "torch.utils.data",
    "torch.distributed",
    "torchdata",
    "transformers",
    "automodel.training",
)
CORE = "automodel"
STARTS_PROCESSES = (
    "torch.distributed.elastic",
    "torch.distributed.launch",
    "torch.distributed.launcher",
    "torch.distributed.run",
    "torch.distributed.rpc",
)
"""Parts of the libraries whose functions run commands or pickles that they are given."""

EXPORTS_ONLY = ("transformers",)
"""Libraries of which only what the top package exports may be named: inside lie scripts and test helpers that run
commands and unpickle files."""

REMOTE_CODE = "transformers_modules"
"""The package into which transformers puts code that it downloads with a model."""

RUNS_CODE = {"trust_remote_code": True, "weights_only": False}
"""Arguments that let files of a model run code (a Python module, a pickle), with the value that does."""


class AllowList:
    """The packages of the libraries, of the installed plugins, and those of `--allow-target`."""

    def __init__(self, plugin_packages: Iterable[str], chosen: Iterable[str]) -> None:
        self.chosen = tuple(chosen)
        self.packages = (*LIBRARIES, *sorted(set(plugin_packages) - {CORE}))

    def admits(self, module: str) -> bool:
        """Whether a function or class that is defined in this module may be called."""
        if _within(module, self.chosen):
            return True
        return _within(module, self.packages) and not _within(module, STARTS_PROCESSES)

    def wants_export(self, module: str) -> bool:
        """Whether what is defined in this module must be named by the top package's export of it."""
        return _within(module, EXPORTS_ONLY) and not _within(module, self.chosen)

    def refuses_argument(self, key: Any, value: Any) -> bool:
        """Whether this argument would run code that comes with a model."""
        return key in RUNS_CODE and value is RUNS_CODE[key] and REMOTE_CODE not in self.chosen


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
