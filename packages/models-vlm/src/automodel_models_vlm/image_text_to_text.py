"""The model providers: vision-language models, pretrained or with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel import InputError
from automodel.notices import notice
from automodel_huggingface.locations import Location, locate
from automodel_huggingface.models import PretrainedModel, RandomModel
from automodel_huggingface.options import check_attention, dtype_name

from automodel_models_vlm.freezing import freeze_parameters
from automodel_models_vlm.processors import load_processor


def from_pretrained(
    pretrained_model_name_or_path: str,
    freeze: list[str] | str | None = None,
    processor: dict[str, Any] | None = None,
    torch_dtype: str = "auto",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    use_liger_kernel: bool = False,
    use_sdpa_patching: bool = True,
    quantization_config: Any = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> PretrainedVisionLanguageModel:
    """A pretrained model that reads images and text and writes text.

    Args:
        pretrained_model_name_or_path: a Hub id, a directory, or `package:NAME[/DIRECTORY]` for a directory of an
            installed Python package.
        freeze: what is not trained: `vision_tower`, `projector`, `language_model`, `embeddings`, or patterns with `*`
            for names of parameters. Adapters (`peft`) freeze all of the model anyway.
        processor: settings of the processor that differ from the checkpoint's, such as `{max_pixels: 501760}`.
        torch_dtype: data type of the parameters: auto (the checkpoint's own), float32, bfloat16, float16, also as
            torch.bfloat16, bf16, ...
        dtype: the newer spelling of torch_dtype.
        attn_implementation: sdpa (also for null), eager, flash_attention_2, ..., or a kernel on the Hub
            (owner/repository). Where one cannot run, sdpa is used and a note says so.
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
    return PretrainedVisionLanguageModel(
        location=_located(pretrained_model_name_or_path),
        freeze=_listed(freeze),
        processor=processor or {},
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
    processor_name_or_path: str | None = None,
    freeze: list[str] | str | None = None,
    processor: dict[str, Any] | None = None,
    torch_dtype: str = "float32",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    use_liger_kernel: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> RandomVisionLanguageModel:
    """A vision-language model with random weights, drawn from the run's seed.

    Args:
        config: a directory or Hub id whose config.json is taken, or a mapping with `model_type` and any of that
            model's settings.
        processor_name_or_path: where the processor lies; null takes it from `config`, if that is a place.
        freeze: as in image-text-to-text.
        processor: as in image-text-to-text.
        torch_dtype: data type of the parameters.
        dtype: the newer spelling of torch_dtype.
        attn_implementation: as in image-text-to-text.
        use_liger_kernel: as in image-text-to-text.
        revision: branch, tag or commit of the Hub repository.
        trust_remote_code: as in image-text-to-text.

    Raises:
        InputError: no such place or model type, no processor, or an option with an unknown value.
    """
    if processor_name_or_path is None and not isinstance(config, str):
        raise InputError("a model from a config mapping needs `processor_name_or_path:`, where its processor lies")
    if isinstance(config, dict) and "model_type" not in config:
        raise InputError("the config mapping has no `model_type` (gemma3, qwen3_vl, smolvlm, llava, ...)")
    name = dtype_name(torch_dtype, dtype, default="float32")
    return RandomVisionLanguageModel(
        config=_located(config) if isinstance(config, str) else config,
        processor_location=_located(processor_name_or_path or str(config)),
        freeze=_listed(freeze),
        processor=processor or {},
        dtype="float32" if name == "auto" else name,
        attention=check_attention(attn_implementation),
        use_liger_kernel=use_liger_kernel,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


@dataclass(frozen=True, kw_only=True)
class _VisionLanguageModel:
    """What is the same with and without a checkpoint."""

    auto_class = "AutoModelForImageTextToText"
    noun = "vision-language model"

    freeze: tuple[str, ...]
    processor: dict[str, Any]

    def prepare(self, module: Any) -> None:
        """Freeze what is not to be trained."""
        freeze_parameters(module, self.freeze)


@dataclass(frozen=True, kw_only=True)
class PretrainedVisionLanguageModel(_VisionLanguageModel, PretrainedModel):
    """A vision-language model with a checkpoint."""

    def load_processor(self) -> Any:
        """Load the processor of images and text.

        Raises:
            InputError: the location has none.
        """
        return load_processor(self.location, self.processor, self.revision, self.cache_dir, self.trust_remote_code)


@dataclass(frozen=True, kw_only=True)
class RandomVisionLanguageModel(_VisionLanguageModel, RandomModel):
    """A vision-language model without a checkpoint."""

    processor_location: Location

    def at(self, directory: Path) -> PretrainedVisionLanguageModel:
        """The model that `save_pretrained` has written to a directory, with these options."""
        options = self._options_at(directory)
        return PretrainedVisionLanguageModel(freeze=self.freeze, processor=self.processor, **options)

    def load_processor(self) -> Any:
        """Load the processor of images and text.

        Raises:
            InputError: its location has none.
        """
        return load_processor(self.processor_location, self.processor, self.revision, None, self.trust_remote_code)


def _located(name: str) -> Location:
    location = locate(name)
    if location.gguf is not None:
        raise InputError(f"{name} is a GGUF file, which transformers reads for models of text only")
    return location


def _listed(freeze: list[str] | str | None) -> tuple[str, ...]:
    return (freeze,) if isinstance(freeze, str) else tuple(freeze or ())
