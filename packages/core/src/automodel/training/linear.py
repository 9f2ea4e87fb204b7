"""Linear layers in float32 on processors that PyTorch's library for matrix products does not make full use of.

PyTorch multiplies float32 matrices on x86 by Intel's MKL, which leaves half of AMD's Zen 5 unused (its AVX-512 units);
oneDNN, by which PyTorch multiplies those in bfloat16, does not. Both sum in float32, in another order.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

# private (torch 2.15; test_linear.py tells if it goes), as all ways to ask for oneDNN in float32 are; the compiler's
# own code calls it as well. It is not there if PyTorch was built without
ONEDNN_PRODUCT: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""The operator of `product`; None if there is none."""


class OneDNNLinear(nn.Linear):
    """torch's linear layer, whose products in float32 on a CPU are oneDNN's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """The layer's output (..., out) of an input (..., in)."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        return linear(input, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Let a model's linear layers compute float32 by oneDNN, in place, on processors where it is faster."""
    if onednn_is_faster():
        for layer in module.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = OneDNNLinear


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is torch's linear layer and no other kind's, by whichever library it computes."""
    return type(module) in (nn.Linear, OneDNNLinear)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`, and differentiable once: (..., out) of x (..., in) and weight (out, in)."""
    if x.dim() < 2 or torch.is_autocast_enabled("cpu") or not _is_for_onednn(x, weight):
        return F.linear(x, weight, bias)
    output: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return output.view(*x.shape[:-1], len(weight))


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right + bias, of matrices (N, I) and (I, O) and a vector (O); not differentiable."""
    if _is_for_onednn(left, right):
        if bias is not None:
            bias = bias.contiguous()  # as which it is read, whatever its strides
        output_NO: Tensor = ONEDNN_PRODUCT(left, right.T, bias, "none", [], "")
        return output_NO
    return left @ right if bias is None else torch.addmm(bias, left, right)


@cache
def onednn_is_faster() -> bool:
    """Whether float32 products take oneDNN about half of MKL's time (torch 2.15), which was measured on AMD's Zen 5.

    On Zen 3 it is slower. Whatever the processor is, it is always the same, so that a run can be resumed exactly.
    """
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _is_zen_5(Path("/proc/cpuinfo"))
        and ONEDNN_PRODUCT is not None
    )


def _is_zen_5(cpuinfo: Path) -> bool:
    """Whether Linux says so of the first processor, or that it is a later one of AMD's."""
    if not cpuinfo.exists():
        return False
    with cpuinfo.open(encoding="ascii", errors="replace") as lines:  # as long as the machine has cores
        text = lines.read(1000)
    family = re.search(r"cpu family\s*: (\d+)", text)
    return "AuthenticAMD" in text and family is not None and int(family[1]) >= 26


def _is_for_onednn(*operands: Tensor) -> bool:
    """Whether oneDNN is to multiply them; it takes none without elements."""
    return onednn_is_faster() and all(
        tensor.is_cpu and tensor.dtype == torch.float32 and tensor.numel() and not isinstance(tensor, DTensor)
        for tensor in operands
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI if ctx.needs_input_grad[1] else None, weight_OI)
        return product(x_NI, weight_OI.T, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        of_x = product(grad_NO, weight_OI) if ctx.needs_input_grad[0] else None
        of_weight = product(grad_NO.T, x_NI) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, grad_NO.sum(0) if ctx.needs_input_grad[2] else None
