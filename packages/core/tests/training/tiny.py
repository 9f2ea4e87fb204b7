"""A language model of a few hundred parameters with the interface that core asks of a model."""

from types import SimpleNamespace

import torch
from torch import nn


class TinyLM(nn.Module):
    def __init__(self, vocabulary=17, width=8, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids, attention_mask=None, use_cache=False, logits_to_keep=None):
        hidden_BLD = self.dropout(self.mix(self.embed(input_ids))[0])
        if logits_to_keep is not None:
            hidden_BLD = hidden_BLD[:, logits_to_keep]
        return SimpleNamespace(logits=self.head(hidden_BLD))


class AllLogitsLM(TinyLM):
    """The same, without the parameter `logits_to_keep`."""

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return super().forward(input_ids)


def rows(num_rows, seed=0, vocabulary=17):
    """Samples of very different lengths, with a masked prompt."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(num_rows):
        length = int(torch.randint(3, 12, (1,), generator=generator)) * (1 + 3 * (index % 3 == 0))
        ids = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
        prompt = int(torch.randint(1, length - 1, (1,), generator=generator))
        samples.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return samples
