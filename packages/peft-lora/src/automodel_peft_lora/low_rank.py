"""A linear layer and its adapter as one operation for autograd.

peft computes the base's product, the adapter's two, a multiplication and a sum, and autograd the same backwards, each
over all of the layer's output. Here the adapter's products are added onto the base's where these are written: nothing
is multiplied, added or kept that is as large as the input or output. Unsloth's LoRA layers and NeMo's do the same.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


class LowRankLinear(Linear):
    """peft's layer, computed in one operation where it is plain: one adapter, and nothing between its parts."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output and the adapter's update (..., out) of an input (..., in)."""
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        [name] = self.active_adapters
        a, b, dropout = self.lora_A[name].weight, self.lora_B[name].weight, self.lora_dropout[name]
        dropped = None if isinstance(dropout, nn.Identity) or not dropout.training else dropout(x.to(a.dtype))
        base = self.base_layer
        output: Tensor = _LowRank.apply(x, dropped, base.weight, base.bias, a, b, self.scaling[name])
        return output

    def _is_plain(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling():  # which sees more in single operations
            return False
        if len(self.active_adapters) != 1 or self.disable_adapters or self.merged or self.lora_variant:
            return False
        [name] = self.active_adapters
        parts = (self.base_layer, self.lora_A[name], self.lora_B[name])
        return (
            x.dim() > 1
            and all(type(part) is nn.Linear for part in parts)
            and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
            and not self.base_layer.weight.requires_grad
            and parts[2].bias is None
            and not any(isinstance(tensor, DTensor) for tensor in (x, *(part.weight for part in parts)))
            and not torch.is_autocast_enabled(x.device.type)
        )


class _LowRank(torch.autograd.Function):
    """W x + bias + scaling B A x, or A dropped for A x, with W frozen; the adapter's part in its own data type."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        input_ND = (x if dropped is None else dropped).flatten(0, -2)
        low_NR = input_ND.to(a.dtype) @ a.T
        ctx.save_for_backward(input_ND, weight, a, b, low_NR)
        ctx.scaling, ctx.has_dropped = scaling, dropped is not None
        output = _plus(F.linear(x.flatten(0, -2), weight, bias), low_NR, b.T, scaling)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_ND, weight, a, b, low_NR = ctx.saved_tensors
        of_x = of_dropped = of_bias = of_a = of_b = None
        grad_NE = grad.flatten(0, -2)
        own_NE = grad_NE.to(b.dtype)
        of_low_NR = (own_NE @ b).mul_(ctx.scaling)
        if ctx.needs_input_grad[0]:
            of_x = grad_NE @ weight
            of_x = of_x if ctx.has_dropped else _plus(of_x, of_low_NR, a, 1.0)
            of_x = of_x.view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            of_dropped = (of_low_NR @ a).view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[3]:
            of_bias = grad_NE.sum(0)
        if ctx.needs_input_grad[4]:
            of_a = of_low_NR.T @ input_ND.to(a.dtype)
        if ctx.needs_input_grad[5]:
            of_b = (own_NE.T @ low_NR).mul_(ctx.scaling)
        return of_x, of_dropped, None, of_bias, of_a, of_b, None


def _plus(total: Tensor, left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """total + scaling * left @ right, in place where all have one data type."""
    if total.dtype == left.dtype:
        return total.addmm_(left, right, alpha=scaling)
    return torch.addmm(total.to(left.dtype), left, right, alpha=scaling).to(total.dtype)
