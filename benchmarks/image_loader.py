"""Images per second of AutoModel's loader and of a plain PyTorch DataLoader with the same processor and rows.

    uv run python benchmarks/image_loader.py [--rows 200] [--workers 0 1] [--runs 5] [--scale 3] [--image-size 896]

The plain one is what a user would write: `datasets` decodes the image, and the collate function calls
`processor.apply_chat_template` for the batch and masks the prompt. Workers of both stay from one epoch to the next. A
short training run then tells how much of its step time is spent waiting for data. The two take turns, so that a machine
that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
PROMPT = "Describe this image."
BATCH_SIZE = 8


class Plain:
    """A collate function as tutorials have it: what stands before the start of the answer is masked."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows):
        """The micro-batch of these rows."""
        conversations = []
        for row in rows:
            content = [{"type": "image", "image": row["image"].convert("RGB")}, {"type": "text", "text": PROMPT}]
            answer = [{"type": "text", "text": json.dumps(json.loads(row["ground_truth"])["gt_parse"])}]
            conversations.append([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
        batch = self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
        )
        labels = batch["input_ids"].clone()
        marker = self.processor.tokenizer("<start_of_turn>model\n", add_special_tokens=False)["input_ids"]
        for ids, row in zip(batch["input_ids"].tolist(), labels, strict=True):
            start = next(i for i in range(len(ids)) if ids[i : i + len(marker)] == marker)
            row[: start + len(marker)] = -100
        labels[batch["attention_mask"] == 0] = -100
        return {**batch, "labels": labels}


def plain_loader(processor, data, workers):
    import datasets
    from torch.utils.data import DataLoader

    rows = datasets.Dataset.from_parquet(str(data / "data" / "train-00000-of-00001.parquet"))
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    return DataLoader(rows, batch_size=BATCH_SIZE, shuffle=True, collate_fn=Plain(processor), **options)


def our_loader(processor, data, workers):
    from automodel.training.dataloader import DataLoader
    from automodel_models_vlm.image_text import cord_v2

    rows = cord_v2(str(data), target="json")
    loader = DataLoader(rows, processor, batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=True)
    return Epochs(loader)


class Epochs:
    """Our loader as an iterable of one epoch."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return self.loader.micro_batches(epoch=0)


def images_per_second(loader, num_rows):
    begin = time.perf_counter()
    num_labels = sum(int((batch["labels"] != -100).any(dim=1).sum()) for batch in loader)
    assert num_labels == num_rows
    return num_rows / (time.perf_counter() - begin)


def data_wait(model, data, workers, directory):
    """Share of the step time of a training run, after its first step, that was spent waiting for data."""
    recipe = directory / "recipe.yaml"
    recipe.write_text(f"""
model: {{_target_: image-text-to-text, pretrained_model_name_or_path: {model}}}
dataset: {{_target_: cord-v2, path_or_dataset: {data}, target: json}}
dataloader: {{batch_size: {BATCH_SIZE}, num_workers: {workers}}}
step_scheduler: {{max_steps: 12}}
checkpoint: {{checkpoint_dir: {directory}/run{workers}, enabled: false}}
""")
    command = [Path(sys.executable).parent / "automodel", "train", "-c", str(recipe)]
    subprocess.run(command, check=True, capture_output=True)
    lines = [json.loads(line) for line in (directory / f"run{workers}" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_time_s" in line][1:]
    return sum(line["data_wait_s"] for line in steps) / sum(line["step_time_s"] for line in steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=int, default=3, help="of the receipts: 3 is about CORD-v2's 900 pixels")
    parser.add_argument("--image-size", type=int, default=896, help="of the model: 896 is Gemma 3's")
    arguments = parser.parse_args()
    import receipts
    import tiny_vlm
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        data = receipts.save(directory / "receipts", arguments.rows, arguments.scale)
        sizes = {"image_size": arguments.image_size, "patch_size": arguments.image_size // 16, "num_image_tokens": 64}
        model = tiny_vlm.save("gemma3", directory / "model", **sizes)
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(model)
        for workers in arguments.workers:
            ours, plain = our_loader(processor, data, workers), plain_loader(processor, data, workers)
            rates = []
            for run in range(arguments.runs + 1):
                pair = images_per_second(ours, arguments.rows), images_per_second(plain, arguments.rows)
                if run:  # the first warms both up
                    rates.append(pair)
            ratio = statistics.median(our / other for our, other in rates)
            our, other = (statistics.median(rate) for rate in zip(*rates, strict=True))
            print(f"{workers} workers: {our:.0f} images/s, plain {other:.0f}; ratio {ratio:.2f}")
            print(f"  waiting for data: {data_wait(model, data, workers, directory):.1%} of the step time")


if __name__ == "__main__":
    main()
