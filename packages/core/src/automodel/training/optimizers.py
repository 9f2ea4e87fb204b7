"""Optimizers with the defaults of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw as adamw_update

_CHUNK, _CHUNK_ON_CPU = 2**25, 2**18
"""Parameters that are updated at a time: what is made of them is small, and stays in a processor's cache."""


def adamw(
    params: Iterable[nn.Parameter],
    lr: float = 5e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    fused: bool = True,
    stochastic_rounding: bool = True,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), by torch's fused kernel.

    Args:
        params: the trainable parameters.
        lr: peak learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the denominator.
        weight_decay: decoupled weight decay, applied to every trainable parameter.
        fused: one kernel for the whole update; false is torch's loop over tensors.
        stochastic_rounding: of parameters in bfloat16, whose updates are mostly smaller than half their last digit.
            They are computed in float32, moments as well, and rounded up or down at random, so that they count on
            average (Zamirai et al. 2020, arXiv:2010.06192). false loses them.
    """
    params = list(params)
    if stochastic_rounding and any(parameter.dtype == torch.bfloat16 for parameter in params):
        return RoundingAdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


class RoundingAdamW(torch.optim.Optimizer):
    """AdamW that computes in float32 and rounds bfloat16 parameters at random.

    What is drawn depends on how often `step` was called before, the parameter's place among the
    others, their sizes, the kind of device and which part of the parameter a process has alone: processes that hold the
    same ones keep them equal, and a resumed run goes on exactly.
    """

    def __init__(self, params: Iterable[nn.Parameter], **defaults: Any) -> None:
        super().__init__(params, {**defaults, "draws": 0})
        # that it takes `grad_scale` and `found_inf`, as torch's own fused optimizers say it to its GradScaler
        self._step_supports_amp_scaling = defaults["fused"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Update all parameters that have a gradient.

        Two attributes are there for the time of a call, as torch's fused optimizers have them: gradients are divided by
        `grad_scale`, and nothing is updated where `found_inf` is 1; neither is read by the host.
        """
        if closure is not None:
            raise ValueError("no closure is called here")
        parameters = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        largest = max((p.numel() for p, _ in parameters if p.dtype == torch.bfloat16), default=0)  # of a DTensor: whole
        words = _Words(self.param_groups[0]["draws"], largest)
        for group in self.param_groups:
            group["draws"] += 1
        for place, (parameter, group) in enumerate(parameters):
            if parameter.grad is not None:
                self._update(parameter, group, place, words)
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of `state_dict()`. Moments stay in float32, which torch would make bfloat16."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                if number in state_dict["state"]:
                    self.state[parameter][name] = state_dict["state"][number][name].to(parameter.device)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], place: int, words: _Words) -> None:
        state = self.state[parameter]
        if not state:
            where = parameter.device if group["fused"] else "cpu"  # as torch's own
            state["step"] = torch.zeros((), dtype=torch.float32, device=where)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.preserve_format)
        tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        flat = [_local(tensor).view(-1).split(_chunk(parameter.device)) for tensor in tensors]
        for index, (values, grad, exp_avg, exp_avg_sq) in enumerate(zip(*flat, strict=True)):
            exact = values.float()
            step = state["step"].clone()  # the update counts it up
            adamw_update(
                [exact],
                [grad.float()],
                [exp_avg],
                [exp_avg_sq],
                [],
                [step],
                foreach=False,
                fused=group["fused"],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                # not there unless somebody asks for it
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
            )
            if values.dtype == torch.bfloat16:
                part = f"{place}.{index}.{_shard(parameter)}"
                exact = stochastically_rounded(exact, words.of(values, part))
            values.copy_(exact)
        state["step"].copy_(step)


def stochastically_rounded(values: Tensor, words: Tensor) -> Tensor:
    """Finite float32 values as bfloat16: one of the two neighbours, the nearer one more often, right on average.

    Args:
        values: of any shape.
        words: as many, random, of 32 bits, the upper half of which counts.
    """
    noise = words.bitwise_right_shift(16).bitwise_and_(0xFFFF)
    return noise.add_(values.view(torch.int32)).bitwise_and_(-0x10000).view(torch.float32).to(torch.bfloat16)


def takes_decisions(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether tensors on a device can tell the optimizer what to do, by `update_where`: torch's fused ones and ours.

    Others would say so too if they are made of torch's, but may do more in their `step`. The parameters must be on that
    device: those on MPS are not where their norm is. Without momentum yet, torch's SGD that is told to do nothing takes
    whatever lies in memory for it (2.15).
    """
    is_known = type(optimizer).step.__module__.startswith(("torch.optim.", __name__))
    # torch's own mark (2.15; test_optimizers.py tells if it goes), which other optimizers are without
    takes_tensors: bool = getattr(optimizer, "_step_supports_amp_scaling", False)
    is_new_sgd = isinstance(optimizer, torch.optim.SGD) and bool(optimizer.defaults["momentum"]) and not optimizer.state
    is_there = optimizer.param_groups[0]["params"][0].device.type == device.type
    return is_known and takes_tensors and not is_new_sgd and is_there


def update_where(is_finite: Tensor, optimizer: torch.optim.Optimizer, divisor: Tensor | None) -> None:
    """Let the optimizer divide its gradients and update, or do nothing, without reading the tensors that say so.

    It is how torch's `GradScaler` tells optimizers that have `_step_supports_amp_scaling`.
    """
    told: Any = optimizer
    told.found_inf = (~is_finite).float()
    told.grad_scale = None if divisor is None else divisor.float()
    try:
        optimizer.step()
    finally:
        del told.found_inf, told.grad_scale


class _Words:
    """Random int32 of a step, drawn once for each device: drawing is slow on a CPU.

    Args:
        seed: of all of them.
        largest: elements of the largest parameter, the same on all processes; no part of any has more.
    """

    def __init__(self, seed: int, largest: int) -> None:
        self._seed, self._largest = seed, largest
        self._drawn: dict[torch.device, Tensor] = {}

    def of(self, values: Tensor, part: str) -> Tensor:
        """One for each value; for each part of the parameters those of a step are others."""
        device = values.device
        if device not in self._drawn:
            number = (min(self._largest, _chunk(device)) + 1) // 2
            words = torch.empty(number, dtype=torch.int64, device=device)
            words.random_(-(2**63), None, generator=torch.Generator(device).manual_seed(self._seed))
            self._drawn[device] = words.view(torch.int32)
        # multiplicative hashing: by odd factors of which hardly any is a small multiple of another
        factor = Random(part).getrandbits(31) | 1  # seeded by a string's SHA-512
        return self._drawn[device][: values.numel()] * factor


def _chunk(device: torch.device) -> int:
    return _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK


def _shard(parameter: Tensor) -> list[int]:
    """Where in the mesh this process's part of a parameter is, along the axes that share it out."""
    if not isinstance(parameter, DTensor):
        return []
    where = zip(parameter.device_mesh.get_coordinate() or (), parameter.placements, strict=True)
    return [place for place, placement in where if not placement.is_replicate()]


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
