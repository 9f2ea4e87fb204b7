"""`automodel evaluate`: the recipe's validation on its model, or on a checkpoint of a run."""

from __future__ import annotations

from automodel import plugins
from automodel.checkpoint.checkpointer import find_checkpoint
from automodel.checkpoint.state import load_model
from automodel.parallel.groups import by_first
from automodel.recipe import Recipe
from automodel.training.build import build_checkpointer, build_data, build_parts, processes
from automodel.training.validation import validate


def evaluate(recipe: Recipe, checkpoint: str | None = None) -> dict[str, float]:
    """Return the validation metrics of the recipe's model, or of the model in a checkpoint.

    Args:
        recipe: a checked recipe with a section `validation_dataset`.
        checkpoint: a checkpoint of the recipe's model, or the directory of a run (its newest whole one).

    Raises:
        InputError: the recipe has no validation data, or the checkpoint is not of its model.
    """
    recipe.require("validation_dataset")
    with processes(recipe) as device:
        path = by_first(lambda: find_checkpoint(checkpoint)) if checkpoint else None
        checkpointer = build_checkpointer(recipe)
        data = build_data(recipe, device)
        parts = build_parts(recipe, data, checkpointer, plugins.installed().manager, device)
        if path is not None:
            load_model(path / "state", parts.module, parts.fingerprint)
        assert parts.validation_loader is not None  # required above
        return validate(
            parts.forward,
            parts.validation_loader,
            parts.loss_fn,
            parts.options,
            parts.device,
            parts.parallelism,
            parts.document_inputs,
        )
