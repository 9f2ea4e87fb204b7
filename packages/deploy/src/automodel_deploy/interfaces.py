"""What this package's providers return, as protocols: a plugin needs no base class of ours."""

from __future__ import annotations

from collections.abc import Mapping
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
class Adapter:
    """A PEFT adapter.

    Args:
        directory: where its files lie.
        config: what its `adapter_config.json` says.
    """

    directory: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """What a server serves.

    Args:
        name: by which clients ask for it, unless the recipe gives another one.
        location: the directory of the model, or of the base of `adapter`, or its id on the Hugging Face Hub.
        adapter: served beside its base without being merged.
    """

    name: str
    location: str
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Container:
    """How a server runs in a cluster.

    Args:
        image: the container image.
        command: the words that start it, listening on all addresses.
        environment: variables it needs.
        gpus: that it needs.
    """

    image: str
    command: list[str]
    environment: dict[str, str]
    gpus: int


class Server(Protocol):
    """What `server_providers` return: how to start a server of the OpenAI API."""

    @property
    def host(self) -> str:
        """The address it listens on."""

    @property
    def port(self) -> int:
        """The port it listens on."""

    @property
    def start_timeout_s(self) -> int:
        """Seconds after which a server that is not ready is given up."""

    @property
    def health(self) -> str:
        """The path that answers 200 when the server is ready."""

    def asked_for(self, model: Model) -> str:
        """What a request has as `model`."""

    def command(self, model: Model) -> list[str]:
        """The words that start it.

        Raises:
            InputError: it cannot serve this model so; says what to do.
        """

    def environment(self, model: Model) -> dict[str, str]:
        """Variables it needs besides this process's."""

    def prepare(self) -> None:
        """Make sure, before it is started, that it can run on this machine.

        Raises:
            InputError: it is not installed, or the machine lacks what the recipe asks for.
        """

    def container(self, model: Model) -> Container | None:
        """How it runs in a cluster, the model's paths being those within the container; None without an image.

        Raises:
            InputError: it cannot serve this model so.
        """


@dataclass(frozen=True)
class Version:
    """A registered version of a model.

    Args:
        name: of the registered model.
        version: its number.
        uri: by which the registry's own client finds it.
        registry: where it is registered.
        is_new: false if the same files were registered before.
    """

    name: str
    version: str
    uri: str
    registry: str
    is_new: bool


class ModelRegistry(Protocol):
    """What `model_registry_providers` return."""

    def register(self, checkpoint: Path, exports: list[Path], digest: str) -> Version:
        """Register a checkpoint's model with recipe, metrics, lineage and exported files, once for each digest.

        Args:
            checkpoint: a run's `step_<n>`.
            exports: directories of exported files; without any, the checkpoint's own model is registered.
            digest: of what is registered: the same one is not registered twice.

        Raises:
            RunError: the registry refused or cannot be reached.
        """
