"""The parts of a run of a tiny model, for the loop and for checkpoints."""

import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from automodel.checkpoint.checkpointer import Checkpointer
from automodel.checkpoint.state import fingerprint
from automodel.interfaces import Run
from automodel.parallel.ddp import DataParallel
from automodel.training.dataloader import DataLoader
from automodel.training.loss import cross_entropy
from automodel.training.lr_schedules import cosine
from automodel.training.options import TrainingOptions
from automodel.training.parts import Parts
from automodel.training.step_scheduler import StepScheduler
from tiny import TinyLM, rows

PROCESSOR = SimpleNamespace(pad_token_id=0)
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


class Hooks:
    """Records what loggers would be told: names with steps, and of steps the numbers."""

    def __init__(self):
        self.calls, self.losses = [], []

    def __getattr__(self, name):
        return partial(self._called, name)

    def _called(self, name, step=None, metrics=None, **_):
        self.calls.append((name, step))
        if name == "step_end":
            self.losses.append((step, metrics["loss"], metrics["grad_norm"], metrics["lr"]))


def parts(tmp_path, optimizer="adamw", seed=0, frozen=False, max_steps=9, width=8):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    module = TinyLM(dropout=0.3, width=width)
    mark = fingerprint(module.named_parameters())
    if frozen:
        module.embed.requires_grad_(False)
    built = OPTIMIZERS[optimizer]([p for p in module.parameters() if p.requires_grad])
    return Parts(
        recipe=SimpleNamespace(),
        run=Run("tiny", tmp_path, {}, max_steps=max_steps),
        hooks=Hooks(),
        loggers=[],
        device=torch.device("cpu"),
        processor=PROCESSOR,
        module=module,
        forward=module,
        reload=None,
        parallelism=DataParallel(torch.device("cpu")),
        samples_per_step=6,
        fingerprint=mark,
        optimizer=built,
        lr_scheduler=cosine(built, num_steps=9, warmup_steps=2),
        loader=DataLoader(rows(13), PROCESSOR, batch_size=2, seed=1),
        validation_loader=None,
        loss_fn=cross_entropy(),
        options=TrainingOptions(),
        scheduler=StepScheduler(max_steps=max_steps),
        checkpointer=Checkpointer(enabled=False, checkpoint_dir=str(tmp_path)),
        micro_batches_per_step=2,
        num_steps=max_steps,
    )
