"""Attention within each of several documents that lie end to end: on a CPU in groups, elsewhere by PyTorch's kernels.

transformers has this by flash-attn only; its sdpa makes a mask of all positions by all, and computes them all. Tokens
with which all documents begin (a system prompt, say) go through the model once: causal attention gives them the same
hidden states in each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from automodel import InputError
from automodel.interfaces import DocumentInputs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils.import_utils import is_tracing

from automodel_huggingface.document_groups import DocumentGroups, attend_in_groups, group_documents

NAME = "sdpa_documents"
_DOCUMENTS = "documents"
_WORTH_SHARING = 1 / 16
"""Of all tokens those that need not be computed again; fewer are not worth copying keys and values."""


_NOT_TOLD = (
    "the model's layers do not tell its attention where documents begin, or how far it reaches: set "
    "training.padding_free: false"
)


def attend_within_documents(module: Any) -> None:
    """Let a transformers model with sdpa attention read documents that lie end to end, in place; or leave it as it is.

    It then computes the attention of each on its own when its forward is given their `document_inputs`, and what it
    always does otherwise, without the mask of padding behind all tokens. Models are left out whose layers mix positions
    by more than plain attention, with or without a window.
    """
    if not _is_plain(module):
        return
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, mask_without_needless_padding)
    module.set_attn_implementation(NAME)
    # not to the whole model, which may look at its mask itself (a mixture of experts does, to balance them)
    module.get_decoder().register_forward_pre_hook(_without_mask, with_kwargs=True)


def document_inputs(module: Any) -> DocumentInputs | None:
    """How documents that lie end to end are told to a model; None if it should not read them."""
    name = module.config._attn_implementation
    if name == NAME:
        return partial(_told, module, _has_dropout(module))
    if name.startswith("flash_attention") and _is_plain(module):
        return lambda arguments: (arguments, None)
    return None


def document_attention(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BHLD: Tensor,
    value_BHLD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention, as transformers calls it; (B, L, H, D). With `documents` within each of them.

    Raises:
        InputError: the model asks for a kind of attention that is not known here.
    """
    bounds: _Documents | None = kwargs.pop(_DOCUMENTS, None)
    if bounds is None:
        if attention_mask is not None and not attention_mask.numel():
            raise InputError(_NOT_TOLD)  # a layer that does not hand on what its model was given
        return sdpa_attention_forward(
            module, query_BHLD, key_BHLD, value_BHLD, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if unknown := [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]:
        raise InputError(f"attention within documents knows no {', '.join(unknown)}: set training.padding_free: false")
    config: Any = module.config  # not every family's has windows or kinds of layers
    if sliding_window is None and getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None):
        raise InputError(_NOT_TOLD)
    return _each(query_BHLD, key_BHLD, value_BHLD, bounds, scaling, dropout, sliding_window), None


def mask_without_needless_padding(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """transformers' mask for sdpa, without padding that comes after all tokens where attention is causal.

    No token sees it, and kernels skip half of the work without a mask. transformers looks at the values as well, for
    whether there is padding at all.
    """
    if (
        kwargs.get("allow_is_causal_skip", True)
        and attention_mask is not None
        and not is_tracing(attention_mask)
        and bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())
    ):
        attention_mask = None
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, **kwargs)
    return mask


@dataclass(frozen=True, eq=False)
class _Documents:
    """Of the positions that are computed; an object, in which torch.compile does not look for numbers to compile for.

    Args:
        lengths: of each document, of all but the first without the prefix.
        prefix: tokens with which all begin, computed in the first only.
        groups: for each number of key heads that a layer has.
    """

    lengths: list[int]
    prefix: int = 0
    groups: dict[int, DocumentGroups] = field(default_factory=dict)

    def groups_of(self, num_keys: int) -> DocumentGroups:
        """What is computed together on a CPU; made by the first layer with so many key heads for all."""
        if num_keys not in self.groups:
            self.groups[num_keys] = group_documents(self.lengths, self.prefix, num_keys)
        return self.groups[num_keys]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no annotations there
def _each(
    query_BHLD: Tensor,
    key_BHLD: Tensor,
    value_BHLD: Tensor,
    documents: _Documents,
    scale: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Causal attention (1, L, H, D) within each document."""
    with record_function("automodel.attention"):
        if query_BHLD.device.type == "cpu" and not dropout:
            query_LHD, key_LHD, value_LHD = (t[0].transpose(0, 1) for t in (query_BHLD, key_BHLD, value_BHLD))
            groups = documents.groups_of(key_LHD.shape[1])
            return attend_in_groups(query_LHD, key_LHD, value_LHD, groups, scale, window)[None]
        prefix = documents.prefix
        parts = [_whole(tensor, documents) for tensor in (query_BHLD, key_BHLD, value_BHLD)]
        first, *others = (_attention(q, k, v, scale, dropout, window) for q, k, v in zip(*parts, strict=True))
        return torch.cat([first, *(output[:, :, prefix:] for output in others)], dim=2).transpose(1, 2).contiguous()


def _whole(tensor_BHLD: Tensor, documents: _Documents) -> list[Tensor]:
    """Of each document its part (B, H, L, D), with the prefix."""
    first, *others = tensor_BHLD.split(documents.lengths, dim=2)
    if documents.prefix:
        prefix = first[:, :, : documents.prefix]
        others = [torch.cat([prefix, other], dim=2) for other in others]
    return [first, *others]


def _attention(
    query_BHLD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, scale: float | None, dropout: float, window: int | None
) -> Tensor:
    """Causal attention of one document (B, H, L, D); of each position to the `window` last ones, itself among them."""
    length = query_BHLD.shape[2]
    mask_LL = None
    if window is not None and length > window:
        mask_LL = torch.ones(length, length, dtype=torch.bool, device=query_BHLD.device).tril().triu(1 - window)
    return F.scaled_dot_product_attention(
        query_BHLD,
        key_BHLD,
        value_BHLD,
        attn_mask=mask_LL,
        dropout_p=dropout,
        scale=scale,
        is_causal=mask_LL is None,
        enable_gqa=query_BHLD.shape[1] != key_BHLD.shape[1],
    )


def _told(module: Any, has_dropout: bool, arguments: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """Tell each layer the documents' lengths, and let the model compute once what all begin with (`DocumentInputs`)."""
    ids_T, positions_T = arguments["input_ids"][0], arguments["position_ids"][0]
    lengths: list[int] = arguments["cu_seq_lens_q"].diff().tolist()
    is_dropped = has_dropout and module.training  # what is to differ from document to document
    prefix = 0 if is_dropped else _shared_prefix(ids_T, lengths)
    places_T = None
    if prefix:
        starts = list(accumulate(lengths[:-1]))  # of all documents but the first
        is_computed_T = torch.ones(len(ids_T), dtype=torch.bool)
        for start in starts:
            is_computed_T[start : start + prefix] = False
        places_T = is_computed_T.cumsum(dim=0) - 1
        for start in starts:
            places_T[start : start + prefix] = torch.arange(prefix)
        ids_T, positions_T = ids_T[is_computed_T], positions_T[is_computed_T]
        lengths = [lengths[0], *(length - prefix for length in lengths[1:])]
    told = {
        "input_ids": ids_T[None],
        "position_ids": positions_T[None],
        _DOCUMENTS: _Documents(lengths, prefix),
    }
    return told, places_T


def _without_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Keep a mask from being made for documents: transformers takes one of four dimensions as ready made."""
    if _DOCUMENTS not in kwargs:
        return None
    ready = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=kwargs["position_ids"].device)
    return args, {**kwargs, "attention_mask": ready}


def _shared_prefix(ids_T: Tensor, lengths: list[int]) -> int:
    """Tokens with which all documents begin, if they are worth sharing; of each at least the last is its own."""
    starts = [end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
    longest = min(lengths) - 1
    beginnings_DP = torch.stack([ids_T[start : start + longest] for start in starts])
    prefix = int((beginnings_DP == beginnings_DP[0]).all(dim=0).int().cumprod(dim=0).sum())
    return prefix if prefix * (len(lengths) - 1) >= _WORTH_SHARING * len(ids_T) else 0


def _has_dropout(module: Any) -> bool:
    settings = vars(module.config.get_text_config()).items()
    return any(value for name, value in settings if "drop" in name or "jitter" in name) or any(
        isinstance(part, nn.Dropout) and part.p for part in module.modules()
    )


def _is_plain(module: Any) -> bool:
    config = module.config.get_text_config()  # what is not in it, the family does not have
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        module._supports_attention_backend
        and module._supports_sdpa
        and module._supports_flash_attn  # which knows no masks either, only documents and windows
        and kinds <= {"full_attention", "sliding_attention"}
        and getattr(config, "is_causal", True)
        and getattr(config, "attn_logit_softcapping", None) is None
        and not any(isinstance(part, nn.Conv1d) for part in module.modules())
    )
