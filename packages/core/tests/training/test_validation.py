from types import SimpleNamespace

import pytest
import torch
from automodel import InputError
from automodel.parallel.ddp import DataParallel
from automodel.training.dataloader import DataLoader
from automodel.training.loss import cross_entropy
from automodel.training.options import TrainingOptions
from automodel.training.validation import validate
from tiny import TinyLM, rows
from torch import nn
from torch.nn import functional as F

CPU = torch.device("cpu")
ALONE = DataParallel(CPU)
PROCESSOR = SimpleNamespace(pad_token_id=0)


class Echo(nn.Module):
    """Predicts that every token comes again."""

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=10.0 * F.one_hot(input_ids, 17).float())


def test_exact_match_counts_rows_whose_every_label_is_the_first_choice():
    samples = [
        {"input_ids": [5, 5, 5], "labels": [-100, 5, 5]},  # right
        {"input_ids": [5, 5, 6, 6], "labels": [-100, -100, 6, 6]},  # its first label is wrong
        {"input_ids": [1, 2, 9, 9], "labels": [-100, -100, -100, 9]},  # right
    ]
    loader = DataLoader(samples, PROCESSOR, batch_size=2, sampler="sequential")
    metrics = validate(Echo(), loader, cross_entropy(), TrainingOptions(), CPU, ALONE)
    assert metrics["val_exact_match"] == pytest.approx(2 / 3)
    assert metrics["val_token_accuracy"] == pytest.approx(4 / 5)
    assert metrics["val_rows"] == 3


def test_validation_loss_is_per_label_token_whatever_the_batch_size():
    torch.manual_seed(0)
    module, samples = TinyLM(dropout=0.5), rows(7)
    losses = [
        validate(
            module,
            DataLoader(samples, PROCESSOR, batch_size=size, sampler="sequential"),
            cross_entropy(),
            TrainingOptions(),
            CPU,
            ALONE,
        )["val_loss"]
        for size in (1, 3, 7)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert module.training, "the module must train on afterwards"


def test_validation_draws_nothing_from_the_runs_random_numbers():
    torch.manual_seed(0)
    module = TinyLM(dropout=0.5)
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = DataLoader(rows(5), PROCESSOR, batch_size=2, sampler="sequential", num_workers=workers)
        validate(module, loader, cross_entropy(), TrainingOptions(), CPU, ALONE)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_without_labels_is_an_error():
    loader = DataLoader([{"input_ids": [1, 2], "labels": [-100, -100]}], PROCESSOR)
    with pytest.raises(InputError, match="no row"):
        validate(TinyLM(), loader, cross_entropy(), TrainingOptions(), CPU, ALONE)
