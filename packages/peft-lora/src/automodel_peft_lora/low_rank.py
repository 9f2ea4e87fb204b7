"""A linear layer and its adapter as one operation for autograd.

peft computes the base's product, the adapter's two, a multiplication and a sum, and autograd the same backwards, each
over all of the layer's output. Here the adapter's second product is added where it is computed, and nothing is kept but
the adapter's input and A's output. Unsloth's LoRA layers do the same.
"""

from __future__ import annotations

from typing import Any

import torch
from automodel.training.linear import is_plain_linear, product
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


def fuse_adapters(adapted: nn.Module, *, in_own_dtype: bool) -> None:
    """Compute the adapters of plain linear layers in one operation, in place.

    Args:
        adapted: a model with adapters of peft.
        in_own_dtype: compute adapters in the data type of their weights, which gives peft's results. Else in bfloat16
            where their input is, as under autocast: a quarter of the time on a CPU that has it. SmolLM2's gradients
            are then 0.9 to 1.25 times as far from float32's as peft's, as what they are made from is rounded too.
    """
    for layer in adapted.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = LowRankLinear
            vars(layer)["in_own_dtype"] = in_own_dtype  # mypy takes what a Module is given for a part of it


class LowRankLinear(Linear):
    """peft's layer, computed in one operation where it is plain: one adapter, and nothing between its parts."""

    in_own_dtype: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output and the adapter's update (..., out) of an input (..., in)."""
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        [name] = self.active_adapters
        a, b, dropout = self.lora_A[name].weight, self.lora_B[name].weight, self.lora_dropout[name]
        if x.dtype == torch.bfloat16 and not self.in_own_dtype:
            a, b = a.to(x.dtype), b.to(x.dtype)
        x_ND, dropped_ND, base = x.flatten(0, -2), None, self.base_layer
        if not isinstance(dropout, nn.Identity) and dropout.training:
            dropped_ND = dropout(x_ND.to(a.dtype))
        output_NE: Tensor = _LowRank.apply(x_ND, dropped_ND, base.weight, base.bias, a, b, self.scaling[name])
        return output_NE.view(*x.shape[:-1], base.out_features)

    def _is_plain(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling():  # which sees more in single operations
            return False
        if len(self.active_adapters) != 1 or self.disable_adapters or self.merged or self.lora_variant:
            return False
        [name] = self.active_adapters
        if name not in self.lora_A:
            return False
        parts = (self.base_layer, self.lora_A[name], self.lora_B[name])
        return (
            x.dim() > 1
            and all(is_plain_linear(part) and not _is_watched(part) for part in parts)
            and not self.base_layer.weight.requires_grad
            and parts[2].bias is None
            and not any(isinstance(tensor, DTensor) for tensor in (x, *(part.weight for part in parts)))
            and not torch.is_autocast_enabled(x.device.type)
        )


class _LowRank(torch.autograd.Function):
    """W x + bias + scaling B A x, or A dropped for A x, with W frozen; the adapter's part in the data type of A."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        dropped_ND: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        input_ND = x_ND if dropped_ND is None else dropped_ND
        low_NR = product(input_ND.to(a.dtype), a.T)
        ctx.save_for_backward(input_ND, weight, a, b, low_NR)
        ctx.scaling, ctx.has_dropped = scaling, dropped_ND is not None
        return _plus(product(x_ND, weight.T, bias), low_NR, b.T, scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor | None, ...]:
        input_ND, weight, a, b, low_NR = ctx.saved_tensors
        of_x = of_dropped = of_bias = of_a = of_b = None
        own_NE = grad_NE.to(b.dtype)
        of_low_NR = product(own_NE, b).mul_(ctx.scaling)
        if ctx.needs_input_grad[0]:
            of_x = product(grad_NE, weight)
            of_x = of_x if ctx.has_dropped else _plus(of_x, of_low_NR, a)
        if ctx.needs_input_grad[1]:
            of_dropped = product(of_low_NR, a)
        if ctx.needs_input_grad[3]:
            of_bias = grad_NE.sum(0)
        if ctx.needs_input_grad[4]:
            of_a = product(of_low_NR.T, input_ND.to(a.dtype))
        if ctx.needs_input_grad[5]:
            of_b = product(low_NR.T, own_NE).mul_(ctx.scaling).T  # with few rows it is faster
        return of_x, of_dropped, None, of_bias, of_a, of_b, None


def _plus(total: Tensor, left: Tensor, right: Tensor, scaling: float = 1.0) -> Tensor:
    """total + scaling * left @ right, in the data type of `total`; where types differ, computed in the wider one.

    In place, unless operations are watched: selective activation checkpointing may keep `total`.
    """
    if total.dtype == left.dtype:
        # private (torch 2.15): there is no public way to ask; test_low_rank.py's test of checkpointing tells if it goes
        has_watcher = _get_current_dispatch_mode() is not None
        return torch.addmm(total, left, right, alpha=scaling, out=None if has_watcher else total)
    return (total + (left @ right).mul_(scaling)).to(total.dtype)


def _is_watched(part: nn.Module) -> bool:
    """Whether somebody is to see the module's calls, or has replaced its forward."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or "forward" in vars(part)
