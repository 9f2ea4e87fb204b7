"""The provider `lora`: low-rank adapters on a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from automodel import InputError
from automodel.notices import notice
from automodel.parallel.process_group import is_first
from automodel.parallel.weights import broadcast_weights
from automodel.suggest import did_you_mean
from peft import LoraConfig, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from automodel_peft_lora.adapter_model import AdapterModel, check_fit, saved_names
from automodel_peft_lora.checkpoints import ADAPTER_WEIGHTS
from automodel_peft_lora.low_rank import fuse_adapters
from automodel_peft_lora.merging import merge_adapter
from automodel_peft_lora.targets import ALL_LINEAR, check_modules_to_save, choose_modules, linear_modules, shortest

DEFAULT_RANK = 16
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al., 2021, arXiv:2106.09685), made by Hugging Face peft.

    Args:
        target_modules: the modules that get an adapter: `all-linear` (every linear module but the output head), or
            names (`q_proj`, `self_attn.q_proj`), wildcards (`*_proj`, `model.layers.1*.mlp.*`) and regular expressions
            for full names. Each entry must match something.
        r: the rank; 16 if neither this nor `dim` is given.
        dim: NeMo's name for `r`.
        alpha: the update is scaled by alpha / r.
        dropout: probability that an element of an adapter's input is zeroed in training.
        exclude_modules: modules that get none although `target_modules` means them; written like those.
        match_all_linear: NeMo's way to say `target_modules: all-linear`.
        modules_to_save: names of modules that are trained whole and saved with the adapter, such as `lm_head`.
        layers_to_transform: numbers of the layers whose modules get an adapter; null for all.
        bias: which bias vectors are trained as well: those of no module, all modules, or the adapted ones.
        use_rslora: scale by alpha / sqrt(r), which keeps high ranks learning (arXiv:2312.03732).
        use_dora: learn the length of each weight vector apart from its direction (arXiv:2402.09353); slower.
        init: how A starts, with B zero: `default` (Kaiming uniform), `gaussian` (standard deviation 1 / r); or
            `orthogonal` (as in peft), where neither is zero but their product is; r must be even for it.
        lora_A_init: NeMo's choice of A's start; `kaiming` is the same as `init: default`.
        lora_dtype: data type of the adapters: float32, bfloat16, float16, in which they are also computed. Null keeps
            float32 weights, and computes in bfloat16 where the base does; in float32 where peft's own layers compute
            (DoRA, quantised bases, tensor parallelism, compiled layers).
        dropout_position: `pre`: dropout acts on an adapter's input, as in peft. NeMo's `post` is accepted with a note.
        use_triton: accepted for NeMo's recipes, with a note: adapters are computed by PyTorch.

    Raises:
        InputError: values that contradict each other or are out of range.
    """

    target_modules: list[str] | str = "all-linear"
    r: int | None = None
    dim: int | None = None
    alpha: float = 32
    dropout: float = 0.0
    exclude_modules: list[str] | str | None = None
    match_all_linear: bool = False
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init: Literal["default", "gaussian", "orthogonal"] = "default"
    lora_A_init: Literal["xavier", "kaiming"] | None = None  # noqa: N815  (NeMo's name)
    lora_dtype: str | None = None
    dropout_position: Literal["pre", "post"] = "pre"
    use_triton: bool = False

    def __post_init__(self) -> None:
        if self.r is not None and self.dim is not None:
            raise InputError(f"r: {self.r} and dim: {self.dim} are two names for the rank; give one")
        if self.rank < 1:
            raise InputError(f"the rank (r) must be at least 1, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if self.alpha <= 0:
            raise InputError(f"alpha must be above 0, not {self.alpha}")
        if self.match_all_linear and self.target_modules != ALL_LINEAR:
            raise InputError(f"match_all_linear and target_modules: {self.target_modules} contradict each other")
        if not self.target_modules:
            raise InputError(f"target_modules is empty; `{ALL_LINEAR}` means every linear module but the output head")
        if self.init != "default" and self.lora_A_init is not None:
            raise InputError(f"init: {self.init} and lora_A_init: {self.lora_A_init} contradict each other")
        if self.init == "orthogonal" and self.rank % 2:
            raise InputError(f"init: orthogonal needs an even rank, not {self.rank}")
        self._dtype()

    @property
    def rank(self) -> int:
        """The rank, under whichever name it was given."""
        given = self.r if self.r is not None else self.dim
        return DEFAULT_RANK if given is None else given

    def apply(self, module: nn.Module) -> nn.Module:
        """Put adapters on the model, in place, and return it wrapped as a `peft.PeftModel`.

        The parameters of the adapters (and of `modules_to_save`, and biases if asked for) are the only ones that
        require a gradient.

        Raises:
            InputError: an entry of `target_modules` or `modules_to_save` matches nothing in this model.
        """
        if self.use_triton:
            notice("use_triton: NeMo's Triton kernels are not used; PyTorch computes the adapters")
        if self.dropout_position == "post" and self.dropout:
            notice("dropout_position: post is NeMo's; dropout acts on the adapters' input here, as in peft")
        if any(isinstance(one, BaseTunerLayer) for one in module.modules()):
            raise InputError("this model has adapters already; merge them first (`automodel merge`)")
        config = self._config(module)
        if any(parameter.is_meta for parameter in module.parameters()):
            return self._apply_without_values(module, config)
        if _is_quantised(module):
            module = prepare_model_for_kbit_training(module, use_gradient_checkpointing=False)
        adapted = AdapterModel(module, config, autocast_adapter_dtype=True)
        fuse_adapters(adapted, in_own_dtype=self.lora_dtype is not None)
        _start(adapted, self.lora_A_init)
        if (dtype := self._dtype()) is not None:
            _cast(adapted, dtype)
        return adapted

    def load(self, module: nn.Module, directory: Path) -> None:
        """Give the adapters that `apply` put on a model the values in `directory`; all processes call it together.

        Raises:
            InputError: they do not fit, or the file is damaged.
        """
        names = saved_names(module)
        check_fit(directory, {saved: value.shape for saved, value in names.items()})
        whole = load_file(directory / ADAPTER_WEIGHTS) if is_first() else None
        broadcast_weights(whole, names)

    def merge(self, module: nn.Module, directory: Path) -> nn.Module:
        """Add the adapter in `directory` to its base, in place; the sum and the model are in the wider data type.

        Raises:
            InputError: it does not fit the base, is damaged, or holds numbers that are not finite.
        """
        # to mypy any attribute of a Module is a Tensor or a Module; a transformers model's is a data type
        wider = torch.promote_types(module.dtype, self._dtype() or torch.float32)  # type: ignore[arg-type]
        return merge_adapter(module, directory, str(wider).removeprefix("torch."))[0]

    def _apply_without_values(self, module: nn.Module, config: LoraConfig) -> nn.Module:
        """The same for a model on the meta device: its adapters have their values, as on a model that has its own."""
        for option in ("use_dora", "modules_to_save"):
            if getattr(self, option):
                raise InputError(
                    f"{option} needs the model's own weights, which a sharded model does not have when adapters are "
                    "put on it: use distributed: {_target_: ddp}, or leave it out"
                )
        with _KeepValues():
            adapted = AdapterModel(module, config, autocast_adapter_dtype=True)
        fuse_adapters(adapted, in_own_dtype=self.lora_dtype is not None)
        _start(adapted, self.lora_A_init)
        if (dtype := self._dtype()) is not None:
            _cast(adapted, dtype)
        return adapted

    def _config(self, module: nn.Module) -> LoraConfig:
        chosen = choose_modules(
            module, _as_list(self.target_modules), _as_list(self.exclude_modules), _layers(self.layers_to_transform)
        )
        check_modules_to_save(module, self.modules_to_save or [])
        linear = linear_modules(module)
        transposed = [name for name in chosen if name in linear and not isinstance(linear[name], nn.Linear)]
        head: Any = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        # what has a head is a PreTrainedModel, which mypy has forgotten by here
        embedding: Any = module.get_input_embeddings() if head is not None else None  # type: ignore[operator]
        tied = head is not None and head.weight is embedding.weight
        return LoraConfig(
            task_type="CAUSAL_LM" if type(module).__name__.endswith("ForCausalLM") else None,
            target_modules=shortest(chosen, [name for name, _ in module.named_modules()]),
            r=self.rank,
            lora_alpha=int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            lora_dropout=self.dropout,
            fan_in_fan_out=bool(transposed) and len(transposed) == len(chosen),
            bias=self.bias,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            init_lora_weights=True if self.init == "default" else self.init,
            modules_to_save=list(self.modules_to_save) if self.modules_to_save else None,
            ensure_weight_tying=tied and bool(self.modules_to_save),
        )

    def _dtype(self) -> torch.dtype | None:
        if self.lora_dtype is None:
            return None
        name = self.lora_dtype.removeprefix("torch.").lower()
        if name not in DTYPES:
            raise InputError(f"lora_dtype: `{self.lora_dtype}` is no data type of adapters{did_you_mean(name, DTYPES)}")
        return DTYPES[name]


class _KeepValues(TorchFunctionMode):
    """peft draws adapters on the CPU, then moves them to their base's device; on meta their values would be lost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            # private (torch 2.15): what Tensor.to itself reads its arguments with; test_parallel.py tells if it goes
            device, dtype, _, _ = torch._C._nn._parse_to(*args[1:], **{k: v for k, v in kwargs.items() if k != "copy"})
            if device is not None and device.type == "meta" and not args[0].is_meta:
                return args[0] if dtype is None else args[0].to(dtype)
        return func(*args, **kwargs)


def _as_list(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _layers(value: list[int] | int | None) -> set[int] | None:
    return {value} if isinstance(value, int) else None if value is None else set(value)


def _is_quantised(module: Any) -> bool:
    """Whether bitsandbytes holds the weights in 4 or 8 bits; transformers marks such a model by these attributes."""
    return bool(getattr(module, "is_loaded_in_4bit", False) or getattr(module, "is_loaded_in_8bit", False))


def _adapters(adapted: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in adapted.named_parameters() if ".lora_" in name]


def _start(adapted: nn.Module, lora_a_init: str | None) -> None:
    """Draw A anew as NeMo does where it is asked for; B stays zero."""
    if lora_a_init == "xavier":
        for name, value in _adapters(adapted):
            if ".lora_A." in name:
                nn.init.xavier_normal_(value)


def _cast(adapted: nn.Module, dtype: torch.dtype) -> None:
    for _, value in _adapters(adapted):
        value.data = value.data.to(dtype)
