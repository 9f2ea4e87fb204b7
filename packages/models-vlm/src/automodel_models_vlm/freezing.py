"""Parts of a vision-language model that are not trained, by the names people use or by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from automodel import InputError
from automodel.suggest import did_you_mean

# what the models of transformers 5.23 call them
PROJECTOR = {
    *("multi_modal_projector", "mm_projector", "projector", "connector", "merger", "deepstack_merger_list", "aligner"),
    *("vision_projection", "vision_adapter", "visual_projection", "language_projection", "modality_projection"),
    *("image_to_text_projection", "perceiver_resampler", "resampler_model", "abstractor", "qformer", "query_tokens"),
    *("embed_vision", "image_newline"),
}
VISION_TOWER = {
    "vision_tower",
    "visual",
    "vision_model",
    "vision_encoder",
    "image_encoder",
    "image_tower",
    "video_tower",
}
OTHER = {"audio_tower", "audio_model", "audio_encoder", "embed_audio", "audio_projection"}
PARTS = ("vision_tower", "projector", "language_model", "embeddings")


def freeze_parameters(module: Any, names: Sequence[str]) -> None:
    """Let the named parts of a model of transformers require no gradient, in place.

    Args:
        module: the model.
        names: `vision_tower`, `projector`, `language_model` (with its embeddings and output matrix), `embeddings` (the
            input's; the output matrix too where it is the same), a module's name, or patterns with `*` for names of
            parameters.

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
            chosen = [name for name in parameters if fnmatchcase(name, wanted) or name.startswith(f"{wanted}.")]
        if not chosen:
            known = [*PARTS, *(name for name, _ in module.named_modules() if name)]
            raise InputError(f"model.freeze: `{wanted}` means no parameter of this model{did_you_mean(wanted, known)}")
        for name in chosen:
            parameters[name].requires_grad_(False)


def _part(name: str, is_embedding: bool) -> str:
    modules = set(name.split("."))
    if modules & OTHER:
        return "other"
    if modules & PROJECTOR:  # some lie within the vision tower
        return "projector"
    if modules & VISION_TOWER:
        return "vision_tower"
    return "embeddings" if is_embedding else "language_model"
