"""Attention in groups is that of each document alone, whatever their lengths, prefix and window."""

import subprocess
import sys

import pytest
import torch
from automodel_huggingface.document_groups import attend_in_groups, group_documents
from torch.nn import functional as F

LENGTHS = [14, 1, 150, 9, 600, 11, 140]  # of one block and of several; one so long that its weights are not kept


def tensors(heads, dtype):
    return torch.randn(sum(LENGTHS), heads, 8, dtype=dtype).requires_grad_()


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


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_outputs_and_gradients_are_those_of_each_document_alone(prefix, window, dtype, tolerance):
    torch.manual_seed(0)
    inputs = [tensors(6, dtype), tensors(2, dtype), tensors(2, dtype)]
    groups = group_documents(LENGTHS, prefix, num_keys=2)
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
print(max(attend(4096) for _ in range(3)) - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 350  # MB; all scores at once would be 600, and with their gradients twice that
