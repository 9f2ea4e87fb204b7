"""Context parallelism: each process has some positions of every sample, and attends to the keys of all.

Keys and values are gathered from all processes of the group in every layer, as for Llama 3 (arXiv:2407.21783, 3.3.2),
which is exact for any length. Positions are shared head and tail, so that everybody has as much of the causal
triangle: with n processes a sample has 2n pieces, and process i has pieces i and 2n-1-i. torch's own
`context_parallel` has no attention kernel for the CPU (torch 2.15).
"""

from __future__ import annotations

from typing import Any

import torch
from automodel import InputError
from automodel.interfaces import Batch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

NAME = "automodel_context_parallel"
IGNORED_LABEL = -100
_INSTEAD = "use cp_size: 1"


def apply(model: Any, mesh: DeviceMesh) -> None:
    """Let a transformers model attend across the group, in place.

    Raises:
        InputError: its attention is not plain causal attention.
    """
    from transformers import AttentionInterface

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")):
        raise InputError(
            f"context parallelism is for full causal attention, and {type(model).__name__} has "
            f"{', '.join(sorted(kinds - {'full_attention'})) or 'a sliding window'}; {_INSTEAD}"
        )

    def attention(
        module: Any,
        query_BHLD: Tensor,
        key_BHLD: Tensor,
        value_BHLD: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if unknown := [name for name in ("sliding_window", "softcap", "s_aux") if kwargs.get(name) is not None]:
            raise InputError(f"context parallelism knows no {', '.join(unknown)} of {type(model).__name__}; {_INSTEAD}")
        pieces = attend(query_BHLD, key_BHLD, value_BHLD, mesh, scaling, dropout)
        return pieces.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    model.set_attn_implementation(NAME)
    if config._attn_implementation != NAME:  # transformers only logs that a model has attention of its own
        raise InputError(f"context parallelism cannot reach into the attention of {type(model).__name__}; {_INSTEAD}")


def attend(
    query_BHLD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, mesh: DeviceMesh, scale: float | None, dropout: float
) -> Tensor:
    """Causal attention of this process's positions to all earlier ones (B, H, L, D), L positions of this process."""
    num, own = mesh.size(), mesh.get_local_rank()
    keys, values = _gathered(key_BHLD, mesh), _gathered(value_BHLD, mesh)
    outputs = []
    for query, number in zip(query_BHLD.chunk(2, dim=2), (own, 2 * num - 1 - own), strict=True):
        key, value = torch.cat(keys[: number + 1], dim=2), torch.cat(values[: number + 1], dim=2)
        mask = causal_lower_right(query.shape[2], key.shape[2])
        outputs.append(
            F.scaled_dot_product_attention(
                query,
                key.repeat_interleave(query.shape[1] // key.shape[1], dim=1),
                value.repeat_interleave(query.shape[1] // value.shape[1], dim=1),
                attn_mask=mask,
                dropout_p=dropout,
                scale=scale,
            )
        )
    return torch.cat(outputs, dim=2)


def _gathered(local_BHLD: Tensor, mesh: DeviceMesh) -> list[Tensor]:
    """The pieces of all processes in the order of positions; their gradients are summed on the way back."""
    shared = DTensor.from_local(local_BHLD.contiguous(), mesh, [Shard(2)], run_check=False)
    whole = shared.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    pieces = whole.chunk(2 * mesh.size(), dim=2)
    return [pieces[2 * n] for n in range(mesh.size())] + [pieces[2 * n + 1] for n in reversed(range(mesh.size()))]


def local_part(inputs: Batch, targets_BL: Tensor, mesh: DeviceMesh, parts: int = 1) -> tuple[Batch, Tensor]:
    """This process's positions of a micro-batch, with their numbers as `position_ids`; as many as `parts` divides.

    Raises:
        InputError: rows are padded on the left, or the model reads more than text.
    """
    mask = inputs.get("attention_mask")
    if mask is not None and bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise InputError("context parallelism needs rows that are padded on the right; see dataloader.collate_fn")
    if others := inputs.keys() - {"input_ids", "attention_mask"}:
        raise InputError(f"context parallelism knows only text, not the inputs {', '.join(sorted(others))}")
    inputs, targets_BL = padded(inputs, targets_BL, 2 * mesh.size() * parts)
    own = mesh.get_local_rank()
    pieces = torch.arange(targets_BL.shape[1], device=targets_BL.device).chunk(2 * mesh.size())
    positions_L = torch.cat([pieces[own], pieces[2 * mesh.size() - 1 - own]])
    # padding is on the right, where causal attention does not look: no mask is needed
    local = {"input_ids": inputs["input_ids"][:, positions_L], "position_ids": positions_L[None]}
    return local, targets_BL[:, positions_L]


def padded(inputs: Batch, targets_BL: Tensor, multiple: int) -> tuple[Batch, Tensor]:
    """The micro-batch with columns without loss added on the right, to a multiple."""
    if not (missing := -targets_BL.shape[1] % multiple):
        return inputs, targets_BL
    text = {name: F.pad(inputs[name], (0, missing)) for name in ("input_ids", "attention_mask") if name in inputs}
    return inputs | text, F.pad(targets_BL, (0, missing), value=IGNORED_LABEL)
