"""What core itself brings: the same records, through the same hooks, as any third party's plugin."""

from automodel.hookspecs import hookimpl
from automodel.providers import Kind, Provider

KINDS = (
    Kind("model", sections=("model",)),
    Kind("peft", sections=("peft",)),
    Kind("dataset", sections=("dataset", "validation_dataset"), injected=("processor", "seed")),
    Kind("packing", sections=("packed_sequence",), default="best-fit", injected=("dataset", "seed")),
    Kind("collate", injected=("processor",)),
    Kind(
        "dataloader",
        sections=("dataloader", "validation_dataloader"),
        default="stateful",
        injected=("dataset", "processor", "seed", "rank", "world_size"),
    ),
    Kind("parallelism", sections=("distributed",), default="ddp", injected=("device",)),
    Kind("dist_env", sections=("dist_env",), default="process-group"),
    Kind("launcher", sections=("launcher",)),
    Kind("step_scheduler", sections=("step_scheduler",), default="steps"),
    Kind("optimizer", sections=("optimizer",), default="adamw", injected=("params",)),
    Kind("lr_scheduler", sections=("lr_scheduler",), default="constant", injected=("optimizer", "num_steps")),
    Kind("loss", sections=("loss_fn",), default="cross-entropy"),
    Kind("training", sections=("training",), default="options"),
    Kind("checkpoint", sections=("checkpoint", "checkpoint_management.checkpoint_config"), default="directory"),
    Kind("rng", sections=("rng",), default="seeds"),
    Kind("logger", named_sections=True, injected=("run",)),
)


@hookimpl
def kinds() -> tuple[Kind, ...]:
    """The kinds of provider that core knows."""
    return KINDS


@hookimpl
def packing_providers() -> tuple[Provider, ...]:
    """Ways to lay several samples into one sequence."""
    return (
        Provider("best-fit", "automodel.training.packing:best_fit", summary="sequences filled by best-fit decreasing"),
    )


@hookimpl
def collate_providers() -> tuple[Provider, ...]:
    """Collate functions."""
    return (
        Provider(
            "pad",
            "automodel.training.collate:pad",
            aliases=("nemo_automodel.components.datasets.utils.default_collater",),
            summary="rows padded on the right to the longest of the micro-batch",
        ),
    )


@hookimpl
def dataloader_providers() -> tuple[Provider, ...]:
    """Data loaders."""
    return (
        Provider(
            "stateful",
            "automodel.training.dataloader:DataLoader",
            aliases=("torchdata.stateful_dataloader.StatefulDataLoader", "torch.utils.data.DataLoader"),
            summary="torchdata's StatefulDataLoader; order depends on seed and epoch only, resumes at the sample",
        ),
    )


@hookimpl
def parallelism_providers() -> tuple[Provider, ...]:
    """The default parallelism."""
    return (
        Provider(
            "ddp",
            "automodel.parallel.ddp:DataParallel",
            aliases=(
                "nemo_automodel.components.distributed.ddp.DDPManager",
                "nemo_automodel.distributed.ddp.DDPManager",
            ),
            summary="torch DistributedDataParallel: a whole model in every process",
        ),
    )


@hookimpl
def dist_env_providers() -> tuple[Provider, ...]:
    """How processes find each other."""
    return (
        Provider(
            "process-group",
            "automodel.parallel.process_group:ProcessGroup",
            summary="torch.distributed's process group, gloo or nccl",
        ),
    )


@hookimpl
def launcher_providers() -> tuple[Provider, ...]:
    """Schedulers of clusters."""
    return (
        Provider("slurm", "automodel.launch.slurm:Slurm", summary="a batch script for Slurm's sbatch"),
        Provider("kubernetes", "automodel.launch.kubernetes:Kubernetes", summary="a Kubeflow PyTorchJob"),
    )


@hookimpl
def step_scheduler_providers() -> tuple[Provider, ...]:
    """When to accumulate, validate, save and stop."""
    return (
        Provider(
            "steps",
            "automodel.training.step_scheduler:StepScheduler",
            aliases=(
                "nemo_automodel.components.training.step_scheduler.StepScheduler",
                "nemo_automodel.training.step_scheduler.StepScheduler",
            ),
            summary="counts in optimizer steps",
        ),
    )


@hookimpl
def optimizer_providers() -> tuple[Provider, ...]:
    """AdamW with the defaults of fine-tuning; the rest of torch.optim by its short names."""
    names = {"adam": "Adam", "sgd": "SGD", "adafactor": "Adafactor", "nadam": "NAdam", "muon": "Muon"}
    return (
        Provider("adamw", "automodel.training.optimizers:adamw", summary="fused AdamW, lr 5e-5"),
        *(Provider(name, f"torch.optim:{cls}", summary=f"torch.optim.{cls}") for name, cls in names.items()),
    )


@hookimpl
def lr_scheduler_providers() -> tuple[Provider, ...]:
    """Learning rate schedules, all with a linear warm-up."""
    return (
        Provider("constant", "automodel.training.lr_schedules:constant", summary="flat after the warm-up"),
        Provider("linear", "automodel.training.lr_schedules:linear", summary="linear to min_lr_ratio"),
        Provider("cosine", "automodel.training.lr_schedules:cosine", summary="half a cosine to min_lr_ratio"),
        Provider("wsd", "automodel.training.lr_schedules:wsd", summary="warm-up, stable, decay"),
    )


@hookimpl
def loss_providers() -> tuple[Provider, ...]:
    """Loss functions."""
    return (
        Provider(
            "cross-entropy",
            "automodel.training.loss:cross_entropy",
            aliases=(
                "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy",
                "torch.nn.CrossEntropyLoss",
                "torch.nn.functional.cross_entropy",
            ),
            summary="token-weighted cross-entropy over the global batch",
        ),
    )


@hookimpl
def training_providers() -> tuple[Provider, ...]:
    """Options of the loop."""
    return (Provider("options", "automodel.training.options:TrainingOptions", summary="the training loop's options"),)


@hookimpl
def checkpoint_providers() -> tuple[Provider, ...]:
    """Checkpointers."""
    return (
        Provider(
            "directory",
            "automodel.checkpoint.checkpointer:Checkpointer",
            aliases=("nemo_automodel.components.checkpoint.checkpointing.CheckpointingConfig",),
            summary="atomic, verified directories step_<n>",
        ),
    )


@hookimpl
def rng_providers() -> tuple[Provider, ...]:
    """Seeds."""
    return (
        Provider(
            "seeds",
            "automodel.training.rng:Seeds",
            aliases=(
                "nemo_automodel.components.training.rng.StatefulRNG",
                "nemo_automodel.components.training.rng.RNG",
                "nemo_automodel.training.rng.StatefulRNG",
            ),
            summary="seeds of Python, numpy and torch, one stream a rank",
        ),
    )
