"""Which model is served for a path: a model's directory as it is, a checkpoint's export, model or adapter."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from automodel import InputError
from automodel.checkpoint.manifest import MANIFEST
from automodel.checkpoint.remote import local_copy
from automodel.recipe import Recipe

from automodel_deploy.interfaces import Adapter, Model

EXPORT = "checkpoint_management.export_config"
_ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def run_directory(recipe: Recipe) -> Path:
    """The directory in which the recipe's run keeps its checkpoints."""
    from automodel.training.build import build_checkpointer  # imports torch

    return build_checkpointer(recipe).directory


def checkpoint_at(recipe: Recipe, path: str | None) -> Path:
    """The whole checkpoint at `path`, of a run's directory the best one if it tracks a metric, or else the newest.

    Args:
        recipe: whose run is meant where there is no path.
        path: of a run or a checkpoint, also in an object store.

    Raises:
        InputError: there is none.
    """
    from automodel.checkpoint.checkpointer import chosen_checkpoint  # imports torch

    if path is not None:
        return chosen_checkpoint(path)
    run = run_directory(recipe)
    if not run.is_dir():
        raise InputError(f"the recipe's run has no directory {run} yet: train first, or give --checkpoint PATH")
    return chosen_checkpoint(run)


def served_model(recipe: Recipe, path: str | None, allow_targets: Sequence[str] = ()) -> Model:
    """The model to serve.

    Args:
        recipe: says where checkpoints are, and whether they are exported.
        path: a model's directory, an adapter's, a run's, or a checkpoint; None is the recipe's own run.
        allow_targets: packages outside AutoModel's own list whose callables a checkpoint's recipe may name.

    Raises:
        InputError: there is nothing to serve.
    """
    if path is not None:
        directory = local_copy(path)
        if not directory.is_dir():
            raise InputError(f"--checkpoint: {path} is no directory")
        directory = directory.resolve()
        if (directory / "config.json").exists():
            return Model(_name_of(directory), str(directory))
        if (directory / _ADAPTER_CONFIG).exists() and not (directory.parent / MANIFEST).exists():
            return _with_adapter(directory.name, _adapter_at(directory))
        inside = directory.name == "model" and (directory.parent / MANIFEST).exists()
        path = str(directory.parent if inside else directory)
    checkpoint = checkpoint_at(recipe, path).resolve()
    model, name = checkpoint / "model", checkpoint.parent.name
    if recipe.has(EXPORT):
        return Model(name, str(served_directory(recipe, checkpoint, allow_targets)))
    if not model.is_dir():
        raise InputError(f"{checkpoint} has no model/, since checkpoint.save_consolidated was false: export it")
    if (model / _ADAPTER_CONFIG).exists():
        return Model(name, base_location(checkpoint, allow_targets), _adapter_at(model))
    return Model(name, str(model))


def served_directory(recipe: Recipe, checkpoint: Path, allow_targets: Sequence[str] = ()) -> Path:
    """The export of a checkpoint in the format that servers read, made if it is not there yet.

    Raises:
        InputError: it cannot be exported.
        RunError: the file system refused, or the export is not the trained model.
    """
    from automodel_deploy.export import export_checkpoint

    settings = _export_settings(recipe)
    directories = export_checkpoint(checkpoint, settings, allow_targets=allow_targets, say=click.echo)
    return Path(directories[_servable(settings.formats)]).resolve()


def _servable(formats: Sequence[str]) -> int:
    """Which of the formats is served: safetensors, which is never code, or else the first."""
    return formats.index("safetensors") if "safetensors" in formats else 0


def exports_of(recipe: Recipe, checkpoint: Path) -> list[Path]:
    """The whole exports of a checkpoint by the recipe's section `checkpoint_management.export_config`.

    Without the section there are none.
    """
    if not recipe.has(EXPORT):
        return []
    from automodel_deploy.publishing import is_current

    settings = _export_settings(recipe)
    named = {name: settings.directory(checkpoint) / name for name in settings.formats}
    return [path for name, path in named.items() if is_current(path, settings.digest(checkpoint, name))]


def _export_settings(recipe: Recipe) -> Any:
    target = recipe.target(EXPORT)
    assert target is not None  # the recipe has the section
    return target.build()


def base_location(checkpoint: Path, allow_targets: Sequence[str] = ()) -> str:
    """Where servers find the model that an adapter was trained on: a directory, or an id on the Hub.

    One that lies elsewhere (in a GGUF file, in a package, at a revision) is written to a directory of the run, once.

    Raises:
        InputError: it cannot be built, or it is not the model that the run began with.
    """
    from automodel.checkpoint.trained import base_model, recipe_of  # imports torch

    target = recipe_of(checkpoint, allow_targets, sections=("model",)).target("model")
    assert target is not None  # a checkpoint's recipe has one
    place = str(target.kwargs.get("pretrained_model_name_or_path", ""))
    directory = Path(place).expanduser()
    if (directory / "config.json").exists():
        return str(directory.resolve())
    elsewhere = {"gguf_file", "revision", "cache_dir"} & {key for key, value in target.kwargs.items() if value}
    if _HUB_ID.fullmatch(place) and not directory.exists() and not elsewhere:
        return place
    written = checkpoint.parent / _base_name(checkpoint)
    if not written.is_dir():
        base = base_model(checkpoint, allow_targets=allow_targets)
        with tempfile.TemporaryDirectory(prefix=f".{written.name}.", dir=written.parent) as parent:
            unfinished = Path(parent) / "base"
            module: Any = base.module  # `save_pretrained` is what core asks of every model, see ModelSource
            module.save_pretrained(str(unfinished))
            base.source.load_processor().save_pretrained(str(unfinished))
            mode = (unfinished / "config.json").stat().st_mode  # safetensors' files are readable by their owner alone
            for file in unfinished.glob("*.safetensors"):
                file.chmod(mode)
            unfinished.rename(written)
    return str(written)


def _base_name(checkpoint: Path) -> str:
    """The name of the base's directory, another one for other weights, as far as the checkpoint knows them."""
    state = checkpoint / "state" / "trainer.json"
    if not state.exists():
        return "base"
    return f"base_{json.loads(state.read_text(encoding='utf-8'))['fingerprint'][:8]}"


def _adapter_at(directory: Path) -> Adapter:
    return Adapter(directory, json.loads((directory / _ADAPTER_CONFIG).read_text(encoding="utf-8")))


def _with_adapter(name: str, adapter: Adapter) -> Model:
    """An adapter that lies alone, with the base that it names."""
    base = adapter.config.get("base_model_name_or_path")
    if not base or not ((Path(base) / "config.json").exists() or _HUB_ID.fullmatch(base)):
        raise InputError(
            f"{adapter.directory / _ADAPTER_CONFIG} names no base model that can be served ({base}): "
            "`automodel merge --checkpoint PATH --base LOCATION` makes one model of both"
        )
    return Model(name, str(Path(base).resolve()) if (Path(base) / "config.json").exists() else base, adapter)


def _name_of(directory: Path) -> str:
    """What people call a model's directory: one of a checkpoint, or an export of it, by the name of the run."""
    if directory.name == "model" and (directory.parent / MANIFEST).exists():
        return directory.parent.parent.name
    if (directory / MANIFEST).exists():
        about = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return Path(about["checkpoint"]).parent.name if "checkpoint" in about else directory.name
    return directory.name


def chats(model: Model) -> bool:
    """Whether the model has a chat template; one on the Hub is taken to have one."""
    directory = Path(model.location)
    if not directory.is_absolute():
        return True
    if any((directory / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    config = directory / "tokenizer_config.json"
    return config.exists() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))
