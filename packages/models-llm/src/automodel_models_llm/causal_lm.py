"""The model providers: causal language models, pretrained or with random weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel import InputError
from automodel.notices import notice
from automodel.suggest import did_you_mean

from automodel_models_llm.gguf_files import converted_tokenizer, load_gguf
from automodel_models_llm.locations import Location, locate, unreachable
from automodel_models_llm.options import apply_liger, check_attention, dtype_name, usable_attention
from automodel_models_llm.saving import save_where_called
from automodel_models_llm.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


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


@dataclass(frozen=True)
class PretrainedCausalLM:
    """An `automodel.interfaces.ModelSource` with a checkpoint."""

    location: Location
    dtype: str
    attention: str
    use_liger_kernel: bool
    quantization_config: Any
    revision: str | None
    cache_dir: str | None
    trust_remote_code: bool

    @property
    def name(self) -> str:
        """The Hub id, directory or package location."""
        return self.location.name

    def load_processor(self) -> Any:
        """Load the tokenizer, with a pad token and a maximum length.

        Raises:
            InputError: the location has none.
        """
        return _load_tokenizer(self.location, self.revision, self.cache_dir, self.trust_remote_code)

    def load_module(self, device: torch.device) -> torch.nn.Module:
        """Load the model on the device.

        Raises:
            InputError: the location does not hold such a model.
        """
        _quiet_unless_terminal()
        attention = usable_attention(self.attention, device)
        module: Any
        if self.location.gguf is not None:
            path = self.location.gguf_path(self.revision, self.cache_dir)
            module = load_gguf(path, "float32" if self.dtype == "auto" else self.dtype, attention)
        else:
            module = self._load_checkpoint(attention, device)
        module.name_or_path = self.name  # what an adapter's configuration calls its base; for GGUF not a cache's path
        return _ready(module, device, self.use_liger_kernel)

    def empty_module(self, device: torch.device) -> torch.nn.Module:
        """Make the model without values, for the device that it will lie on.

        Raises:
            InputError: the location does not hold such a model, or it is to be quantised.
        """
        # imports torch, which data and tokenizers do without
        from automodel_models_llm.meta import meta_model, take_generation_config

        _quiet_unless_terminal()
        location = self._plain_location()
        config = self._config(location)
        if self.quantization_config is not None or getattr(config, "quantization_config", None) is not None:
            raise InputError(
                f"a quantised model ({self.name}) is loaded whole and cannot be sharded: use distributed: "
                "{_target_: ddp}, or a model that is not quantised"
            )
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if self.location.gguf is not None else str(config.dtype or "float32")
        module = meta_model(config, dtype, usable_attention(self.attention, device), self.trust_remote_code)
        module.name_or_path = self.name
        take_generation_config(module, location, self.revision, self.cache_dir)
        return _ready(module, device, self.use_liger_kernel)

    def load_weights(self, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give a module of `empty_module` its values; of sharded tensors each process reads its part."""
        import torch

        from automodel_models_llm.meta import fill_from_directory, fill_from_whole, fresh_buffers, weights_directory

        fresh_buffers(module)
        location = self._plain_location()
        directory = None if location.gguf is not None else weights_directory(location, self.revision, self.cache_dir)
        if directory is None or not fill_from_directory(tensors, directory):
            fill_from_whole(tensors, self.load_module, torch.device("cpu"))

    def _plain_location(self) -> Location:
        """The location; of a GGUF file the directory it was converted to, if that is kept."""
        if self.location.gguf is None:
            return self.location
        from automodel_models_llm.meta import conversion

        gguf = self.location.gguf_path(self.revision, self.cache_dir)
        directory = conversion(gguf, "float32" if self.dtype == "auto" else self.dtype)
        return self.location if directory is None else Location(self.location.name, directory)

    def _config(self, location: Location) -> Any:
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                location.source,
                revision=self.revision,
                cache_dir=self.cache_dir,
                trust_remote_code=self.trust_remote_code,
                **({} if location.gguf is None else {"gguf_file": location.gguf}),
            )
        except (OSError, ValueError) as error:
            if location.directory is None and isinstance(error, OSError):
                raise InputError(unreachable(self.name, self.revision, error)) from error
            raise InputError(f"the model {self.name} cannot be loaded: {error}") from error

    def _load_checkpoint(self, attention: str, device: torch.device) -> Any:
        from transformers import AutoModelForCausalLM

        # quantised weights are made on the device and stay there; the rest is moved at the end
        placement = {} if self.quantization_config is None else {"device_map": {"": device}}
        try:
            return AutoModelForCausalLM.from_pretrained(
                self.location.source,
                dtype=self.dtype,
                attn_implementation=attention,
                quantization_config=self.quantization_config,
                revision=self.revision,
                cache_dir=self.cache_dir,
                trust_remote_code=self.trust_remote_code,
                **placement,
            )
        except (OSError, ValueError, ImportError) as error:
            if self.location.directory is None and isinstance(error, OSError):
                raise InputError(unreachable(self.name, self.revision, error)) from error
            raise InputError(f"the model {self.name} cannot be loaded: {error}") from error


@dataclass(frozen=True)
class RandomCausalLM:
    """An `automodel.interfaces.ModelSource` without a checkpoint."""

    config: Location | dict[str, Any]
    tokenizer: Location
    dtype: str
    attention: str
    use_liger_kernel: bool
    revision: str | None
    trust_remote_code: bool

    @property
    def name(self) -> str:
        """The configuration's place, or its model type."""
        return self.config.name if isinstance(self.config, Location) else f"random {self.config['model_type']}"

    def load_processor(self) -> Any:
        """Load the tokenizer, with a pad token and a maximum length.

        Raises:
            InputError: its location has none.
        """
        tokenizer = _load_tokenizer(self.tokenizer, self.revision, None, self.trust_remote_code)
        if isinstance(self.config, dict) and (positions := self.config.get("max_position_embeddings")):
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        return tokenizer

    def load_module(self, device: torch.device) -> torch.nn.Module:
        """Make the model on the device.

        Raises:
            InputError: there is no such model type, or its settings contradict each other.
        """
        import torch
        from transformers import AutoModelForCausalLM

        _quiet_unless_terminal()
        config = self._transformers_config()
        try:
            with device:
                module = AutoModelForCausalLM.from_config(
                    config,
                    dtype=getattr(torch, self.dtype),
                    attn_implementation=usable_attention(self.attention, device),
                    trust_remote_code=self.trust_remote_code,
                )
        except (ValueError, TypeError) as error:
            raise InputError(f"no causal language model can be made from the config {self.name}: {error}") from error
        return _ready(module, device, self.use_liger_kernel)

    def empty_module(self, device: torch.device) -> torch.nn.Module:
        """Make the model without values, for the device that it will lie on.

        Raises:
            InputError: there is no such model type, or its settings contradict each other.
        """
        from automodel_models_llm.meta import meta_model  # likewise

        _quiet_unless_terminal()
        attention = usable_attention(self.attention, device)
        module = meta_model(self._transformers_config(), self.dtype, attention, self.trust_remote_code)
        return _ready(module, device, self.use_liger_kernel)

    def load_weights(self, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Draw the values that `load_module` would draw, and give each process its part."""
        from automodel_models_llm.meta import fill_from_whole, fresh_buffers

        fresh_buffers(module)
        fill_from_whole(tensors, self.load_module, next(iter(tensors.values())).device)

    def _transformers_config(self) -> Any:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING, AutoConfig

        if isinstance(self.config, dict):
            settings = dict(self.config)
            model_type = settings.pop("model_type")
            if model_type not in CONFIG_MAPPING:
                raise InputError(
                    f"transformers knows no model_type {model_type}{did_you_mean(model_type, CONFIG_MAPPING)}"
                )
            tokenizer = self.load_processor()
            for token in ("bos_token_id", "eos_token_id"):  # with a pad_token_id its embedding would get no gradient
                settings.setdefault(token, getattr(tokenizer, token))
            settings.setdefault("vocab_size", len(tokenizer))
            try:
                return CONFIG_MAPPING[model_type](**settings)
            except (StrictDataclassError, ValueError, TypeError) as error:
                raise InputError(f"the config of {self.name} is not valid: {error.__cause__ or error}") from error
        try:
            kwargs = {"gguf_file": self.config.gguf} if self.config.gguf is not None else {}
            return AutoConfig.from_pretrained(
                self.config.source, revision=self.revision, trust_remote_code=self.trust_remote_code, **kwargs
            )
        except OSError as error:
            raise InputError(unreachable(self.config.name, self.revision, error)) from error


def _load_tokenizer(location: Location, revision: str | None, cache_dir: str | None, trust_remote_code: bool) -> Any:
    if location.gguf is not None:
        directory: Path = converted_tokenizer(location.gguf_path(revision, cache_dir))
        location = Location(location.name, directory)
    return load_tokenizer(location, revision, cache_dir, trust_remote_code)


def _ready(module: Any, device: torch.device, use_liger_kernel: bool) -> torch.nn.Module:
    if str(module.dtype) == "torch.float16":  # also where the checkpoint's own data type was taken
        notice(
            "the model is in float16, for which there is no loss scaling here: small gradients, and the eps of AdamW, "
            "become 0; torch_dtype: bfloat16 is safer"
        )
    save_where_called(module)
    if use_liger_kernel:
        apply_liger(module, device)
    return module if module.device.type == "meta" else module.to(device)


def _quiet_unless_terminal() -> None:
    """Keep transformers from drawing progress bars, now and when a checkpoint is saved, where no person watches."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
