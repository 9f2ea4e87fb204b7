"""Products in float32 by oneDNN are those of PyTorch, where it has them and where it has not."""

import copy

import pytest
import torch
from automodel.training import linear
from automodel.training.activation_checkpointing import checkpoint_activations
from automodel.training.linear import OneDNNLinear, is_plain_linear, product, use_onednn
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """Every processor computes by oneDNN; how often it did."""
    calls = []
    own = linear._is_for_onednn

    def noted(*operands):
        calls.extend([1] * own(*operands))
        return own(*operands)

    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "_is_for_onednn", noted)
    return calls


def relative_error(value, exact):
    return float((value.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 64), (50, 64), (1, 64)])
def test_outputs_and_gradients_are_as_exact_as_torchs(onednn, shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias)
    ours, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    use_onednn(ours)
    x, grad = torch.randn(shape), torch.randn(*shape[:-1], 48)
    seen = []
    for module in (exact, ours, layer):
        inputs = x.to(module.weight.dtype, copy=True).requires_grad_()
        output = module(inputs)
        output.backward(grad.to(output.dtype))
        seen.append([output.detach(), inputs.grad, *(parameter.grad for parameter in module.parameters())])
    assert len(onednn) == 4  # of `linear`, and of the output and the gradients of input and weight
    for wanted, one, other in zip(*seen, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, wanted) < 3 * relative_error(other, wanted) + 1e-7


class Checkpointed(nn.Module):
    """A layer and a function of its output, as transformers' models checkpoint theirs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 48)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs):
        self.options = activation_checkpointing_kwargs

    def forward(self, x):
        return checkpoint(lambda x: self.layer(x).tanh(), x, **self.options)


class Products(TorchDispatchMode):
    """Counts how often oneDNN multiplies."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is linear.ONEDNN_PRODUCT.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("mode", "number"), [("full", 4), ("selective", 3)])
def test_selective_activation_checkpointing_keeps_products(mode, number):
    torch.manual_seed(0)
    module = Checkpointed()
    use_onednn(module)
    plain = copy.deepcopy(module.layer)
    checkpoint_activations(module, mode)
    x = torch.randn(5, 64, requires_grad=True)
    with Products() as products:
        module(x).sum().backward()
    assert products.number == number
    twin = x.detach().requires_grad_()
    plain(twin).tanh().sum().backward()
    assert torch.equal(x.grad, twin.grad)
    assert torch.equal(module.layer.weight.grad, plain.weight.grad)


def test_matrices_may_lie_in_any_way(onednn):
    torch.manual_seed(0)
    left, right = torch.randn(20, 30), torch.randn(40, 30)
    for a, b in ((left, right.T), (left.T.contiguous().T, right.T.contiguous()), (left[::2], right.T[:, 1::3])):
        torch.testing.assert_close(product(a, b), a @ b)
        torch.testing.assert_close(product(a, b, b[0]), a @ b + b[0])
    assert len(onednn) == 6


def test_no_tokens_give_no_output_and_no_gradient(onednn):
    layer = OneDNNLinear(6, 5)
    output = layer(torch.empty(2, 0, 6, requires_grad=True))
    assert output.shape == (2, 0, 5)
    output.sum().backward()
    assert not layer.weight.grad.any()


def test_a_frozen_layer_keeps_nothing_of_its_input(onednn):
    layer = OneDNNLinear(6, 5).requires_grad_(False)
    x = torch.randn(4, 6, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x).sum().backward()
    assert [tensor.shape for tensor in kept] == [(5, 6)]
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, 6))


@pytest.mark.parametrize(
    "compute",
    [
        lambda layer: layer.bfloat16()(torch.randn(4, 6).bfloat16()),
        lambda layer: layer.double()(torch.randn(4, 6).double()),
        lambda layer: layer(torch.randn(6)),
        lambda layer: layer.to("meta")(torch.randn(4, 6, device="meta")),
        lambda layer: torch.compile(layer, backend="eager")(torch.randn(4, 6)),
        lambda layer: torch.autocast("cpu", torch.bfloat16)(layer)(torch.randn(4, 6)),
    ],
    ids=["bfloat16", "float64", "one dimension", "meta", "compiled", "autocast"],
)
def test_what_is_not_for_onednn_is_torchs(onednn, compute):
    assert compute(OneDNNLinear(6, 5)).shape[-1] == 5
    assert not onednn


def test_layers_of_other_kinds_stay_as_they_are():
    class Other(nn.Linear):
        pass

    module = nn.Sequential(nn.Linear(4, 4), Other(4, 4))
    use_onednn(module)
    assert [type(layer) for layer in module] == [OneDNNLinear, Other]
    assert [is_plain_linear(layer) for layer in module] == [True, False]
    torch.testing.assert_close(module[0](torch.eye(4)), F.linear(torch.eye(4), module[0].weight, module[0].bias))


@pytest.mark.parametrize(
    ("vendor", "family", "is_zen_5"),
    [("AuthenticAMD", 26, True), ("AuthenticAMD", 25, False), ("GenuineIntel", 26, False)],
)
def test_a_processor_is_told_by_its_vendor_and_family(tmp_path, vendor, family, is_zen_5):
    cpuinfo = tmp_path / "cpuinfo"
    assert not linear._is_zen_5(cpuinfo)
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 2\n")
    assert linear._is_zen_5(cpuinfo) == is_zen_5
