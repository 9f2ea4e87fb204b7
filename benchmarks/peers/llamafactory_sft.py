"""LLaMA-Factory on the benchmark's job, through its own entry `run_exp`; runs in the environment `llamafactory`."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from llamafactory.train.sft import workflow
from llamafactory.train.tuner import run_exp
from shared import job, read_rows
from trainers import Clock, Measured, arguments, best, report_trained


class MeasuredTrainer(Measured, workflow.CustomSeq2SeqTrainer):
    """LLaMA-Factory's trainer, measured."""

    def __init__(self, **kwargs: Any) -> None:
        if not best:
            kwargs["data_collator"].pad_to_multiple_of = None  # 8 there, without an option
        super().__init__(**kwargs)


workflow.CustomSeq2SeqTrainer = MeasuredTrainer
rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in read_rows(job["rows"])]
DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(f"{job['output']}/rows")
run_exp(
    {
        **arguments(),
        "model_name_or_path": job["model"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora" if job["lora"] else "full",
        **({"lora_rank": 16, "lora_alpha": 32, "lora_target": "q_proj,k_proj,v_proj,o_proj"} if job["lora"] else {}),
        "template": "empty",
        "dataset": "rows",  # must be named, and is not looked at where there is a tokenized_path
        "tokenized_path": f"{job['output']}/rows",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,  # on by default
        "flash_attn": "sdpa",
        "bf16": job["bf16"],
    },
    callbacks=[Clock()],
)
report_trained()
