"""transformers' Trainer with peft on the benchmark's job; runs in the environment `hf`."""

from __future__ import annotations

from typing import Any

import torch
from shared import IGNORED_LABEL, job, read_rows
from trainers import Clock, Measured, arguments, best, lora, report_trained
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained(job["model"])


class MeasuredTrainer(Measured, Trainer):
    """Trainer, measured."""


def encode(row: dict[str, str]) -> dict[str, Any]:
    """A row of text as a user of transformers encodes it: the chat template, and loss on the answer."""
    question = [{"role": "user", "content": row["instruction"]}]
    answer = [{"role": "assistant", "content": row["output"]}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(question + answer, return_dict=False)
    return {"input_ids": whole, "labels": [IGNORED_LABEL] * len(prompt) + whole[len(prompt) :]}


def training_rows() -> Any:
    """The encoded rows; where the start is measured, the text, which `datasets` caches after the first run."""
    if job["mode"] != "startup":
        return read_rows(job["rows"])
    from datasets import load_dataset

    rows = load_dataset("json", data_files=job["text"], split="train")
    return rows.map(encode, remove_columns=rows.column_names)


# a frozen base needs no master weights, and is fastest without autocast (peft's adapters stay float32); trained weights
# in bfloat16 are faster as well, but lose small updates
bf16_weights = job["bf16"] and (job["lora"] or job["peer_bf16_weights"])
dtype = torch.bfloat16 if bf16_weights else torch.float32
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
if job["lora"]:
    from peft import get_peft_model

    model = get_peft_model(model, lora())
trainer = MeasuredTrainer(
    model=model,
    args=TrainingArguments(**arguments(), bf16=job["bf16"] and not bf16_weights, train_sampling_strategy="sequential"),
    train_dataset=training_rows(),
    processing_class=tokenizer,
    data_collator=DataCollatorWithFlattening() if best else DataCollatorForSeq2Seq(tokenizer),
    callbacks=[Clock],
)
trainer.train()
report_trained()
