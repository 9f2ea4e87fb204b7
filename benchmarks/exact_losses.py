"""The losses of `sft_speed.py identical` in float64, by plain PyTorch, transformers and peft: what tools should find.

Called by sft_speed.py with the job as JSON; prints the list of losses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sft_speed import our_recipe
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

IGNORED_LABEL = -100


def norm(self: Any, hidden: Tensor) -> Tensor:
    """LlamaRMSNorm's forward, without its float32."""
    return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


def rotation(self: Any, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """LlamaRotaryEmbedding's forward, without its float32 but for the frequencies, which all tools have from there."""
    angles = position_ids[:, :, None].double() * self.inv_freq.double()
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A micro-batch, padded on the right."""
    length = max(len(row["input_ids"]) for row in rows)

    def column(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])

    ids, labels = column("input_ids", 0), column("labels", IGNORED_LABEL)
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": (torch.arange(length) < lengths).long()}


def losses(job: dict[str, Any]) -> list[float]:
    """Of each step of a job in mode `identical`, whose optimizer and clipping are sft_speed.py's and trainers.py's."""
    # which compute in float32 whatever the model's data type, without an option
    modeling_llama.LlamaRMSNorm.forward = norm
    modeling_llama.LlamaRotaryEmbedding.forward = rotation
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float64)
    if job["lora"]:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        ours = our_recipe(job)["peft"]
        config = LoraConfig(r=ours["r"], lora_alpha=ours["alpha"], target_modules=ours["target_modules"])
        model = get_peft_model(model, config).double()
        set_peft_model_state_dict(model, load_file(job["adapter"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job["lr"], weight_decay=0.0)
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    found = []
    for step in range(job["steps"]):
        batch = padded(rows[step * job["batch_size"] : (step + 1) * job["batch_size"]])
        labels = batch.pop("labels")[:, 1:].flatten()
        logits = model(**batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


if __name__ == "__main__":
    print(json.dumps(losses(json.loads(sys.argv[1]))))
