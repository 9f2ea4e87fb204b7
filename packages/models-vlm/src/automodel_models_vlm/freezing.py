"""Parts of a vision-language model that are not trained, by the names people use or by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from automodel import InputError
from automodel.suggest import did_you_mean

PROJECTOR = {"multi_modal_projector", "connector", "merger", "deepstack_merger_list", "perceiver_resampler", "aligner"}
VISION_TOWER = {"vision_tower", "visual", "vision_model", "vision_encoder", "image_encoder"}
PARTS = ("vision_tower", "projector", "language_model", "embeddings")


def freeze_parameters(module: Any, names: Sequence[str]) -> None:
    """Let the named parts of a model of transformers require no gradient, in place.

    Args:
        module: the model.
        names: `vision_tower`, `projector`, `language_model` (with its embeddings and output matrix), `embeddings` (the
            input's; the output matrix too where it is the same), or patterns with `*` for names of parameters.

    Raises:
        InputError: a name or pattern means no parameter of this model.
    """
    embeddings = module.get_input_embeddings().weight
    parts = {name: _part(name, value is embeddings) for name, value in module.named_parameters()}
    parameters = dict(module.named_parameters())
    for wanted in names:
        if wanted in PARTS:
            meant = {wanted, "embeddings"} if wanted == "language_model" else {wanted}
            chosen = [name for name, part in parts.items() if part in meant]
        else:
            chosen = [name for name in parameters if fnmatchcase(name, wanted)]
        if not chosen:
            known = [*PARTS, *dict.fromkeys(name.rpartition(".")[0] + ".*" for name in parameters)]
            raise InputError(f"freeze: `{wanted}` means no parameter of this model{did_you_mean(wanted, known)}")
        for name in chosen:
            parameters[name].requires_grad_(False)


def _part(name: str, is_embedding: bool) -> str:
    modules = set(name.split("."))
    if modules & PROJECTOR:  # some lie within the vision tower
        return "projector"
    if modules & VISION_TOWER:
        return "vision_tower"
    return "embeddings" if is_embedding else "language_model"
