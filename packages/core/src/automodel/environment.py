"""What a run was made with: versions that go into every run directory and checkpoint."""

from __future__ import annotations

import platform
from importlib import metadata

from automodel import plugins

_LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python, the plugins and the libraries that decide the numbers, as far as they are installed."""
    found = {"python": platform.python_version()}
    found |= {plugin.name: plugin.version for plugin in plugins.installed().plugins}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
