"""TRL's SFTTrainer on the benchmark's job; runs in the environment `trl`."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, load_dataset
from shared import job, read_rows
from trainers import Clock, Measured, arguments, best, lora, report_trained
from trl import SFTConfig, SFTTrainer


class MeasuredTrainer(Measured, SFTTrainer):
    """SFTTrainer, measured."""


def conversation(row: dict[str, str]) -> dict[str, Any]:
    """A row of text as TRL wants it."""
    return {
        "prompt": [{"role": "user", "content": row["instruction"]}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


def training_rows() -> Dataset:
    """The encoded rows; where the start is measured, the text, which `datasets` caches after the first run."""
    if job["mode"] != "startup":
        return Dataset.from_list(read_rows(job["rows"]))
    rows = load_dataset("json", data_files=job["text"], split="train")
    return rows.map(conversation, remove_columns=rows.column_names)


trainer = MeasuredTrainer(
    model=job["model"],
    train_dataset=training_rows(),
    peft_config=lora() if job["lora"] else None,
    args=SFTConfig(
        **arguments(),
        bf16=job["bf16"],
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,  # TRL's default is on
        max_length=None,
        padding_free=best,
        model_init_kwargs={"dtype": "float32"},
    ),
    callbacks=[Clock],
)
trainer.train()
report_trained()
