"""What the peers that are built on transformers' Trainer share: measuring, and their common settings."""

from __future__ import annotations

import time
from typing import Any

from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from shared import IGNORED_LABEL, job, peak_memory_mb, report, validation_loss
from torch import Tensor
from transformers import TrainerCallback

best = job["mode"] == "best"
record: dict[str, Any] = {"ends": [], "counts": [], "losses": []}
micro_batches: list[tuple[list[int], float]] = []  # counts and loss of those of the step that is going on


class Clock(TrainerCallback):
    """When each step ended, and what it held."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time, and the sums over the step's micro-batches."""
        record["ends"].append(time.time())
        counts, losses = zip(*micro_batches, strict=True)
        record["counts"].append([sum(column) for column in zip(*counts, strict=True)])
        record["losses"].append(sum(losses))  # each is divided by the label tokens of the whole step
        micro_batches.clear()


class Measured:
    """Mixed into a Trainer: notes losses and tokens, starts from the job's adapter, reports after the training."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Note what the micro-batch holds. Flattened rows have no mask, and no label at their first token."""
        positions = inputs["input_ids"].numel()
        mask = inputs.get("attention_mask")
        num_labels = int((inputs["labels"][:, 1:] != IGNORED_LABEL).sum())
        self.counts = [positions if mask is None else int(mask.sum()), num_labels, positions]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Note the loss, which the log rounds."""
        loss = super().training_step(*args, **kwargs)
        micro_batches.append((self.counts, float(loss)))
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train from the adapter that AutoModel starts from."""
        if job["lora"]:
            set_peft_model_state_dict(self.model, load_file(job["adapter"]))
        result = super().train(*args, **kwargs)
        record["peak_memory_mb"] = peak_memory_mb()
        record["model"] = self.model
        return result


def report_trained() -> None:
    """Print the line that the benchmark reads, with the validation loss of the trained model."""
    model = record.pop("model")
    report(record, validation_loss(model, lambda ids: model(input_ids=ids, use_cache=False).logits))


def lora() -> LoraConfig:
    """The job's adapters."""
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM")


def arguments() -> dict[str, Any]:
    """The training arguments of the job that every version of transformers has."""
    return {
        "output_dir": job["output"],
        "max_steps": job["steps"] or -1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": job["peer_batch_size"],
        "gradient_accumulation_steps": job["batch_size"] // job["peer_batch_size"],
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        "dataloader_pin_memory": False,
    }
