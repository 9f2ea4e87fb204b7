import copy
from types import SimpleNamespace

import pytest
import torch
from automodel import InputError
from automodel.parallel.ddp import DataParallel
from automodel.training.collate import pad
from automodel.training.label_tokens import forward_inputs, keeps_documents_apart, label_logits
from automodel.training.loss import cross_entropy
from automodel.training.options import TrainingOptions
from automodel.training.step import train_step
from tiny import AllLogitsLM, TinyLM, rows
from torch.nn import functional as F

CPU = torch.device("cpu")
ALONE = DataParallel(CPU)
COLLATE = pad(SimpleNamespace(pad_token_id=0))


def steps(module, splits, optimizer=None, options=None, num_steps=4):
    """Losses of a few steps on the same global batches, each cut into `splits` micro-batches."""
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=5.0)
    losses = []
    for step in range(num_steps):
        samples = rows(8, seed=step)
        size = 8 // splits
        micro_batches = [COLLATE(samples[start : start + size]) for start in range(0, 8, size)]
        options = options or TrainingOptions(max_grad_norm=None)
        losses.append(train_step(module, micro_batches, cross_entropy(), optimizer, options, CPU, ALONE).loss.item())
    return losses


def test_loss_is_independent_of_accumulation():
    torch.manual_seed(0)
    module = TinyLM()
    whole, halves, ones = (steps(copy.deepcopy(module), splits) for splits in (1, 2, 8))
    assert halves == pytest.approx(whole, rel=1e-5)
    assert ones == pytest.approx(whole, rel=1e-5)
    assert whole[0] != pytest.approx(whole[-1], rel=1e-3), "nothing was learnt, so nothing was compared"


def test_loss_and_gradient_equal_plain_pytorch():
    torch.manual_seed(0)
    module = TinyLM()
    plain = copy.deepcopy(module)
    batch = COLLATE(rows(4))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    result = train_step(module, [batch], cross_entropy(), optimizer, TrainingOptions(max_grad_norm=0.1), CPU, ALONE)

    logits = plain(batch["input_ids"]).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
    torch.optim.SGD(plain.parameters(), lr=0.5).step()
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert norm > 0.1, "nothing was clipped"
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_are_the_same_whether_or_not_the_model_can_leave_some_out():
    torch.manual_seed(0)
    module, whole = TinyLM(), AllLogitsLM()
    whole.load_state_dict(module.state_dict())
    batch = COLLATE(rows(5))
    inputs = forward_inputs(batch, CPU, ALONE, None)
    torch.testing.assert_close(label_logits(module, inputs), label_logits(whole, inputs))


def test_label_tokens_are_the_same_whether_they_are_picked_or_are_all_there_is():
    torch.manual_seed(0)
    module = TinyLM()
    alike = COLLATE(rows(1) * 3)
    ragged = {name: tensor.clone() for name, tensor in alike.items()}
    ragged["labels"][0, -1] = -100  # one label less, so that they must be picked
    (logits_NV, labels_N, rows_N), (fewer_NV, fewer_N, fewer_rows_N) = (
        (label_logits(module, inputs), inputs.targets, inputs.rows)
        for inputs in (forward_inputs(batch, CPU, ALONE, None) for batch in (alike, ragged))
    )
    kept = torch.ones(len(labels_N), dtype=torch.bool)
    kept[len(labels_N) // 3 - 1] = False
    torch.testing.assert_close(logits_NV[kept], fewer_NV)
    assert torch.equal(labels_N[kept], fewer_N)
    assert torch.equal(rows_N[kept], fewer_rows_N)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(value):
    module = TinyLM()
    optimizer = torch.optim.AdamW(module.parameters())
    with torch.no_grad():
        module.head.bias[3] = value
    before = copy.deepcopy(module.state_dict())
    result = train_step(module, [COLLATE(rows(4))], cross_entropy(), optimizer, TrainingOptions(), CPU, ALONE)
    assert not (result.loss.isfinite() & result.grad_norm.isfinite())
    assert all(parameter.grad is None for parameter in module.parameters())
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("fused", [False, True])
def test_a_first_step_that_is_not_finite_leaves_sgd_as_it_was(momentum, fused):
    module = TinyLM()
    module.head.bias.data[3] = float("nan")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=momentum, fused=fused)
    train_step(module, [COLLATE(rows(4))], cross_entropy(), optimizer, TrainingOptions(), CPU, ALONE)
    module.head.bias.data[3] = 0.0
    twin = copy.deepcopy(module)
    for one, its in ((module, optimizer), (twin, torch.optim.SGD(twin.parameters(), lr=0.1, momentum=momentum))):
        train_step(one, [COLLATE(rows(4))], cross_entropy(), its, TrainingOptions(), CPU, ALONE)
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_without_labels_is_an_error():
    batch = COLLATE([{"input_ids": [1, 2, 3], "labels": [-100] * 3}])
    module = TinyLM()
    with pytest.raises(InputError, match="masked"):
        train_step(
            module, [batch], cross_entropy(), torch.optim.SGD(module.parameters()), TrainingOptions(), CPU, ALONE
        )


def test_mixed_precision_keeps_parameters_in_fp32_and_stays_near_the_fp32_loss():
    torch.manual_seed(0)
    module = TinyLM()
    mixed = copy.deepcopy(module)
    exact = steps(module, 1)
    rounded = steps(mixed, 1, options=TrainingOptions(max_grad_norm=None, mixed_precision="bf16"))
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    assert rounded == pytest.approx(exact, rel=2e-2)
    assert rounded != exact, "autocast was not on"


def test_label_smoothing_is_torchs():
    logits, labels = torch.randn(6, 17), torch.randint(0, 17, (6,))
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(label_smoothing=0.1)(logits, labels), expected)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("kind", ["many small ones", "hardly possible", "impossible"])
def test_cross_entropy_loses_no_probability(kind, by_columns):
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 50_000) * 0.3, torch.randint(0, 50_000, (40,))
    logits[0, 0] = -torch.inf
    logits[range(40), labels] = {"many small ones": 12.0, "hardly possible": -120.0, "impossible": -torch.inf}[kind]
    exact = logits.double().requires_grad_()
    ours = (logits.T.contiguous().T if by_columns else logits).requires_grad_()
    losses = cross_entropy()(ours, labels), F.cross_entropy(exact, labels, reduction="sum")
    for loss in losses:
        (loss * 0.5).backward()
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=0)
    assert (ours.grad - exact.grad).norm() < 2e-6 * exact.grad.norm()  # torch's own is off by 4.6e-6 in the first kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("vocabulary", [17, 40_000])  # in one part and in several
def test_cross_entropy_leaves_the_logits_and_can_go_back_twice(dtype, factor, vocabulary):
    logits, labels = torch.randn(70, vocabulary).to(dtype).requires_grad_(), torch.randint(0, vocabulary, (70,))
    before = logits.detach().clone()
    loss = cross_entropy()(logits, labels) * factor
    for _ in range(2):
        loss.backward(retain_graph=True)
    wanted = F.cross_entropy(logits.float(), labels, reduction="sum") * factor
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(logits.grad, 2 * torch.autograd.grad(wanted, logits)[0])
    assert torch.equal(logits, before)


def plainly(arguments):
    """Documents as they are."""
    return arguments, None


@pytest.mark.parametrize("document_inputs", [None, plainly])
def test_a_label_that_only_padding_could_foretell_does_not_count(document_inputs):
    batch = COLLATE(rows(3))
    batch["labels"] = batch["input_ids"].clone()
    batch["attention_mask"][0, :2] = 0  # padding on the left: nothing that can be seen comes before the third token
    inputs = forward_inputs(batch, CPU, ALONE, document_inputs)
    torch.manual_seed(0)
    module = AnyRows()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    result = train_step(module, [batch], cross_entropy(), optimizer, TrainingOptions(), CPU, ALONE, document_inputs)
    assert result.num_label_tokens == len(inputs.targets)


class AnyRows(TinyLM):
    """A model that takes what tells it of documents, and does not look at it."""

    def forward(self, input_ids, use_cache=False, logits_to_keep=None, **told):
        return super().forward(input_ids, logits_to_keep=logits_to_keep)


def test_rows_that_mix_are_found_out_with_few_words():
    torch.manual_seed(0)
    assert not keeps_documents_apart(AnyRows(vocabulary=9), CPU, ALONE, plainly, in_float32=True)


@pytest.mark.parametrize("in_float32", [False, True])
def test_logits_that_are_all_zero_do_not_tell_that_rows_are_apart(in_float32):
    module = AnyRows(vocabulary=9)
    for parameter in module.parameters():
        parameter.detach().zero_()
    assert not keeps_documents_apart(module, CPU, ALONE, plainly, in_float32)


@pytest.mark.parametrize("without_padding", [False, True])
def test_other_failures_are_not_taken_for_rows_that_mix(without_padding):
    class Failing(AnyRows):
        def forward(self, input_ids, use_cache=False, logits_to_keep=None, **told):
            if ("cu_seq_lens_q" in told) == without_padding:
                raise torch.OutOfMemoryError if without_padding else RuntimeError
            return super().forward(input_ids, logits_to_keep=logits_to_keep)

    with pytest.raises(RuntimeError):
        keeps_documents_apart(Failing(), CPU, ALONE, plainly, in_float32=True)
