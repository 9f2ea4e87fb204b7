"""Export: a checkpoint's model as files for serving, verified against the trained model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from automodel import InputError, ProviderOf
from automodel.checkpoint import manifest
from automodel.checkpoint.checkpointer import chosen_checkpoint
from automodel.checkpoint.trained import trained_model
from automodel.environment import versions
from automodel.plugins import installed

from automodel_deploy import levels, verification
from automodel_deploy.formats import safetensors
from automodel_deploy.publishing import building, is_current, publish

_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]B", re.IGNORECASE)
_DEFAULT_DTYPE = "bfloat16"
_DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class Export:
    """What a checkpoint is exported as.

    Args:
        formats: file formats, each a directory of its own.
        optimization_level: how far the model is changed for serving. O0: adapters merged, else as trained, in one file.
            O1: without what only training needed, in files of at most `max_shard_size`. O2: also in `dtype`. O3: also
            with the weights of linear layers in int8 (needs torchao).
        output_dir: where `<step_n>-<level>/<format>` is written; null is `exports` in the run's directory.
        dtype: data type of O2 and O3; null is bfloat16.
        max_shard_size: of one file from O1 on, as `5GB` or `500MB`; null is 5GB.

    Raises:
        InputError: values that contradict each other, or a library that is missing.
    """

    formats: list[Annotated[str, ProviderOf("exporter")]] = field(default_factory=lambda: ["safetensors"])
    optimization_level: Literal["O0", "O1", "O2", "O3"] = "O1"
    output_dir: str | None = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    max_shard_size: str | None = None

    def __post_init__(self) -> None:
        level = self.optimization_level
        if not self.formats:
            raise InputError("formats is empty: there is nothing to export")
        if self.dtype is not None and level in ("O0", "O1"):
            raise InputError(f"dtype: {self.dtype} is for optimization_level O2 and O3; {level} keeps that of training")
        if self.max_shard_size is not None and level == "O0":
            raise InputError("max_shard_size is for optimization_level O1 and above; O0 writes one file")
        if self.max_shard_size is not None and not _SIZE.fullmatch(self.max_shard_size):
            raise InputError(f"max_shard_size: `{self.max_shard_size}` is no size; write it as 5GB or 500MB")
        if level == "O3" and importlib.util.find_spec("torchao") is None:
            raise InputError("optimization_level O3 needs torchao: pip install 'automodel-deploy[torchao]'")

    @property
    def shard_size(self) -> str | None:
        """Of one file; None is one file."""
        return None if self.optimization_level == "O0" else self.max_shard_size or _DEFAULT_SHARD_SIZE

    @property
    def serving_dtype(self) -> str:
        """The data type of O2 and O3."""
        return self.dtype or _DEFAULT_DTYPE

    def directory(self, checkpoint: Path) -> Path:
        """Where the formats of a checkpoint are written."""
        checkpoint = checkpoint.resolve()
        output = checkpoint.parent / "exports" if self.output_dir is None else Path(self.output_dir).expanduser()
        return output / f"{checkpoint.name}-{self.optimization_level}"

    def digest(self, checkpoint: Path, name: str) -> str:
        """SHA-256 (hex) of all that decides the files of a format: an export that has it need not be made again."""
        about = {
            "checkpoint": manifest.checksum(checkpoint / manifest.MANIFEST),
            "format": name,
            "optimization_level": self.optimization_level,
            "dtype": self.serving_dtype,
            "max_shard_size": self.shard_size,
            "versions": {name: version(name) for name in ("automodel-deploy", "transformers")},
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def export_checkpoint(
    checkpoint: str | Path,
    export: Export,
    *,
    allow_targets: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write a checkpoint's model in every format of `export`; the same as `automodel export`.

    A format appears when its files are on disk and verified: loaded by plain transformers, they say what the trained
    model says. A whole export of the same checkpoint by the same settings is not made again.

    Args:
        checkpoint: a checkpoint, or the directory of a run, whose best or newest whole one is taken.
        export: formats, level and place.
        allow_targets: packages outside AutoModel's own list whose callables the checkpoint's recipe may name.
        say: is given a line for each format.

    Returns:
        The directories, in the order of `export.formats`.

    Raises:
        InputError: there is no whole checkpoint, or its model cannot be exported so.
        RunError: the file system refused, or an exported model is not the trained one; it is not published then.
    """
    checkpoint = chosen_checkpoint(checkpoint)
    directory = export.directory(checkpoint)
    digests = {name: export.digest(checkpoint, name) for name in export.formats}
    with building(directory) as scratch:
        missing = [name for name in digests if not is_current(directory / name, digests[name])]
        if missing:
            about = _write(checkpoint, export, missing, scratch, allow_targets)
        for name in missing:
            manifest.write_manifest(scratch / name, about[name] | {"digest": digests[name]})
            publish(scratch / name, directory / name)
    for name in digests:
        say(_told(directory / name, is_new=name in missing))
    return [directory / name for name in export.formats]


def _write(
    checkpoint: Path, export: Export, names: list[str], scratch: Path, allow_targets: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Write and verify formats below `scratch`; returns what their manifests tell.

    One model at a time is in memory: the trained one has answered when it is changed, and is gone when an export is
    loaded.
    """
    level = export.optimization_level
    writers = {name: installed().registry.load("exporter", name) for name in names}
    module, processor = trained_model(checkpoint, allow_targets=allow_targets)
    levels.check(module, level)
    trained = verification.trained(module, processor)
    if level != "O0":
        levels.strip(module)
    if level in levels.ROUNDING:
        safetensors.write(module, scratch / ".stripped", None)
        del module  # before another one takes its place
        module = levels.rounded(scratch / ".stripped", trained.loader, trained.options, level, export.serving_dtype)
    dtype = str(module.dtype).removeprefix("torch.")
    for name, write in writers.items():
        write(module, scratch / name, export.shard_size)
        processor.save_pretrained(str(scratch / name))
    del module
    about = {
        "checkpoint": str(checkpoint.resolve()),
        "step": manifest.read_manifest(checkpoint)["step"],
        "optimization_level": level,
        "dtype": dtype,
        "versions": versions() | ({"torchao": version("torchao")} if level == "O3" else {}),
    }
    return {
        name: about | {"exported_as": name, "verification": verification.verify(scratch / name, trained, level)}
        for name in names
    }


def _told(directory: Path, is_new: bool) -> str:
    about = manifest.read_manifest(directory)
    megabytes = sum(file["size"] for file in about["files"].values()) / 1e6
    done = "exported" if is_new else "already exported"
    return f"{done}: {directory} ({about['dtype']}, {megabytes:,.1f} MB); {about['verification']['text']}"
