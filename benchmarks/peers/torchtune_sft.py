"""torchtune's single-device recipes on the benchmark's job; runs in the environment `torchtune`."""

from __future__ import annotations

import json
import runpy
import time
from pathlib import Path
from typing import Any

import torch
import torchtune
from omegaconf import OmegaConf
from safetensors.torch import load_file
from shared import IGNORED_LABEL, job, peak_memory_mb, read_rows, report, validation_loss
from torchtune.data import padded_collate_sft

config = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8"))
record: dict[str, Any] = {"ends": [], "counts": [], "losses": []}


class Measures:
    """What torchtune calls a metric logger: notes when each step ended, and its loss."""

    def log_config(self, config: Any) -> None:
        """Not wanted."""

    def log_dict(self, payload: dict[str, Any], step: int) -> None:
        """Note the step."""
        record["ends"].append(time.time())
        record["losses"].append(float(payload["loss"]))

    def close(self) -> None:
        """Nothing to close."""


class Tokenizer:
    """All that a recipe asks of a tokenizer where the rows are encoded."""

    pad_id = 2


def rows(tokenizer: Tokenizer) -> list[dict[str, list[int]]]:
    """The rows as torchtune names their parts."""
    return [{"tokens": row["input_ids"], "labels": row["labels"]} for row in read_rows(job["rows"])]


def collate(batch: list[dict[str, list[int]]], padding_idx: int, ignore_idx: int) -> dict[str, torch.Tensor]:
    """torchtune's own padding, counted."""
    padded = padded_collate_sft(batch, padding_idx, ignore_idx)
    num_labels = sum(label != IGNORED_LABEL for row in batch for label in row["labels"][1:])
    record["counts"].append([sum(len(row["tokens"]) for row in batch), num_labels, padded["tokens"].numel()])
    return padded


def own(name: str) -> str:
    """The dotted path by which a recipe finds what stands in this file."""
    return f"{__name__}.{name}"


shape = {
    "vocab_size": config["vocab_size"],
    "num_layers": config["num_hidden_layers"],
    "num_heads": config["num_attention_heads"],
    "num_kv_heads": config["num_key_value_heads"],
    "embed_dim": config["hidden_size"],
    "intermediate_dim": config["intermediate_size"],
    "max_seq_len": config["max_position_embeddings"],
    "norm_eps": config["rms_norm_eps"],
    "rope_base": (config.get("rope_parameters") or config)["rope_theta"],
    "scale_factor": 1,  # no scaling of the rotary frequencies
}
adapters = {
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "apply_lora_to_mlp": False,
}
builders = "torchtune.models.llama3_2._component_builders"
settings = {
    "model": {"_component_": f"{builders}.lora_llama3_2", **shape, **adapters}
    if job["lora"]
    else {"_component_": f"{builders}.llama3_2", **shape},
    "tokenizer": {"_component_": own("Tokenizer")},
    "checkpointer": {
        "_component_": "torchtune.training.FullModelHFCheckpointer",
        "checkpoint_dir": job["model"],
        "checkpoint_files": ["model.safetensors"],
        "output_dir": job["output"],
        "model_type": "LLAMA3_2",
    },
    "resume_from_checkpoint": False,
    "dataset": {"_component_": own("rows")},
    "collate_fn": own("collate"),
    "seed": 1,
    "shuffle": False,
    "batch_size": job["batch_size"],
    "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "lr": 1e-4, "weight_decay": 0.0},
    "lr_scheduler": {"_component_": own("constant")},
    "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
    "epochs": 1,
    "max_steps_per_epoch": job["steps"],
    "gradient_accumulation_steps": 1,
    "optimizer_in_bwd": False,
    "clip_grad_norm": 1.0,
    "compile": False,
    "metric_logger": {"_component_": own("Measures")},
    "output_dir": job["output"],
    "device": "cpu",
    "dtype": "bf16" if job["bf16"] else "fp32",
}


def constant(optimizer: torch.optim.Optimizer, num_training_steps: int, last_epoch: int) -> Any:
    """A learning rate that stays."""
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, last_epoch=last_epoch)


def load_adapter(model: torch.nn.Module) -> None:
    """Start from the adapter that AutoModel starts from; only its A matrices, since all B are zero."""
    state = model.state_dict()
    names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
    for name, value in load_file(job["adapter"]).items():
        if name.endswith("lora_A.weight"):
            _, _, _, _, layer, _, module, _, _ = name.split(".")
            state[f"layers.{layer}.attn.{names[module]}.lora_a.weight"].copy_(value)


# a recipe is a file that users copy, not a module
kind = "lora" if job["lora"] else "full"
file = Path(torchtune.__file__).parent.parent / "recipes" / f"{kind}_finetune_single_device.py"
[recipe_class] = [value for name, value in runpy.run_path(str(file)).items() if name.endswith("RecipeSingleDevice")]
recipe_class.save_checkpoint = lambda self, epoch: None
settings = OmegaConf.create(settings)
recipe = recipe_class(settings)
recipe.setup(settings)
if job["lora"]:
    load_adapter(recipe._model)
recipe.train()
record["peak_memory_mb"] = peak_memory_mb()
recipe._model.set_num_output_chunks(0)
report(record, validation_loss(recipe._model, recipe._model))
