"""What this plugin brings to AutoModel: experiment trackers. Each one's name is a section of the recipe."""

from automodel import Provider, hookimpl

AUTOMODEL_HOOKS = 1


@hookimpl
def logger_providers() -> tuple[Provider, ...]:
    """Experiment trackers."""
    return (
        Provider("wandb", "automodel_loggers.wandb:WandbLogger", summary="Weights & Biases, offline where it must be"),
        Provider(
            "tensorboard", "automodel_loggers.tensorboard:TensorBoardLogger", summary="event files for TensorBoard"
        ),
    )
