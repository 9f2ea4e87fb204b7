"""Causal attention of many documents on a CPU: those of about the same length together, by matrix products.

PyTorch's kernel for CPUs takes documents of one length: called for each, it costs more in calls than in computing, and
in bfloat16 its backward pass is slow (torch 2.15). Here the queries that share a key head are rows of one matrix, and a
block of queries meets no key behind it, so that next to half of the work of a long document is not done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.profiler import record_function

_BLOCK = 128
"""Queries of a document that are computed at once (benchmarked with 64, 128 and 256)."""
_LONGEST_KEPT = 512
"""Tokens of a document whose weights are kept for the backward pass. Their number grows with the length squared, so
those of longer ones are computed again, with their masks."""


@dataclass(frozen=True)
class _Block:
    """Queries `start` to `end` of each document, and the keys `low` to `high` of which they may see some.

    Args:
        start: in the document, without the prefix.
        end: likewise.
        low: in the document, with the prefix.
        high: likewise.
        mask: (rows of queries, keys), what is added to the scores: 0 or -inf.
    """

    start: int
    end: int
    low: int
    high: int
    mask: Tensor


@dataclass(frozen=True, eq=False)
class DocumentGroup:
    """N documents, computed as if each had the L tokens of the longest.

    Args:
        places: (N, L), which of the T positions each token is; T for those that a document has not got.
        keys: (N, P + L), the positions whose keys it may see: those of the prefix, and its own.
        blocks: of queries, for each window and data type that a layer has asked for.
    """

    places: Tensor
    keys: Tensor
    blocks: dict[tuple[int, int | None, torch.dtype], list[_Block]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """L."""
        return self.places.shape[1]

    def blocks_of(self, queries_per_key: int, window: int | None, dtype: torch.dtype) -> Iterable[_Block]:
        """Its queries in blocks, with masks; kept for all layers, unless they would be large.

        The last block comes first: what others need then fits into the memory that it has left (8,192 tokens in float32
        took 0.5 to 1.3 GB in the order of the queries, and take 0.4 to 0.5).
        """
        key = (queries_per_key, window, dtype)
        if self.length > _LONGEST_KEPT:
            return self._blocks(*key)
        if key not in self.blocks:
            self.blocks[key] = list(self._blocks(*key))
        return self.blocks[key]

    def _blocks(self, queries_per_key: int, window: int | None, dtype: torch.dtype) -> Iterator[_Block]:
        prefix = self.keys.shape[1] - self.length
        for start in reversed(range(0, self.length, _BLOCK)):
            end = min(start + _BLOCK, self.length)
            low = 0 if window is None else max(0, prefix + start - window + 1)
            unseen = torch.full((end - start, prefix + end - low), float("-inf"), dtype=dtype)
            own = prefix + start - low  # the column of the first query's own key
            mask = unseen.triu(own + 1) if window is None else unseen.triu(own + 1) + unseen.tril(own - window)
            yield _Block(start, end, low, prefix + end, mask.repeat_interleave(queries_per_key, dim=0))


def group_documents(lengths: list[int], prefix: int) -> list[DocumentGroup]:
    """The groups of documents of these lengths, which lie end to end.

    Args:
        lengths: of each document, of all but the first without the prefix.
        prefix: tokens with which all begin, and which are there in the first only.
    """
    total = sum(lengths)
    starts = [end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
    starts[0] += prefix
    own = [lengths[0] - prefix, *lengths[1:]]
    groups = [_group([0], [prefix], 0, total)] if prefix else []
    together: list[int] = []
    for document in sorted(range(len(own)), key=own.__getitem__):
        if together and own[document] > 1.35 * own[together[0]] + 8:  # then padding would cost more than one more group
            groups.append(_group([starts[i] for i in together], [own[i] for i in together], prefix, total))
            together = []
        together.append(document)
    groups.append(_group([starts[i] for i in together], [own[i] for i in together], prefix, total))
    return groups


def _group(starts: list[int], lengths: list[int], prefix: int, total: int) -> DocumentGroup:
    tokens = torch.arange(max(lengths))
    places = torch.tensor(starts)[:, None] + tokens
    places = places.masked_fill(tokens >= torch.tensor(lengths)[:, None], total)
    # what a document has not got comes after all that it has, where no query of it looks
    keys = torch.cat([torch.arange(prefix).expand(len(starts), -1), places.clamp(max=total - 1)], dim=1)
    return DocumentGroup(places, keys)


def attend_in_groups(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    groups: list[DocumentGroup],
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention (T, H, D) within each document.

    Args:
        query_THD: of H heads.
        key_TKD: of K heads, each of which H / K heads of queries share.
        value_TKD: likewise.
        groups: of all documents.
        scale: of the scores; None: one by the root of D.
        window: of each position only so many last ones are seen, itself among them.
    """
    scale = query_THD.shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = _Attention.apply(query_THD, key_TKD, value_TKD, groups, scale, window)
    return output


class _Attention(torch.autograd.Function):
    """Of each group's documents and key heads one matrix each (L x H / K, D): the rows of a token's heads follow."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        groups: list[DocumentGroup],
        scale: float,
        window: int | None,
    ) -> Tensor:
        num_keys = key_TKD.shape[1]
        outputs = query_THD.new_empty(len(query_THD) + 1, query_THD.shape[1], value_TKD.shape[2])
        kept: list[Tensor] = []
        for group in groups:
            query = _of_keys(query_THD, group.places.clamp(max=len(query_THD) - 1), num_keys)
            key, value = (_of_keys(tensor, group.keys, num_keys) for tensor in (key_TKD, value_TKD))
            ratio = query.shape[1] // group.length
            output = query.new_empty(*query.shape[:2], value.shape[2])
            kept += [query, key, value]
            for block in group.blocks_of(ratio, window, query.dtype):
                rows = slice(block.start * ratio, block.end * ratio)
                weights = _weights(query[:, rows], key, block, scale)
                output[:, rows] = weights @ value[:, block.low : block.high]
                if group.length <= _LONGEST_KEPT:
                    kept.append(weights)
            outputs[group.places.flatten()] = _of_tokens(output, group.places, num_keys)
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.scale, ctx.window, ctx.num_keys = groups, scale, window, num_keys
        return outputs[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        with record_function("automodel.attention"):
            return *_gradients(ctx, grad_THD), None, None, None


def _gradients(ctx: Any, grad_THD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of queries, keys and values; what several documents or blocks share is added up in float32."""
    grads = F.pad(grad_THD, (0, 0, 0, 0, 0, 1))  # of tokens that a document has not got: nothing
    saved = ctx.saved_tensors  # asked for once: activation checkpointing refuses the second time
    first_query, first_key, first_value, *_ = saved
    kept = iter(saved)
    of_query = grads.new_empty(*grads.shape[:2], first_query.shape[2])
    of_key, of_value = (
        torch.zeros(len(grads), ctx.num_keys, tensor.shape[2], dtype=torch.float32)
        for tensor in (first_key, first_value)
    )
    for group in ctx.groups:
        query, key, value = next(kept), next(kept), next(kept)
        grad = _of_keys(grads, group.places, ctx.num_keys)
        ratio = query.shape[1] // group.length
        own_query = torch.empty_like(query)
        own_key, own_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
        for block in group.blocks_of(ratio, ctx.window, query.dtype):
            rows, columns = slice(block.start * ratio, block.end * ratio), slice(block.low, block.high)
            kept_weights = group.length <= _LONGEST_KEPT
            weights = next(kept) if kept_weights else _weights(query[:, rows], key, block, ctx.scale)
            own_value[:, columns] += weights.transpose(1, 2) @ grad[:, rows]
            of_weights = grad[:, rows] @ value[:, columns].transpose(1, 2)
            # the operator of softmax's own backward pass, which has no public name
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            own_query[:, rows] = of_scores @ key[:, columns]
            own_key[:, columns] += of_scores.transpose(1, 2) @ query[:, rows]
        of_query[group.places.flatten()] = _of_tokens(own_query, group.places, ctx.num_keys)
        for total, own in ((of_key, own_key), (of_value, own_value)):
            total.index_add_(0, group.keys.flatten(), _of_tokens(own, group.keys, ctx.num_keys))
    of_query, of_key, of_value = of_query[:-1], of_key[:-1], of_value[:-1]
    return of_query.mul_(ctx.scale), of_key.mul_(ctx.scale).to(grads.dtype), of_value.to(grads.dtype)


def _weights(query: Tensor, key: Tensor, block: _Block, scale: float) -> Tensor:
    """Softmax of the scores; in half precision it computes in float32 and rounds its result."""
    scores = torch.baddbmm(block.mask, query, key[:, block.low : block.high].transpose(1, 2), alpha=scale)
    return scores.softmax(dim=-1)


def _of_keys(tensor_THD: Tensor, places_NL: Tensor, num_keys: int) -> Tensor:
    """The rows (N x K, L x H / K, D) of these places: one matrix for each document and key head."""
    N, L = places_NL.shape
    D = tensor_THD.shape[2]
    picked = tensor_THD[places_NL.flatten()].view(N, L, num_keys, -1, D)
    return picked.transpose(1, 2).reshape(N * num_keys, -1, D)


def _of_tokens(matrices: Tensor, places_NL: Tensor, num_keys: int) -> Tensor:
    """The inverse: (N x L, H, D)."""
    N, L = places_NL.shape
    D = matrices.shape[2]
    return matrices.view(N, num_keys, L, -1, D).transpose(1, 2).reshape(N * L, -1, D)
