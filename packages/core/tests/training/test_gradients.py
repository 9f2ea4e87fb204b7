import pytest
import torch
from automodel.parallel.gradients import clipping_divisor, divide_gradients, grad_norm


def parameters(*gradients):
    made = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = gradient.clone()
    return made


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # torch adds a block of bfloat16 up in another order
    [(torch.float64, 1e-12), (torch.float32, 1e-9), (torch.bfloat16, 2e-7)],
)
def test_the_norm_is_exact(dtype, tolerance):
    torch.manual_seed(0)
    gradient = torch.randn(3_000_001).to(dtype)
    exact = gradient.double().norm().item()
    assert grad_norm(parameters(gradient)).item() == pytest.approx(exact, rel=tolerance)


def test_torch_adds_up_in_float32():
    torch.manual_seed(0)
    gradient = torch.randn(3_000_001)
    exact = gradient.double().norm().item()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.nn.utils.get_total_norm([gradient]).item() != pytest.approx(exact, rel=1e-5), "drop our own norm"
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_gradients_are_clipped_as_by_torch(dtype, max_norm):
    torch.manual_seed(0)
    gradients = [torch.randn(shape).to(dtype) for shape in ((5,), (40, 60), ())]
    ours, theirs = parameters(*gradients), parameters(*gradients)
    given = [*ours, torch.nn.Parameter(torch.zeros(3))]
    norm = grad_norm(given)
    divide_gradients(given, float(clipping_divisor(norm, max_norm)))
    assert norm.item() == pytest.approx(
        torch.nn.utils.clip_grad_norm_(theirs, max_norm).item(), rel=1e-2 if dtype != torch.float32 else 1e-6
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_no_gradients_have_no_norm():
    assert grad_norm([torch.nn.Parameter(torch.zeros(3))]) == 0
