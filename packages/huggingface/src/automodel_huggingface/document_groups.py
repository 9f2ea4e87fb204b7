"""Causal attention of many documents on a CPU: those of about the same length together, by matrix products.

PyTorch's kernel for CPUs takes documents of one length: called for each, it costs more in calls than in computing, and
in bfloat16 its backward pass is slow (torch 2.15). Here the queries that share a key head are rows of one matrix, and a
block of queries meets no key behind it, so that next to half of the work of a long document is not done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

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


class _Kind(NamedTuple):
    """What a layer's blocks depend on.

    Args:
        ratio: queries to a key.
        window: how far attention reaches; None: everywhere.
        dtype: of the scores.
    """

    ratio: int
    window: int | None
    dtype: torch.dtype


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
class _Group:
    """N documents, computed as if each had the L tokens of the longest: for each of K key heads a matrix.

    Args:
        places: (N x K, L), which of the T x K heads of all positions each token is; T x K for those that a document
            has not got.
        keys: (N x K, P + L), those whose keys it may see: of the prefix, and its own.
        blocks: of queries, for what a layer has asked for.
    """

    places: Tensor
    keys: Tensor
    blocks: dict[_Kind, list[_Block]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """L."""
        return self.places.shape[1]

    @property
    def own_keys(self) -> Tensor:
        """(N x K, L), the places, with some other one for those that a document has not got."""
        return self.keys[:, -self.length :]

    @property
    def is_short(self) -> bool:
        """Whether weights and masks are kept for the backward pass."""
        return self.length <= _LONGEST_KEPT

    def blocks_of(self, kind: _Kind) -> Iterable[_Block]:
        """Its queries in blocks, with masks; kept for all layers, unless they would be large.

        The last block comes first: what others need then fits into the memory that it has left (8,192 tokens in float32
        took 0.5 to 1.3 GB in the order of the queries, and take 0.4 to 0.5).
        """
        if not self.is_short:
            return self._blocks(kind)
        if kind not in self.blocks:
            self.blocks[kind] = list(self._blocks(kind))
        return self.blocks[kind]

    def _blocks(self, kind: _Kind) -> Iterator[_Block]:
        prefix, window = self.keys.shape[1] - self.length, kind.window
        for start in reversed(range(0, self.length, _BLOCK)):
            end = min(start + _BLOCK, self.length)
            low = 0 if window is None else max(0, prefix + start - window + 1)
            unseen = torch.full((end - start, prefix + end - low), float("-inf"), dtype=kind.dtype)
            own = prefix + start - low  # the column of the first query's own key
            mask = unseen.triu(own + 1) if window is None else unseen.triu(own + 1) + unseen.tril(own - window)
            yield _Block(start, end, low, prefix + end, mask.repeat_interleave(kind.ratio, dim=0))


@dataclass(frozen=True, eq=False)
class DocumentGroups:
    """All documents, in groups.

    Args:
        groups: each document is in one.
        order: (T x K), where in the groups, end to end, each position's key heads are.
    """

    groups: list[_Group]
    order: Tensor

    @property
    def sizes(self) -> list[int]:
        """Of each group N x K x L."""
        return [group.places.numel() for group in self.groups]


def group_documents(lengths: list[int], prefix: int, num_keys: int) -> DocumentGroups:
    """The groups of documents of these lengths, which lie end to end.

    Args:
        lengths: of each document, of all but the first without the prefix.
        prefix: tokens with which all begin, and which are there in the first only.
        num_keys: K.
    """
    total = sum(lengths)
    starts = [end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
    starts[0] += prefix
    own = [lengths[0] - prefix, *lengths[1:]]
    groups = [_group([0], [prefix], 0, total, num_keys)] if prefix else []
    together: list[int] = []
    for document in [*sorted(range(len(own)), key=own.__getitem__), None]:
        # of longer ones the padding would cost more than one more group
        if together and (document is None or own[document] > 1.35 * own[together[0]] + 8):
            groups.append(_group([starts[i] for i in together], [own[i] for i in together], prefix, total, num_keys))
            together = []
        if document is not None:
            together.append(document)
    places = torch.cat([group.places.flatten() for group in groups])
    order = torch.empty(total * num_keys + 1, dtype=torch.int64)
    order[places] = torch.arange(len(places))
    return DocumentGroups(groups, order[:-1])


def _group(starts: list[int], lengths: list[int], prefix: int, total: int, num_keys: int) -> _Group:
    tokens, heads = torch.arange(max(lengths)), torch.arange(num_keys)[:, None]
    positions = torch.tensor(starts)[:, None, None] + tokens
    is_missing = tokens >= torch.tensor(lengths)[:, None, None]
    places = (positions * num_keys + heads).masked_fill(is_missing, total * num_keys).flatten(0, 1)
    of_prefix = (torch.arange(prefix) * num_keys + heads).repeat(len(starts), 1)
    # what a document has not got comes after all that it has, where no query of it looks
    return _Group(places, torch.cat([of_prefix, places.clamp(max=total * num_keys - 1)], dim=1))


def attend_in_groups(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    documents: DocumentGroups,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention (T, H, D) within each document.

    Args:
        query_THD: of H heads.
        key_TKD: of K heads, each of which H / K heads of queries share.
        value_TKD: likewise.
        documents: all.
        scale: of the scores; None: one by the root of D.
        window: of each position only so many last ones are seen, itself among them.
    """
    tensors: tuple[Tensor, ...] = (query_THD, key_TKD, value_TKD)
    if torch.is_autocast_enabled("cpu") and query_THD.dtype != torch.float64:  # as for PyTorch's attention
        tensors = tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)
    scale = query_THD.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):
        output: Tensor = _Attention.apply(*tensors, documents, scale, window)
    return output


class _Attention(torch.autograd.Function):
    """Of each group's documents and key heads one matrix each (L x H / K, D): the rows of a token's heads follow."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        documents: DocumentGroups,
        scale: float,
        window: int | None,
    ) -> Tensor:
        T, num_keys, _ = key_TKD.shape
        queries, keys, values = (tensor.reshape(T * num_keys, -1) for tensor in (query_THD, key_TKD, value_TKD))
        ratio = query_THD.shape[1] // num_keys
        kind = _Kind(ratio, window, _exact(queries.dtype))
        outputs = queries.new_empty(sum(documents.sizes), ratio * values.shape[1])
        kept: list[Tensor] = []
        for group, own_outputs in zip(documents.groups, outputs.split(documents.sizes), strict=True):
            query = _picked(queries, group.own_keys, ratio)
            key, value = _picked(keys, group.keys), _picked(values, group.keys)
            output = own_outputs.view(*query.shape[:2], -1)
            kept += [query, key, value]
            for block in group.blocks_of(kind):
                rows = slice(block.start * ratio, block.end * ratio)
                weights = _weights(query[:, rows], key, block, scale)
                output[:, rows] = weights @ value[:, block.low : block.high]
                if group.is_short and any(ctx.needs_input_grad):
                    kept.append(weights)
        ctx.save_for_backward(*kept)
        ctx.documents, ctx.scale, ctx.kind, ctx.num_keys = documents, scale, kind, num_keys
        return outputs.index_select(0, documents.order).view(T, ratio * num_keys, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        with record_function("automodel.attention"):
            return *_gradients(ctx, grad_THD), None, None, None


def _gradients(ctx: Any, grad_THD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of queries, keys and values; what several documents or blocks share is added up in float32 at least."""
    (T, H, _), num_keys, documents, kind = grad_THD.shape, ctx.num_keys, ctx.documents, ctx.kind
    saved = ctx.saved_tensors  # asked for once: activation checkpointing refuses the second time
    first_query, first_key, first_value, *_ = saved
    kept = iter(saved)
    grads = F.pad(grad_THD.reshape(T * num_keys, -1), (0, 0, 0, 1))  # of tokens that a document has not got: nothing
    of_queries = grads.new_empty(sum(documents.sizes), kind.ratio * first_query.shape[2])
    of_keys, of_values = (
        torch.zeros(T * num_keys, tensor.shape[2], dtype=kind.dtype) for tensor in (first_key, first_value)
    )
    for group, own_of_queries in zip(documents.groups, of_queries.split(documents.sizes), strict=True):
        query, key, value = next(kept), next(kept), next(kept)
        grad = _picked(grads, group.places, kind.ratio)
        of_query = own_of_queries.view(query.shape)
        of_key, of_value = (torch.zeros_like(tensor, dtype=kind.dtype) for tensor in (key, value))
        for block in group.blocks_of(kind):
            rows, columns = slice(block.start * kind.ratio, block.end * kind.ratio), slice(block.low, block.high)
            weights = next(kept) if group.is_short else _weights(query[:, rows], key, block, ctx.scale)
            of_value[:, columns] += weights.transpose(1, 2) @ grad[:, rows]
            of_weights = grad[:, rows] @ value[:, columns].transpose(1, 2)
            # the operator of softmax's own backward pass, which has no public name
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_query[:, rows] = of_scores @ key[:, columns]
            of_key[:, columns] += of_scores.transpose(1, 2) @ query[:, rows]
        for total, own in ((of_keys, of_key), (of_values, of_value)):
            total.index_add_(0, group.keys.flatten(), own.flatten(0, 1))
    of_query_THD = of_queries.index_select(0, documents.order).view(T, H, -1).mul_(ctx.scale)
    of_key_TKD, of_value_TKD = (total.view(T, num_keys, -1) for total in (of_keys.mul_(ctx.scale), of_values))
    return of_query_THD, of_key_TKD.to(grads.dtype), of_value_TKD.to(grads.dtype)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What is summed or goes through an exponential is in float32 at least, as in PyTorch's kernels."""
    return torch.promote_types(dtype, torch.float32)


def _weights(query: Tensor, key: Tensor, block: _Block, scale: float) -> Tensor:
    """Softmax of the scores. A score of 60 in bfloat16 may be 0.1 off: a tenth of its weight."""
    seen = key[:, block.low : block.high].transpose(1, 2)
    scores = torch.baddbmm(block.mask, query.to(block.mask.dtype), seen.to(block.mask.dtype), alpha=scale)
    return scores.softmax(dim=-1).to(query.dtype)


def _picked(rows: Tensor, places: Tensor, ratio: int = 1) -> Tensor:
    """The rows (T x K, ratio x D) of these places (N x K, L) as matrices (N x K, L x ratio, D)."""
    return rows.index_select(0, places.flatten()).view(len(places), places.shape[1] * ratio, -1)
