"""The loss that is computed within the output layer, part by part, is the loss of all logits."""

import copy
from types import SimpleNamespace

import pytest
import torch
from automodel import InputError
from automodel.parallel.ddp import DataParallel
from automodel.training import output_layer
from automodel.training.collate import pad
from automodel.training.label_tokens import forward_inputs, label_logits, label_loss
from automodel.training.loss import cross_entropy
from tiny import TinyLM, rows

CPU = torch.device("cpu")
COLLATE = pad(SimpleNamespace(pad_token_id=0))
INPUTS = forward_inputs(COLLATE(rows(300)), CPU, DataParallel(CPU), None)


class WithLayer(TinyLM):
    """A model that says which its output layer is, as transformers' do."""

    scale = None

    def get_output_embeddings(self):
        return self.head

    def forward(self, **inputs):
        out = super().forward(**inputs)
        if self.scale is not None:
            out.logits = out.logits / self.scale
        return out

    forward.__signature__ = __import__("inspect").signature(TinyLM.forward)


@pytest.fixture(params=["trained", "frozen", "frozen without bias"])
def model(request):
    torch.manual_seed(0)
    made = WithLayer(dropout=0.5)
    if request.param == "frozen without bias":
        made.head = torch.nn.Linear(made.head.in_features, made.head.out_features, bias=False)
    made.head.requires_grad_(request.param == "trained")
    return made


def by_all_logits(module, loss_fn):
    logits_NV = label_logits(module, INPUTS)
    targets_N = INPUTS.targets
    return loss_fn(logits_NV, targets_N), logits_NV.argmax(dim=-1) == targets_N


@pytest.mark.parametrize("loss_fn", [cross_entropy(), cross_entropy(label_smoothing=0.1)])
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("with_right", [False, True])
def test_loss_and_gradients_are_those_of_all_logits(model, loss_fn, scale, with_right):
    model.scale = scale
    plain = copy.deepcopy(model)
    for _ in range(2):  # the first time it is found out whether the model's logits are its output layer's
        torch.manual_seed(1)
        found = label_loss(model, INPUTS, loss_fn, with_right=with_right)
        (found.loss_sum / 7).backward()
        torch.manual_seed(1)
        loss, right_N = by_all_logits(plain, loss_fn)
        (loss / 7).backward()
        torch.testing.assert_close(found.loss_sum, loss)
        assert torch.equal(found.right, right_N) if with_right else found.right is None
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert output_layer._hands_on[model.head] == (scale is None)


class Deaf(WithLayer):
    """A model that takes `logits_to_keep` and gives all logits."""

    def forward(self, logits_to_keep=None, **inputs):
        return super().forward(**inputs)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_logits_of_other_positions_than_those_asked_for_are_an_error(scale):
    module = Deaf()
    module.scale = scale
    with pytest.raises(InputError, match=r"positions where the \d+ of its argument logits_to_keep"):
        label_loss(module, INPUTS, cross_entropy())


def test_only_a_part_of_the_logits_exists_at_a_time(model):
    sizes = []
    own = model.head.forward
    model.head.forward = lambda hidden: sizes.append(len(hidden)) or own(hidden)
    label_loss(model, INPUTS, cross_entropy())
    assert len(sizes) > 2
    assert max(sizes) == output_layer.tokens_of_a_part(model.head, CPU)
    assert sum(sizes) == len(INPUTS.targets)


@pytest.mark.parametrize("with_right", [False, True])
def test_logits_are_by_columns_where_only_the_loss_of_a_frozen_layer_without_bias_is_wanted(model, with_right):
    by_columns = []
    loss_fn = cross_entropy()
    label_loss(
        model,
        INPUTS,
        lambda logits, targets: by_columns.append(logits.stride()[0] == 1) or loss_fn(logits, targets),
        with_right=with_right,
    )
    is_wanted = model.head.bias is None and not with_right
    assert set(by_columns) == {is_wanted}


def test_the_output_layer_is_left_as_it_was(model):
    label_loss(model, INPUTS, cross_entropy())
    assert "forward" not in vars(model.head)


def test_a_batch_without_labels_costs_nothing_and_gives_every_parameter_a_gradient(model):
    batch = COLLATE(rows(2))
    batch["labels"][:] = -100
    inputs = forward_inputs(batch, CPU, DataParallel(CPU), None)
    loss = label_loss(model, inputs, cross_entropy()).loss_sum
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


class Sliced(WithLayer):
    """A model that leaves the logits of a padded vocabulary out."""

    def forward(self, **inputs):
        out = super().forward(**inputs)
        out.logits = out.logits[..., :15]
        return out

    forward.__signature__ = WithLayer.forward.__signature__


@pytest.mark.parametrize("first", ["no label", "not finite"])
def test_whether_logits_are_handed_on_is_found_out_whatever_the_first_loss_is(model, first):
    batch = COLLATE(rows(2))
    if first == "no label":
        batch["labels"][:] = -100
    model.scale = 3.0
    plain, handing_on = copy.deepcopy(model), copy.deepcopy(model)
    handing_on.scale = None
    loss_fn = cross_entropy()
    for module in (model, handing_on):
        if first == "not finite":
            label_loss(module, INPUTS, lambda logits, targets: loss_fn(logits, targets) * torch.nan)
        else:
            label_loss(module, forward_inputs(batch, CPU, DataParallel(CPU), None), loss_fn)
    assert not output_layer._hands_on[model.head]
    assert output_layer._hands_on[handing_on.head]
    torch.manual_seed(1)
    found = label_loss(model, INPUTS, loss_fn).loss_sum
    torch.manual_seed(1)
    torch.testing.assert_close(found, by_all_logits(plain, loss_fn)[0])


def test_logits_that_the_model_leaves_out_are_left_out():
    torch.manual_seed(0)
    model = Sliced()
    batch = COLLATE(rows(6, vocabulary=15))
    inputs = forward_inputs(batch, CPU, DataParallel(CPU), None)
    wanted = cross_entropy()(label_logits(model, inputs), inputs.targets)
    for _ in range(2):
        torch.testing.assert_close(label_loss(model, inputs, cross_entropy()).loss_sum, wanted)


def test_a_validation_makes_no_gradients(model):
    could_be_made = []
    loss_fn = cross_entropy()
    with torch.no_grad():
        label_loss(
            model.eval(),
            INPUTS,
            lambda logits, targets: could_be_made.append(logits.requires_grad) or loss_fn(logits, targets),
        )
    assert set(could_be_made) == {False}
