"""What this plugin brings to AutoModel: FSDP2 with HSDP, tensor and context parallelism."""

from automodel import Provider, hookimpl

AUTOMODEL_HOOKS = 1

_NEMO_MODULES = ("nemo_automodel.components.distributed.fsdp2", "nemo_automodel.distributed.fsdp2")


@hookimpl
def parallelism_providers() -> tuple[Provider, ...]:
    """Layouts of a model over processes."""
    return (
        Provider(
            "fsdp2",
            "automodel_distributed_fsdp2.fsdp2:FSDP2Manager",
            aliases=tuple(f"{module}.FSDP2Manager" for module in _NEMO_MODULES),
            summary="torch FSDP2: full or hybrid sharding, with tensor and context parallelism",
        ),
    )
