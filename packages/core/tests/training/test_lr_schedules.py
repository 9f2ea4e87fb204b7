import pytest
import torch
from automodel import InputError
from automodel.training.lr_schedules import constant, cosine, linear, wsd


def rates(schedule, num_steps=10, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, num_steps, **options)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_constant_is_flat_after_a_linear_warm_up():
    assert rates(constant) == [1.0] * 10
    assert rates(constant, warmup_steps=3) == [0.25, 0.5, 0.75] + [1.0] * 7
    assert rates(constant, warmup_ratio=0.3) == rates(constant, warmup_steps=3)


def test_linear_and_cosine_fall_to_the_minimum():
    assert rates(linear) == pytest.approx([1 - step / 10 for step in range(10)])
    assert rates(linear, min_lr_ratio=0.5)[-1] == pytest.approx(0.55)
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(plain, T_max=10, eta_min=0.1)
    expected = []
    for _ in range(10):
        expected.append(plain.param_groups[0]["lr"])
        plain.step()
        theirs.step()
    assert rates(cosine, min_lr_ratio=0.1) == pytest.approx(expected)


def test_wsd_is_stable_then_decays():
    assert rates(wsd, decay_ratio=0.4) == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])
    assert rates(wsd, warmup_steps=1, decay_ratio=1.0, min_lr_ratio=0.1)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (linear, {"num_steps": None}, "max_steps"),
        (constant, {"num_steps": None, "warmup_ratio": 0.1}, "max_steps"),
        (cosine, {"num_steps": 5, "warmup_steps": 1, "warmup_ratio": 0.1}, "not both"),
        (wsd, {"num_steps": 5, "decay_ratio": 0.0}, "decay_ratio"),
        (linear, {"num_steps": 5, "warmup_ratio": 5}, "warmup_ratio"),
        (linear, {"num_steps": 5, "warmup_steps": -1}, "warmup_steps"),
        (cosine, {"num_steps": 5, "min_lr_ratio": 1.5}, "min_lr_ratio"),
    ],
)
def test_bad_schedules_are_refused(schedule, options, message):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match=message):
        schedule(optimizer, **options)
