"""Whether an exported model says what the trained one said."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from automodel import RunError
from torch import Tensor
from torch.nn import functional as F

from automodel_deploy.levels import Level, attention, auto_class, is_remote

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Why is 17 a prime number?",
    "Translate to German: good morning",
)
GENERATION = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "use_cache": True}
IMAGE_SIZE = 224
BOUNDS = {"O2": (0.1, 0.05), "O3": (0.2, 0.1)}
"""Of a level that rounds: the mean difference of logits in standard deviations of the logits, and the mean
Kullback-Leibler divergence in nats. docs/export.md has what was measured."""


@dataclass(frozen=True)
class Answers:
    """What a model says to the prompts.

    Args:
        logits_NV: float32, at each of the N positions of all prompts.
        tokens: that it generates greedily after each prompt.
    """

    logits_NV: Tensor  # noqa: N815  (N positions, V words)
    tokens: list[list[int]]


@dataclass(frozen=True)
class Trained:
    """What must be known of the trained model to verify an export when the model itself is gone.

    Args:
        loader: the auto class of transformers that loads it.
        options: for `from_pretrained`, such that it computes as the trained model did.
        prompts: the model's inputs, of one prompt each.
        answers: the trained model's.
    """

    loader: Any
    options: dict[str, Any]
    prompts: list[dict[str, Any]]
    answers: Answers


@dataclass(frozen=True)
class Figures:
    """How an exported model differs from the trained one.

    Args:
        num_positions: of the prompts, at which logits were compared.
        num_tokens: that the trained model generated.
        same_tokens: the share of them before the first one that differs.
        same_predictions: the share of positions with the same most likely next token.
        max_difference: of logits, in standard deviations of the trained model's logits.
        mean_difference: in the same unit.
        divergence: mean Kullback-Leibler divergence from the trained model's next-token distribution, in nats.
    """

    num_positions: int
    num_tokens: int
    same_tokens: float
    same_predictions: float
    max_difference: float
    mean_difference: float
    divergence: float

    def __str__(self) -> str:
        if self.max_difference == 0 and self.same_tokens == 1:
            what = f"logits at {self.num_positions} positions and {self.num_tokens} generated tokens"
            return f"{what} equal the trained model's"
        return (
            f"{self.same_tokens:.0%} of {self.num_tokens} generated tokens and {self.same_predictions:.0%} of "
            f"{self.num_positions} predictions are the trained model's; logits differ by {self.mean_difference:.2g} "
            f"standard deviations, {self.divergence:.2g} nats"
        )


def trained(module: Any, processor: Any) -> Trained:
    """Ask the trained model.

    Args:
        module: on the CPU, in eval mode.
        processor: its tokenizer or processor.

    Raises:
        RunError: its logits are not finite.
    """
    prompts = encoded(processor)
    answers = ask(module, prompts)
    if not answers.logits_NV.isfinite().all():
        raise RunError("the trained model's logits are not finite numbers: it is not exported")
    options = {"attn_implementation": attention(module), "trust_remote_code": is_remote(module)}
    return Trained(auto_class(module), options, prompts, answers)


def verify(directory: Path, expected: Trained, level: Level) -> dict[str, Any]:
    """Load an exported directory as users of transformers do, and compare it with the trained model.

    Raises:
        RunError: tensors are missing or superfluous, the tokenizer gives other tokens, or the answers differ by more
            than the level allows.
    """
    module, loaded = expected.loader.from_pretrained(str(directory), output_loading_info=True, **expected.options)
    unread = loaded["unexpected_keys"] if level != "O0" else ()
    if wrong := sorted({*loaded["missing_keys"], *unread, *map(str, loaded["mismatched_keys"])}):
        raise RunError(f"the export does not hold what transformers loads: {', '.join(wrong[:5])}")
    _compare_prompts(directory, expected)
    figures = compare(expected.answers, ask(module.eval(), expected.prompts))
    if failed := violated(figures, level):
        raise RunError(f"the exported model is not the trained one: {failed}. {figures}")
    return asdict(figures) | {"text": str(figures)}


def encoded(processor: Any) -> list[dict[str, Any]]:
    """The prompts as the model's inputs, through the chat template if there is one; with an image if it reads them."""
    if isinstance(processor, transformers.PreTrainedTokenizerBase):
        return [_of_text(processor, prompt) for prompt in PROMPTS]
    if processor.chat_template is None:  # where an image goes in the text is not known
        return [_of_text(processor.tokenizer, prompt) for prompt in PROMPTS]
    return [_of_image_and_text(processor, prompt) for prompt in PROMPTS]


def _of_text(tokenizer: Any, prompt: str) -> dict[str, Any]:
    if tokenizer.chat_template is None:
        return dict(tokenizer(prompt, return_tensors="pt"))
    messages = [{"role": "user", "content": prompt}]
    return dict(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    )


def _of_image_and_text(processor: Any, prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    shades = torch.arange(IMAGE_SIZE).expand(3, IMAGE_SIZE, IMAGE_SIZE).to(torch.uint8)  # from black to nearly white
    return dict(processor(text=[text], images=[shades], return_tensors="pt"))


@torch.no_grad()
def ask(module: Any, prompts: list[dict[str, Any]]) -> Answers:
    """Logits at all positions of the prompts, and a greedy generation after each."""
    logits, tokens = [], []
    for prompt in prompts:
        inputs = {name: _in_dtype(value, module.dtype) for name, value in prompt.items()}
        logits.append(module(**inputs).logits[0].float())
        generated = module.generate(**inputs, **GENERATION)
        tokens.append(generated[0, prompt["input_ids"].shape[1] :].tolist())
    return Answers(torch.cat(logits), tokens)


def _in_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def compare(expected: Answers, found: Answers) -> Figures:
    """How the answers differ."""
    scale = expected.logits_NV.std().item()
    differences = (found.logits_NV - expected.logits_NV).abs() / scale
    equal = sum(_num_equal(ours, theirs) for ours, theirs in zip(expected.tokens, found.tokens, strict=True))
    num_tokens = sum(map(len, expected.tokens))
    # in float64: torch's float32 loses small probabilities of a large vocabulary, and a small divergence with them
    found_NV, expected_NV = (answers.logits_NV.double().log_softmax(-1) for answers in (found, expected))
    return Figures(
        num_positions=len(differences),
        num_tokens=num_tokens,
        same_tokens=equal / num_tokens,
        same_predictions=(expected.logits_NV.argmax(-1) == found.logits_NV.argmax(-1)).float().mean().item(),
        max_difference=differences.max().item(),
        mean_difference=differences.mean().item(),
        divergence=F.kl_div(found_NV, expected_NV, reduction="batchmean", log_target=True).item(),
    )


def _num_equal(expected: list[int], found: list[int]) -> int:
    """Tokens before the first one that differs."""
    pairs = zip(expected, found, strict=False)
    return next(
        (number for number, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(expected), len(found))
    )


def violated(figures: Figures, level: Level) -> str | None:
    """Which bound of the level the figures break; O0 and O1 allow no difference at all."""
    if level in ("O0", "O1"):
        return None if figures.max_difference == 0 and figures.same_tokens == 1 else "not equal"
    for name, value, bound in zip(
        ("logits differ by", "the divergence is"),
        (figures.mean_difference, figures.divergence),
        BOUNDS[level],
        strict=True,
    ):
        if not value <= bound:
            return f"{name} {value:.3g}, more than the {bound} of {level}"
    return None


def _compare_prompts(directory: Path, expected: Trained) -> None:
    """Check that the exported tokenizer and chat template give the same tokens."""
    loader = (
        transformers.AutoProcessor if (directory / "processor_config.json").exists() else transformers.AutoTokenizer
    )
    processor = loader.from_pretrained(str(directory), trust_remote_code=expected.options["trust_remote_code"])
    for ours, theirs in zip(expected.prompts, encoded(processor), strict=True):
        if not torch.equal(ours["input_ids"], theirs["input_ids"]):
            raise RunError("the exported tokenizer or chat template gives other tokens than the trained model's")
