"""AdamW of parameters in bfloat16, and optimizers that are told by tensors what to do."""

import copy

import pytest
import torch
import torch.distributed as dist
from automodel.parallel.gradients import clipping_divisor, divide_gradients, grad_norm
from automodel.training.optimizers import (
    RoundingAdamW,
    adamw,
    stochastically_rounded,
    takes_decisions,
    update_where,
)
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import (
    FakeStore,
)  # one process stands for each in turn: nothing is sent

CPU = torch.device("cpu")
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def test_rounding_takes_a_neighbour_and_is_right_on_average():
    values = torch.tensor([1.0 + 2**-10, -3.0 - 2**-9, 1.0, 0.0, -1e-30]).repeat_interleave(40_000)
    words = torch.randint(-(2**31), 2**31, values.shape, generator=torch.Generator().manual_seed(0)).int()
    rounded = stochastically_rounded(values, words).float().view(5, -1)
    assert set(rounded[0].tolist()) == {1.0, 1.0 + 2**-7}
    torch.testing.assert_close(rounded.mean(dim=1), values.view(5, -1)[:, 0], rtol=2e-4, atol=0)


def test_float32_parameters_are_torchs_own():
    assert type(adamw([nn.Parameter(torch.ones(3))])) is torch.optim.AdamW
    assert type(adamw([nn.Parameter(torch.ones(3).bfloat16())], stochastic_rounding=False)) is torch.optim.AdamW


def test_float32_parameters_beside_bfloat16_ones_are_updated_as_torch_does():
    torch.manual_seed(0)
    start = torch.randn(300_000)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = RoundingAdamW([ours], **SETTINGS, fused=True)
    other = torch.optim.AdamW([theirs], **SETTINGS, fused=True)
    for _ in range(3):
        ours.grad = torch.randn(300_000)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    assert torch.equal(ours, theirs)


def test_small_updates_count_on_average():
    start = torch.full((50_000,), 3.0)
    exact, rounded, plain = (nn.Parameter(start.to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16))
    optimizers = [
        adamw([exact], lr=1e-4, weight_decay=0.0),
        adamw([rounded], lr=1e-4, weight_decay=0.0),
        adamw([plain], lr=1e-4, weight_decay=0.0, stochastic_rounding=False),
    ]
    for _ in range(20):
        for optimizer, parameter in zip(optimizers, (exact, rounded, plain), strict=True):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    moved = [3.0 - parameter.float().mean().item() for parameter in (exact, rounded, plain)]
    assert moved[1] == pytest.approx(moved[0], rel=0.05)
    assert moved[2] == 0


def test_no_two_parts_of_the_parameters_are_rounded_alike():
    value = torch.full((5 * 2**18,), 3.0).bfloat16()  # five parts
    parameters = [nn.Parameter(value.clone()) for _ in range(7)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = adamw(parameters, lr=1e-3, weight_decay=0.0)
    seen = []
    for _ in range(2):
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer.step()
        for parameter, old in zip(parameters, before, strict=True):
            seen += (parameter != old).view(5, -1).float()
    correlations = torch.corrcoef(torch.stack(seen))
    # five times the standard error of 2**18 independent ones
    assert correlations.fill_diagonal_(0).abs().max() < 0.01


@pytest.mark.parametrize("placement", [Shard(0), Replicate()])
def test_shards_are_rounded_by_words_of_their_own_and_replicas_alike(placement):
    rounded = []
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        for ranks in ([0, 1], [1, 0]):  # this process has the first part, and then the second
            local = torch.full((1000,), 3.0).bfloat16()
            mesh = DeviceMesh("cpu", ranks)
            parameter = nn.Parameter(DTensor.from_local(local, mesh, [placement], run_check=False))
            parameter.grad = torch.ones_like(parameter)
            adamw([parameter], lr=1e-3, weight_decay=0.0).step()
            rounded.append(parameter.to_local().detach())
    finally:
        dist.destroy_process_group()
    assert torch.equal(*rounded) == placement.is_replicate()


def test_words_are_drawn_once_a_step_also_for_parameters_that_had_no_gradient_at_times(monkeypatch):
    parameters = [nn.Parameter(torch.ones(9).bfloat16()) for _ in range(4)]
    optimizer = adamw(parameters)
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    drawn = []
    own = torch.Tensor.random_
    monkeypatch.setattr(torch.Tensor, "random_", lambda tensor, *a, **k: drawn.append(1) or own(tensor, *a, **k))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert len(drawn) == 1


def test_no_more_words_are_drawn_than_are_needed(monkeypatch):
    drawn = []
    own = torch.Tensor.random_

    def counted(tensor, *others, **named):
        drawn.append(tensor.nbytes // 4)
        return own(tensor, *others, **named)

    monkeypatch.setattr(torch.Tensor, "random_", counted)
    parameters = [nn.Parameter(torch.ones(size, dtype=dtype)) for size, dtype in ((7, torch.bfloat16), (99, None))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adamw(parameters).step()
    RoundingAdamW(parameters[1:], **SETTINGS, fused=True).step()
    assert drawn == [8]


def test_replicas_stay_equal_and_a_resumed_one_goes_on_exactly():
    torch.manual_seed(0)
    start = torch.randn(1000).bfloat16()
    parameters = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [adamw([parameter], lr=1e-2) for parameter in parameters]
    grads = [torch.randn(1000).bfloat16() for _ in range(6)]
    for number, grad in enumerate(grads):
        if number == 3:  # as after a restart
            state = copy.deepcopy(optimizers[1].state_dict())
            optimizers[1] = adamw([parameters[1]], lr=1e-2)
            optimizers[1].load_state_dict(state)
        for optimizer, parameter in zip(optimizers, parameters, strict=True):
            torch.rand(1)  # what else is drawn does not matter
            parameter.grad = grad.clone()
            optimizer.step()
    assert torch.equal(*parameters)


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rounding"])
def test_an_update_that_tensors_decide_is_that_of_the_host(optimizer, value):
    make, dtype = {
        "adamw": (lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True), torch.float32),
        "sgd": (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True), torch.float32),
        "rounding": (lambda parameters: adamw(parameters, lr=0.1), torch.bfloat16),
    }[optimizer]
    torch.manual_seed(0)
    ones = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((300,), (4, 5))]
    others = copy.deepcopy(ones)
    one, other = make(ones), make(others)
    for factor in (1.0, value, 1.0):
        for parameter, twin in zip(ones, others, strict=True):
            parameter.grad = torch.randn_like(parameter) * factor
            twin.grad = parameter.grad.clone()
        norm = grad_norm(ones)
        divisor = clipping_divisor(norm, 0.5)
        assert takes_decisions(one, CPU) == (optimizer != "sgd" or bool(one.state))
        update_where(norm.isfinite(), one, divisor)
        if norm.isfinite():
            assert divisor > 1, "nothing was clipped"
            divide_gradients(others, float(divisor))
            other.step()
    # what the host divides in bfloat16 is rounded: 1% of an update of 0.1; and the skipped step has drawn
    of_state, of_parameters = ((0, 2**-7), (2**-6, 1e-3)) if optimizer == "rounding" else ((1e-5, 1e-7), (1e-5, 1e-7))
    for parameter, twin in zip(ones, others, strict=True):
        for name, wanted in other.state[twin].items():
            atol = of_state[1] * float(wanted.abs().max())
            torch.testing.assert_close(one.state[parameter][name], wanted, rtol=of_state[0], atol=atol)
        torch.testing.assert_close(parameter, twin, rtol=of_parameters[0], atol=of_parameters[1])


def test_only_torchs_own_and_our_optimizers_are_told_by_tensors():
    class Careful(torch.optim.AdamW):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data += parameter.grad  # which may be not finite, and is not clipped
            return super().step(closure)

    class Older(torch.optim.AdamW):
        def step(self, closure=None, *, grad_scaler=None):  # what torch's mark meant before
            return super().step(closure)

    class Renamed(torch.optim.AdamW):
        pass

    parameters = [torch.nn.Parameter(torch.ones(3))]
    assert takes_decisions(torch.optim.AdamW(parameters, fused=True), CPU)
    assert takes_decisions(Renamed(parameters, fused=True), CPU)
    assert takes_decisions(adamw([torch.nn.Parameter(torch.ones(3).bfloat16())]), CPU)
    assert not takes_decisions(Careful(parameters, fused=True), CPU)
    assert not takes_decisions(Older(parameters, fused=True), CPU)
    assert not takes_decisions(torch.optim.AdamW(parameters, fused=False), CPU)
    assert not takes_decisions(torch.optim.AdamW(parameters, fused=True), torch.device("meta"))
