"""Which dotted paths a recipe may name: a recipe from a colleague must not run code that nobody chose to install."""

from __future__ import annotations

from collections.abc import Iterable

LIBRARIES = (
    "torch.optim",
    "torch.nn",
    "torch.utils.data",
    "torch.distributed",
    "torchdata",
    "transformers",
)
STARTS_PROCESSES = (
    "torch.distributed.elastic",
    "torch.distributed.launch",
    "torch.distributed.launcher",
    "torch.distributed.run",
    "torch.distributed.rpc",
    "transformers.cli",
    "transformers.commands",
    "transformers.testing_utils",
    "automodel.cli",
    "automodel.launch",
    "automodel.testing",
)
"""Parts of allowed packages whose functions run commands that they are given."""

REMOTE_CODE = "transformers_modules"
"""The package into which transformers puts code it downloads with a model (`trust_remote_code=True`)."""


class AllowList:
    """The packages of the libraries, of the installed plugins, and those of `--allow-target`."""

    def __init__(self, plugin_packages: Iterable[str], chosen: Iterable[str]) -> None:
        self.chosen = tuple(chosen)
        self.packages = (*LIBRARIES, *sorted(plugin_packages))

    def admits(self, module: str) -> bool:
        """Whether a function or class that is defined in this module may be called."""
        if _within(module, self.chosen):
            return True
        return _within(module, self.packages) and not _within(module, STARTS_PROCESSES)

    @property
    def admits_remote_code(self) -> bool:
        """Whether a recipe may set `trust_remote_code: true`."""
        return REMOTE_CODE in self.chosen


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
