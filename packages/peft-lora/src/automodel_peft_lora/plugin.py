"""What this plugin brings to AutoModel: LoRA, and the command that merges an adapter into its base model."""

from automodel import Provider, hookimpl

AUTOMODEL_HOOKS = 1

_NEMO_MODULES = ("nemo_automodel.components._peft.lora", "nemo_automodel._peft.lora")


@hookimpl
def peft_providers() -> tuple[Provider, ...]:
    """Adapters."""
    return (
        Provider(
            "lora",
            "automodel_peft_lora.lora:LoRA",
            aliases=tuple(f"{module}.{name}" for module in _NEMO_MODULES for name in ("LoRA", "PeftConfig")),
            summary="low-rank adapters by Hugging Face peft: LoRA, rsLoRA, DoRA, QLoRA",
        ),
    )


@hookimpl
def cli_commands() -> tuple[Provider, ...]:
    """`automodel merge`."""
    return (
        Provider(
            "merge",
            "automodel_peft_lora.merge:merge",
            summary="Merge a trained adapter into its base model, as an ordinary Hugging Face directory.",
        ),
    )
