"""What this plugin brings to AutoModel: NVIDIA's Megatron-FSDP."""

from automodel import Provider, hookimpl

AUTOMODEL_HOOKS = 1

_NEMO_MODULES = ("nemo_automodel.components.distributed.nvfsdp", "nemo_automodel.distributed.nvfsdp")


@hookimpl
def parallelism_providers() -> tuple[Provider, ...]:
    """Layouts of a model over processes."""
    return (
        Provider(
            "nvfsdp",
            "automodel_distributed_nvfsdp.nvfsdp:NVFSDPManager",
            aliases=tuple(f"{module}.NVFSDPManager" for module in _NEMO_MODULES),
            summary="NVIDIA Megatron-FSDP: shared optimizer state, gradients and parameters on CUDA devices",
        ),
    )
