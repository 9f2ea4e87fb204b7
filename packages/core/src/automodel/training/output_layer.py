"""The loss computed where the logits are made, a part of the tokens at a time, so that all logits never exist at once.

The output layer's own forward is replaced for the time of a model's forward: what the parallelism has done to the
model (parameters that are gathered for the time of its forward, gradients that are averaged as they come) then holds
for the loss as well. Gradients are computed part by part in the forward pass, as in Liger's fused linear cross-entropy
(Hsu et al. 2024, arXiv:2410.10989), but with any loss function and any output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from automodel.interfaces import Loss
from automodel.training.linear import is_plain_linear, linear

_hands_on: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Of output layers that were met: whether their models' logits are what they return, not scaled or capped."""


def tokens_of_a_part(layer: nn.Module, device: torch.device) -> int:
    """How many tokens the output layer works on at a time.

    Few where nothing but the processor's cache is to be won; more where each part costs a kernel's launch, or a pass
    over the gradient of the layer's weights.
    """
    is_trained = any(parameter.requires_grad for parameter in layer.parameters())
    return 512 if is_trained or device.type != "cpu" else 128


def loss_in_output_layer(
    module: Any,
    forward: Callable[[], Tensor],
    pick: Callable[[Tensor], Tensor],
    targets_N: Tensor,
    loss_fn: Loss,
    *,
    with_right: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """The sum of the loss and, if asked for, whether each label was the first choice (N); None if it cannot be so.

    Args:
        module: with `get_output_embeddings()`, as transformers' models have.
        forward: calls the model and gives its logits.
        pick: takes the N label tokens out of what the output layer is given.
        targets_N: their labels.
        loss_fn: summed over tokens.
        with_right: whether to compare first choices.
    """
    model = getattr(module, "module", module)
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if layer is None or not _hands_on.get(layer, True):
        return None
    before = None if layer in _hands_on else _rng_states(targets_N.device)
    replaced = _Replaced(layer, pick, targets_N, loss_fn, with_right)
    try:
        layer.forward = replaced
        logits = forward()
    finally:
        replaced.undo()
    if before is not None:
        _hands_on[layer] = replaced.known is not None and _ends_with(logits, replaced.known)
        if not _hands_on[layer]:  # the forward pass is done again in the other way, with the same dropout
            _restore(before, targets_N.device)
            return None
    # through the model's output, which is where some parallelisms begin their backward pass
    return logits[..., 0].sum(), replaced.right_N


class _Replaced:
    """The forward of an output layer that returns the loss.

    At the layer's first time known numbers follow it, one for each further logit: what the model does to them, it does
    to logits. The loss would not tell, if it is 0 or not finite, and not be the same on every process.
    """

    def __init__(
        self, layer: nn.Module, pick: Callable[[Tensor], Tensor], targets_N: Tensor, loss_fn: Loss, with_right: bool
    ) -> None:
        self.known: Tensor | None = None
        self.right_N: Tensor | None = None
        self._layer, self._own = layer, layer.__dict__.get("forward")
        self._forward = layer.forward
        self._pick, self._targets_N, self._loss_fn, self._with_right = pick, targets_N, loss_fn, with_right

    def __call__(self, hidden: Tensor) -> Tensor:
        trained = torch.is_grad_enabled()  # not in a validation
        parameters = [parameter for parameter in self._layer.parameters() if trained and parameter.requires_grad]
        if any(isinstance(tensor, DTensor) for tensor in (hidden, *self._layer.parameters())):
            return self._forward(hidden)
        size = tokens_of_a_part(self._layer, hidden.device)
        forward = self._by_columns if self._is_faster_by_columns(hidden) else self._forward
        arguments = (self._pick(hidden), self._targets_N, forward, self._loss_fn, self._with_right, size)
        loss, self.right_N, num_logits = _ChunkedLoss.apply(*arguments, *parameters)
        returned = loss.view(1, 1, 1)
        if self._layer in _hands_on:
            return returned
        self.known = torch.arange(1, num_logits, dtype=loss.dtype, device=loss.device)
        return torch.cat([returned, self.known.view(1, 1, -1)], dim=-1)

    def _is_faster_by_columns(self, hidden: Tensor) -> bool:
        """Whether a part is of few tokens, and the logits are for the loss alone; a first choice is sought by rows."""
        layer = self._layer
        is_plain = is_plain_linear(layer) and layer.bias is None and self._own is None
        return is_plain and hidden.device.type == "cpu" and not layer.weight.requires_grad and not self._with_right

    def _by_columns(self, hidden_ND: Tensor) -> Tensor:
        """The same product, with the layer's weights on the left."""
        weight_VD: Any = self._layer.weight
        return linear(weight_VD, hidden_ND).T

    def undo(self) -> None:
        """Give the layer its own forward back."""
        if self._own is None:
            del self._layer.forward
        else:
            self._layer.forward = self._own


class _ChunkedLoss(torch.autograd.Function):
    """The loss of all tokens, whose gradients are made with it, part by part."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        targets_N: Tensor,
        layer: Callable[[Tensor], Tensor],
        loss_fn: Loss,
        with_right: bool,
        size: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor | None, int]:
        # what needs a gradient; nothing does in a validation
        wanted = [tensor for tensor, needed in zip(parameters, ctx.needs_input_grad[6:], strict=True) if needed]
        grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        sums: list[Tensor] | None = None
        right = []
        for first in range(0, max(len(hidden_ND), 1), size):  # once without tokens, for gradients that are zero
            rows = slice(first, first + size)
            with torch.set_grad_enabled(grad_ND is not None or bool(wanted)):
                leaf = hidden_ND[rows].detach().requires_grad_(grad_ND is not None)
                logits = layer(leaf)
                loss = loss_fn(logits, targets_N[rows])
            loss_sum += loss.detach()
            if with_right:
                right.append(logits.detach().argmax(dim=-1) == targets_N[rows])
            if loss.requires_grad:
                grads = torch.autograd.grad(loss, [*wanted, leaf] if grad_ND is not None else wanted)
                if grad_ND is not None:
                    grad_ND[rows] = grads[-1]
                sums = _added(sums, grads[: len(wanted)])
                del grads
            num_logits = logits.shape[-1]
            del logits, loss  # before the next part's are made
        ctx.grads = (grad_ND, sums)
        ctx.wanted = ctx.needs_input_grad[6:]
        ctx.dtypes = [tensor.dtype for tensor in wanted]
        right_N = torch.cat(right) if with_right else None
        if right_N is not None:
            ctx.mark_non_differentiable(right_N)
        return loss_sum, right_N, num_logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND, sums), ctx.grads = ctx.grads, None  # multiplied in place: there is no second time
        if grad_ND is not None:
            grad_ND.mul_(grads[0])
        own = iter([total.mul_(grads[0]).to(dtype) for total, dtype in zip(sums or (), ctx.dtypes, strict=True)])
        of_parameters = (next(own) if needed else None for needed in ctx.wanted)
        return grad_ND, None, None, None, None, None, *of_parameters


def _ends_with(logits: Tensor, known: Tensor) -> bool:
    return logits.shape == (1, 1, 1 + len(known)) and torch.equal(logits[0, 0, 1:].to(known.dtype), known)


def _added(sums: list[Tensor] | None, grads: Sequence[Tensor]) -> list[Tensor]:
    """The sum of the parts' gradients, in float32: in less, many small ones would be lost."""
    if sums is None:
        return [grad.float() for grad in grads]
    return [total.add_(grad) for total, grad in zip(sums, grads, strict=True)]


def _rng_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _restore(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
