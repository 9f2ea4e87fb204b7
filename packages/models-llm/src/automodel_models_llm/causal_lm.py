"""The model providers: causal language models, pretrained or with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel import InputError
from automodel.notices import notice
from automodel_huggingface.gguf_files import converted_tokenizer
from automodel_huggingface.locations import Location, locate
from automodel_huggingface.models import PretrainedModel, RandomModel
from automodel_huggingface.options import check_attention, dtype_name
from automodel_huggingface.tokenizers import load_tokenizer


def from_pretrained(
    pretrained_model_name_or_path: str,
    gguf_file: str | None = None,
    torch_dtype: str = "auto",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    use_liger_kernel: bool = False,
    use_sdpa_patching: bool = True,
    quantization_config: Any = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> PretrainedCausalLM:
    """A pretrained causal language model.

    Args:
        pretrained_model_name_or_path: a Hub id, a directory, a .gguf file, or `package:NAME[/DIRECTORY]` for a
            directory of an installed Python package.
        gguf_file: the GGUF file in that place; null finds it where there is exactly one. Its weights are dequantised.
        torch_dtype: data type of the parameters: auto, float32, bfloat16, float16, also as torch.bfloat16, bf16, ...
            `auto` is the checkpoint's own; float32 for GGUF files. In float16 training has no loss scaling here, which
            a note says: bfloat16 is safer.
        dtype: the newer spelling of torch_dtype.
        attn_implementation: sdpa (also for null), eager, flash_attention_2, flash_attention_3, flex_attention, or a
            kernel on the Hub (owner/repository). Where one cannot run, sdpa is used and a note says so.
        use_liger_kernel: fused Triton kernels of liger-kernel; where they cannot run, plain ones and a note.
        use_sdpa_patching: accepted for NeMo's recipes, with a note when it is false: PyTorch picks its SDPA kernel by
            itself either way.
        quantization_config: a transformers quantization config, as a nested `_target_`.
        revision: branch, tag or commit of the Hub repository.
        cache_dir: where the Hub's files are kept; null is the Hub's own cache.
        trust_remote_code: run Python code that comes with the model. A recipe that sets it is refused without the flag
            `--allow-target transformers_modules`; name the code's `revision` too, so that it stays what you have read.

    Raises:
        InputError: no such place, or an option with an unknown value.
    """
    if not use_sdpa_patching:
        notice("use_sdpa_patching: false has no effect here: PyTorch picks its SDPA kernel by itself either way")
    location = locate(pretrained_model_name_or_path, gguf_file)
    if location.gguf is not None and quantization_config is not None:
        raise InputError("a GGUF file is dequantised when it is loaded: quantization_config cannot be given with it")
    return PretrainedCausalLM(
        location=location,
        dtype=dtype_name(torch_dtype, dtype),
        attention=check_attention(attn_implementation),
        use_liger_kernel=use_liger_kernel,
        quantization_config=quantization_config,
        revision=revision,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
    )


def from_config(
    config: str | dict[str, Any],
    tokenizer: str | None = None,
    torch_dtype: str = "float32",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    use_liger_kernel: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> RandomCausalLM:
    """A causal language model with random weights, drawn from the run's seed.

    Args:
        config: a directory or Hub id whose config.json is taken, or a mapping with `model_type` and any of that
            model's settings. `vocab_size` and the special tokens of a mapping are the tokenizer's unless it gives them.
        tokenizer: where the tokenizer lies (as in causal-lm); null takes it from `config`, if that is a place.
        torch_dtype: data type of the parameters; a note tells of float16, as in causal-lm.
        dtype: the newer spelling of torch_dtype.
        attn_implementation: as in causal-lm.
        use_liger_kernel: as in causal-lm.
        revision: branch, tag or commit of the Hub repository.
        trust_remote_code: run Python code that comes with the model. A recipe that sets it is refused without the flag
            `--allow-target transformers_modules`; name the code's `revision` too, so that it stays what you have read.

    Raises:
        InputError: no such place or model type, no tokenizer, or an option with an unknown value.
    """
    if tokenizer is None and not isinstance(config, str):
        raise InputError("a model from a config mapping needs `tokenizer:`, the place its tokenizer is loaded from")
    if isinstance(config, dict) and "model_type" not in config:
        raise InputError("the config mapping has no `model_type` (llama, qwen3, gemma3_text, ...)")
    name = dtype_name(torch_dtype, dtype, default="float32")
    return RandomCausalLM(
        config=locate(config) if isinstance(config, str) else config,
        tokenizer=locate(tokenizer if tokenizer is not None else str(config), holds="tokenizer"),
        dtype="float32" if name == "auto" else name,
        attention=check_attention(attn_implementation),
        use_liger_kernel=use_liger_kernel,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


@dataclass(frozen=True, kw_only=True)
class PretrainedCausalLM(PretrainedModel):
    """A causal language model with a checkpoint."""

    auto_class = "AutoModelForCausalLM"
    noun = "causal language model"

    def load_processor(self) -> Any:
        """Load the tokenizer, with a pad token and a maximum length.

        Raises:
            InputError: the location has none.
        """
        return _load_tokenizer(self.location, self.revision, self.cache_dir, self.trust_remote_code)


@dataclass(frozen=True, kw_only=True)
class RandomCausalLM(RandomModel):
    """A causal language model without a checkpoint."""

    auto_class = "AutoModelForCausalLM"
    noun = "causal language model"

    tokenizer: Location

    def at(self, directory: Path) -> PretrainedCausalLM:
        """The model that `save_pretrained` has written to a directory, with these options."""
        return PretrainedCausalLM(**self._options_at(directory))

    def load_processor(self) -> Any:
        """Load the tokenizer, with a pad token and a maximum length.

        Raises:
            InputError: its location has none.
        """
        tokenizer = _load_tokenizer(self.tokenizer, self.revision, None, self.trust_remote_code)
        if isinstance(self.config, dict) and (positions := self.config.get("max_position_embeddings")):
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        return tokenizer

    def complete(self, settings: dict[str, Any]) -> None:
        """Take the number of words and the special tokens from the tokenizer."""
        tokenizer = self.load_processor()
        for token in ("bos_token_id", "eos_token_id"):  # with a pad_token_id its embedding would get no gradient
            settings.setdefault(token, getattr(tokenizer, token))
        settings.setdefault("vocab_size", len(tokenizer))


def _load_tokenizer(location: Location, revision: str | None, cache_dir: str | None, trust_remote_code: bool) -> Any:
    if location.gguf is not None:
        directory = converted_tokenizer(location.gguf_path(revision, cache_dir))
        location = Location(location.name, directory)
    return load_tokenizer(location, revision, cache_dir, trust_remote_code)
