"""AutoModel: fine-tune Hugging Face LLMs and VLMs from one YAML recipe.

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from automodel.errors import AutoModelError, InputError, RunError
from automodel.hookspecs import hookimpl, hookspec
from automodel.providers import Kind, Provider, ProviderOf

if TYPE_CHECKING:
    from automodel.training.train import TrainResult, train

__version__ = version("automodel-core")
__all__ = [
    "AutoModelError",
    "InputError",
    "Kind",
    "Provider",
    "ProviderOf",
    "RunError",
    "TrainResult",
    "hookimpl",
    "hookspec",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name in ("train", "TrainResult"):
        from automodel.training import train as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
