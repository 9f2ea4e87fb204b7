"""Models of transformers, pretrained or with random weights: known at once, loaded whole or in parts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from automodel import InputError
from automodel.notices import notice
from automodel.suggest import did_you_mean

from automodel_huggingface.gguf_files import load_gguf
from automodel_huggingface.locations import Location, unreachable
from automodel_huggingface.options import apply_liger, usable_attention
from automodel_huggingface.saving import save_where_called

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from automodel.interfaces import DocumentInputs


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What all models have: options, and the auto class of transformers that knows them."""

    auto_class: ClassVar[str]
    """The class of transformers that loads such a model."""
    noun: ClassVar[str]
    """What people call such a model."""

    dtype: str
    attention: str
    use_liger_kernel: bool
    revision: str | None
    trust_remote_code: bool

    def _options_at(self, directory: Path) -> dict[str, Any]:
        """The fields of the `PretrainedModel` that `save_pretrained` has written to a directory, with these options."""
        return {
            "location": Location(str(directory), directory),
            "dtype": self.dtype,
            "attention": self.attention,
            "use_liger_kernel": self.use_liger_kernel,
            "quantization_config": None,
            "revision": None,
            "cache_dir": None,
            "trust_remote_code": self.trust_remote_code,
        }

    def prepare(self, module: Any) -> None:
        """Change a model that was just made, in place; by default nothing is changed."""

    def document_inputs(self, module: torch.nn.Module) -> DocumentInputs | None:
        """How documents that lie end to end are told to a model that this has made (`PaddingFree`)."""
        from automodel_huggingface.attention import document_inputs

        return document_inputs(module)

    def _ready(self, module: Any, device: torch.device) -> torch.nn.Module:
        if str(module.dtype) == "torch.float16":  # also where the checkpoint's own data type was taken
            notice(
                "the model is in float16, for which there is no loss scaling here: small gradients, and the eps of "
                "AdamW, become 0; torch_dtype: bfloat16 is safer"
            )
        save_where_called(module)
        self.prepare(module)
        from automodel_huggingface.attention import attend_within_documents  # imports torch
        from automodel_huggingface.fused_layers import fuse_layers

        fuse_layers(module)
        if module.config._attn_implementation == "sdpa":
            attend_within_documents(module)
        if self.use_liger_kernel:
            apply_liger(module, device)
        return module if module.device.type == "meta" else module.to(device)

    def _meta(self, config: Any, dtype: str, device: torch.device) -> Any:
        from automodel_huggingface.meta import meta_model  # imports torch, which data and tokenizers do without

        attention = usable_attention(self.attention, device)
        return meta_model(self.auto_class, self.noun, config, dtype, attention, self.trust_remote_code)


@dataclass(frozen=True, kw_only=True)
class PretrainedModel(_Model):
    """An `automodel.interfaces.ModelSource` with a checkpoint; a subclass has its `load_processor`."""

    location: Location
    quantization_config: Any
    cache_dir: str | None

    @property
    def name(self) -> str:
        """The Hub id, directory or package location."""
        return self.location.name

    def at(self, directory: Path) -> Self:
        """The model that `save_pretrained` has written to a directory, with these options."""
        return replace(self, **self._options_at(directory))

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
        return self._ready(module, device)

    def empty_module(self, device: torch.device) -> torch.nn.Module:
        """Make the model without values, for the device that it will lie on.

        Raises:
            InputError: the location does not hold such a model, or it is to be quantised.
        """
        from automodel_huggingface.meta import take_generation_config

        _quiet_unless_terminal()
        location = self._plain_location()
        config = self._config(location)
        # an attribute that only the configurations of quantised checkpoints have
        if self.quantization_config is not None or getattr(config, "quantization_config", None) is not None:
            raise InputError(
                f"a quantised model ({self.name}) is loaded whole and cannot be sharded: use distributed: "
                "{_target_: ddp}, or a model that is not quantised"
            )
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if self.location.gguf is not None else str(config.dtype or "float32")
        module = self._meta(config, dtype, device)
        module.name_or_path = self.name
        take_generation_config(module, location, self.revision, self.cache_dir)
        return self._ready(module, device)

    def load_weights(self, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give a module of `empty_module` its values; of sharded tensors each process reads its part."""
        import torch

        from automodel_huggingface.meta import fill_from_directory, fill_from_whole, fresh_buffers, weights_directory

        fresh_buffers(module)
        location = self._plain_location()
        directory = None if location.gguf is not None else weights_directory(location, self.revision, self.cache_dir)
        if directory is None or not fill_from_directory(tensors, directory):
            fill_from_whole(tensors, self.load_module, torch.device("cpu"))

    def _plain_location(self) -> Location:
        """The location; of a GGUF file the directory it was converted to, if that is kept."""
        if self.location.gguf is None:
            return self.location
        from automodel_huggingface.meta import conversion

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
        import transformers

        # quantised weights are made on the device and stay there; the rest is moved at the end
        placement = {} if self.quantization_config is None else {"device_map": {"": device}}
        try:
            return getattr(transformers, self.auto_class).from_pretrained(
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


@dataclass(frozen=True, kw_only=True)
class RandomModel(_Model):
    """An `automodel.interfaces.ModelSource` without a checkpoint; a subclass has its `load_processor`."""

    config: Location | dict[str, Any]

    @property
    def name(self) -> str:
        """The configuration's place, or its model type."""
        return self.config.name if isinstance(self.config, Location) else f"random {self.config['model_type']}"

    def load_module(self, device: torch.device) -> torch.nn.Module:
        """Make the model on the device.

        Raises:
            InputError: there is no such model type, or its settings contradict each other.
        """
        import torch
        import transformers

        _quiet_unless_terminal()
        config = self._transformers_config()
        try:
            with device:
                module = getattr(transformers, self.auto_class).from_config(
                    config,
                    dtype=getattr(torch, self.dtype),
                    attn_implementation=usable_attention(self.attention, device),
                    trust_remote_code=self.trust_remote_code,
                )
        except (ValueError, TypeError) as error:
            raise InputError(f"no {self.noun} can be made from the config {self.name}: {error}") from error
        return self._ready(module, device)

    def empty_module(self, device: torch.device) -> torch.nn.Module:
        """Make the model without values, for the device that it will lie on.

        Raises:
            InputError: there is no such model type, or its settings contradict each other.
        """
        _quiet_unless_terminal()
        return self._ready(self._meta(self._transformers_config(), self.dtype, device), device)

    def load_weights(self, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Draw the values that `load_module` would draw, and give each process its part."""
        from automodel_huggingface.meta import fill_from_whole, fresh_buffers

        fresh_buffers(module)
        fill_from_whole(tensors, self.load_module, next(iter(tensors.values())).device)

    def complete(self, settings: dict[str, Any]) -> None:
        """Add what a config mapping leaves out, in place; by default it stays transformers' own."""

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
            self.complete(settings)
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


def _quiet_unless_terminal() -> None:
    """Keep transformers from drawing progress bars, now and when a checkpoint is saved, where no person watches."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
