"""TRL's SFTTrainer on the benchmark's job; runs in TRL's own environment. Prints a JSON line of what it measured."""

import json
import resource
import sys
import time

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

job = json.loads(sys.argv[1])
torch.set_num_threads(job["threads"])


ends: list[float] = []


class Clock(TrainerCallback):
    """When each step ended."""

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        ends.append(time.time())


def count_tokens(trainer):
    """Tokens and label tokens of each micro-batch that the trainer sees."""
    counts = []
    original = trainer.compute_loss
    newline = trainer.processing_class("\n", add_special_tokens=False)["input_ids"][0]

    def compute_loss(model, inputs, *args, **kwargs):
        labels = inputs["labels"]
        # TRL also learns the newline after the end of the turn, AutoModel does not: it is left out of the count
        counted = (labels[:, 1:] != -100) & (labels[:, 1:] != newline)
        counts.append((int(inputs["attention_mask"].sum()), int(counted.sum())))
        return original(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    return counts


rows = load_dataset("json", data_files=job["data"], split="train")
rows = rows.map(
    lambda row: {
        "prompt": [{"role": "user", "content": row["instruction"]}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    },
    remove_columns=rows.column_names,
)
trainer = SFTTrainer(
    model=job["model"],
    train_dataset=rows,
    peft_config=LoraConfig(
        r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    if job["lora"]
    else None,
    args=SFTConfig(
        output_dir=job["output"],
        max_steps=job["steps"],
        per_device_train_batch_size=job["batch_size"],
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=job["bf16"],
        gradient_checkpointing=False,
        max_length=None,
        model_init_kwargs={"dtype": "float32"},
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    ),
    callbacks=[Clock],
)
counts = count_tokens(trainer)
trainer.train()
losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
print(json.dumps({"ends": ends, "counts": counts, "losses": losses, "peak_memory_mb": peak}))
