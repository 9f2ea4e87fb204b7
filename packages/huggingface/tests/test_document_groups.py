"""Attention in groups is that of each document alone, whatever their lengths, prefix and window."""

import subprocess
import sys

import pytest
import torch
from automodel_huggingface.document_groups import attend_in_groups, group_documents
from torch.nn import functional as F

LENGTHS = [14, 1, 150, 9, 600, 11, 140]  # of one block and of several; one so long that its weights are not kept


def tensors(heads, dtype, size=8):
    return torch.randn(sum(LENGTHS), heads, size, dtype=dtype).requires_grad_()


def one_by_one(query, key, value, prefix, window):
    outputs, first = [], 0
    for number, length in enumerate(LENGTHS):
        own = torch.arange(first, first + length)
        seen = own if number == 0 else torch.cat([torch.arange(prefix), own])
        q, k, v = query[seen], key[seen], value[seen]
        distance = torch.arange(len(seen))[:, None] - torch.arange(len(seen))
        mask = (distance >= 0) & (distance < (window or len(seen)))
        out = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)), attn_mask=mask, enable_gqa=True)
        outputs.append(out.transpose(0, 1)[-length:])
        first += length
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("num_keys", [2, 6])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],
)
def test_outputs_and_gradients_are_those_of_each_document_alone(prefix, window, num_keys, dtype, tolerance):
    torch.manual_seed(0)
    inputs = [tensors(6, dtype), tensors(num_keys, dtype), tensors(num_keys, dtype, size=12)]
    groups = group_documents(LENGTHS, prefix, num_keys)
    assert len(groups.groups) < len(LENGTHS)
    output = attend_in_groups(*inputs, groups, scale=None, window=window)
    grad = torch.randn_like(output)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    wanted = one_by_one(*exact, prefix, window)
    grads = torch.autograd.grad(output, inputs, grad)
    wanted_grads = torch.autograd.grad(wanted, exact, grad.double())
    for ours, theirs in zip((output, *grads), (wanted, *wanted_grads), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() < tolerance * theirs.norm()


def kernel(query, key, value):
    one = (t.transpose(0, 1)[None] for t in (query, key, value))
    return F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.parametrize("largest", [5, 65])
def test_bfloat16_is_as_exact_as_the_kernel(largest):
    torch.manual_seed(0)
    scale = largest / 4.5
    inputs = [(torch.randn(200, h, 64) * s).bfloat16().requires_grad_() for h, s in ((6, scale), (2, 1), (2, 1))]
    grad = torch.randn(200, 6, 64).bfloat16()
    groups = group_documents([200], 0, num_keys=2)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    results = []
    for attend, given in (
        (lambda *qkv: attend_in_groups(*qkv, groups, scale=None, window=None), inputs),
        (kernel, inputs),
        (kernel, exact),
    ):
        output = attend(*given)
        results.append([output, *torch.autograd.grad(output, given, grad.to(output.dtype))])
    for ours, theirs, wanted in zip(*results, strict=True):
        assert (ours.double() - wanted).norm() < 1.5 * (theirs.double() - wanted).norm()


def test_under_autocast_it_computes_in_its_data_type():
    """After rotary embeddings queries and keys are in float32, and values are not."""
    torch.manual_seed(0)
    inputs = [tensors(6, torch.float32), tensors(2, torch.float32), tensors(2, torch.bfloat16)]
    groups = group_documents(LENGTHS, 0, num_keys=2)

    def results(given, mixed):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = attend_in_groups(*given, groups, scale=None, window=None)
        return [output, *torch.autograd.grad(output.float().square().sum(), inputs)]

    mixed = results(inputs, mixed=True)
    assert [tensor.dtype for tensor in mixed] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    for ours, wanted in zip(mixed, results([tensor.bfloat16() for tensor in inputs], mixed=False), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-2, atol=1e-3)
    assert results([tensor.double() for tensor in inputs], mixed=True)[0].dtype == torch.float64


def test_a_graph_may_be_kept_for_a_second_backward_pass():
    torch.manual_seed(0)
    inputs = [tensors(heads, torch.float32) for heads in (6, 2, 2)]
    output = attend_in_groups(*inputs, group_documents(LENGTHS, 0, num_keys=2), scale=None, window=None)
    first = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(output.sum(), inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_memory_of_a_long_document_is_linear():
    code = """
import torch
from automodel.training.metrics import peak_memory_mb
from automodel_huggingface.document_groups import attend_in_groups, group_documents

def attend(length):
    inputs = [torch.randn(length, heads, 64, requires_grad=True) for heads in (9, 3, 3)]
    attend_in_groups(*inputs, group_documents([length], 0, num_keys=3), scale=None, window=None).sum().backward()
    return peak_memory_mb(torch.device("cpu"))

before = attend(64)
for length in (1024, 4096):
    print(max(attend(length) for _ in range(3)) - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    short, long = map(float, result.stdout.split())
    assert long < 6 * short  # all scores at once would be 16 times as many
    assert long < 350  # MB; all scores at once would be 600, and with their gradients twice that
