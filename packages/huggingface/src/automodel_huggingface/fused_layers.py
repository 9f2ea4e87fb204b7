"""Normalisation and gated MLPs that keep less for the backward pass, and pass over memory less often, on any device.

Autograd keeps what every single operation needs: of an RMS norm the input in float32 and the normalised input, of a
gated MLP the activation beside the gate. All of it follows from the inputs, from which the backward pass computes it
anew, as Liger's kernels do (Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm


def fuse_layers(module: nn.Module) -> None:
    """Fuse the RMS norms and gated MLPs of a transformers model, in place; their results stay the same.

    Most families have those of Llama, each a copy of its own: a layer is taken for one if its forward is the same code.
    """
    for layer in module.modules():
        # classes can be hashed, which `cache` asks for and mypy does not see
        if (fused := _fused(type(layer))) is not None:  # type: ignore[arg-type]
            # no forward of the instance's own: the layer and its method would keep each other, and their weights, alive
            layer.__class__ = fused


@cache
def _fused(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The same class with a fused forward, or None for layers of another kind."""
    for reference, forward in ((LlamaRMSNorm, _normalised), (LlamaMLP, _gated)):
        code = getattr(kind.forward, "__code__", None)  # a decorated forward is another's
        if code is not None and _same(code, reference.forward.__code__):
            own = {"forward": forward, "plain_forward": kind.forward, "__reduce_ex__": _reduced}
            return type(kind.__name__, (kind,), own)
    return None


def _reduced(layer: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Copies and pickles are of the plain class, which others find by its name."""
    return object.__new__, (type(layer).__base__,), vars(layer)


def _normalised(layer: Any, hidden: Tensor) -> Tensor:
    """The forward of an RMS norm."""
    if not (_is_plain(hidden) and _is_plain(layer.weight)):
        return layer.plain_forward(hidden)
    normalised: Tensor = _RMSNorm.apply(hidden, layer.weight, layer.variance_epsilon)
    return normalised


def _gated(layer: Any, hidden: Tensor) -> Tensor:
    """The forward of a gated MLP."""
    activation = layer.act_fn
    if not _is_plain(hidden) or not isinstance(activation, nn.Module) or any(True for _ in activation.parameters()):
        return layer.plain_forward(hidden)
    product: Tensor = _GatedProduct.apply(layer.gate_proj(hidden), layer.up_proj(hidden), activation)
    return layer.down_proj(product)


class _RMSNorm(torch.autograd.Function):
    """As LlamaRMSNorm: normalised in float32, rounded to the input's data type, then scaled."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        hidden_32 = hidden.float()
        scale = hidden_32.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        normalised = (hidden_32 * scale).to(hidden.dtype)
        return normalised.mul_(weight) if weight.dtype == hidden.dtype else weight * normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, scale = ctx.saved_tensors
        hidden_32, grad_32 = hidden.float(), grad.float()
        of_hidden = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (grad_32 * hidden_32).mul_(scale).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            of_hidden = grad_32 * weight
            along = (of_hidden * hidden_32).mean(-1, keepdim=True).mul_(scale.pow(3))
            of_hidden = of_hidden.mul_(scale).addcmul_(hidden_32, along, value=-1).to(hidden.dtype)
        return of_hidden, of_weight, None


class _GatedProduct(torch.autograd.Function):
    """activation(gate) * up, for an activation that takes each element on its own."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: nn.Module) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gate, up = ctx.saved_tensors
        of_gate = None
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            activated = ctx.activation(leaf)
        if ctx.needs_input_grad[0]:
            [of_gate] = torch.autograd.grad(activated, leaf, grad * up)
        return of_gate, activated.detach() * grad if ctx.needs_input_grad[1] else None, None


def _same(code: CodeType, other: CodeType) -> bool:
    return all(getattr(code, part) == getattr(other, part) for part in ("co_code", "co_consts", "co_names"))


def _is_plain(tensor: Tensor) -> bool:
    """Whether nobody else, a compiler or a tensor in parts, is to see the single operations."""
    return not isinstance(tensor, DTensor) and not torch.compiler.is_compiling()
