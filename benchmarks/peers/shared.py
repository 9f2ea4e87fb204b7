"""What the scripts of all peers share: the job, and the line they report."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED_LABEL = -100

job: dict[str, Any] = json.loads(sys.argv[1])
torch.set_num_threads(job["threads"])


def read_rows(path: str) -> list[dict[str, list[int]]]:
    """The encoded rows: `input_ids` and `labels`."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [{name: json.loads(line)[name] for name in ("input_ids", "labels")} for line in lines]


def peak_memory_mb() -> float:
    """The most memory this process had so far, in 10^6 bytes."""
    [kib] = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(kib) * 1024 / 1e6


@torch.no_grad()
def validation_loss(model: torch.nn.Module, logits: Callable[[Tensor], Tensor]) -> float | None:
    """Mean cross entropy over the label tokens of the validation rows; `logits` takes the ids of one row."""
    if job["val_rows"] is None:
        return None
    model.eval()
    total, num = 0.0, 0
    for row in read_rows(job["val_rows"]):
        labels = torch.tensor(row["labels"])[1:]
        total += float(
            F.cross_entropy(logits(torch.tensor([row["input_ids"]]))[0, :-1].float(), labels, reduction="sum")
        )
        num += int((labels != IGNORED_LABEL).sum())
    return total / num


def report(record: dict[str, Any], val_loss: float | None) -> None:
    """Print the line that the benchmark reads."""
    print("\n" + json.dumps({**record, "val_loss": val_loss}), flush=True)
