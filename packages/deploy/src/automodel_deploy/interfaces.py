"""What this package's providers return, as protocols: a plugin needs no base class of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Exporter(Protocol):
    """What `exporter_providers` name: writes a model in one file format."""

    def __call__(self, module: Any, directory: Path, max_shard_size: str | None) -> None:
        """Write the module's weights, configuration and generation configuration.

        What it writes must be a directory that `from_pretrained` of transformers loads: it is verified so.

        Args:
            module: a transformers model on the CPU.
            directory: does not exist yet; the caller adds the tokenizer or processor and the chat template.
            max_shard_size: of one file, as `5GB`; null is one file.

        Raises:
            OSError: the file system refused.
        """


@dataclass(frozen=True)
class Model:
    """What a server serves.

    Args:
        name: by which clients ask for it.
        directory: a Hugging Face directory: the model, or the base of `adapter`.
        adapter: a PEFT adapter's directory, served beside its base without being merged.
    """

    name: str
    directory: Path
    adapter: Path | None = None


class Server(Protocol):
    """What `server_providers` return: how to start a server of the OpenAI API."""

    host: str
    port: int
    start_timeout_s: int
    health: str
    """The path that answers 200 when the server is ready."""

    def command(self, model: Model) -> list[str]:
        """The words that start it.

        Raises:
            InputError: it is not installed here, or it cannot serve this model so.
        """

    def environment(self) -> dict[str, str]:
        """Variables it needs besides this process's."""

    def asked_for(self, model: Model) -> str:
        """What a request has as `model`."""


@dataclass(frozen=True)
class Version:
    """A registered version of a model."""

    name: str
    version: str
    uri: str
    is_new: bool


class ModelRegistry(Protocol):
    """What `model_registry_providers` return."""

    def register(self, checkpoint: Path, exports: list[Path], digest: str) -> Version:
        """Register a checkpoint's model with recipe, metrics, lineage and exported files, once for each digest.

        Args:
            checkpoint: a run's `step_<n>`.
            exports: directories of exported files.
            digest: of what is registered: the same one is not registered twice.

        Raises:
            RunError: the registry refused or cannot be reached.
        """
