"""From a checked recipe to the parts of a run, in the order that finds mistakes soonest: data, then model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pluggy
import torch
from torch import nn

from automodel.checkpoint.checkpointer import Checkpointer
from automodel.checkpoint.state import fingerprint
from automodel.errors import InputError
from automodel.garbage import collector_paused
from automodel.interfaces import DocumentInputs, Loader, ModelSource, PaddingFree, Parallelism, Peft, Run
from automodel.notices import notice
from automodel.parallel.groups import group_rank, group_size
from automodel.parallel.process_group import is_first, local_rank
from automodel.parallel.weights import give_memory, leave_mapped_files, parameter_slots
from automodel.recipe import Recipe, Target
from automodel.suggest import did_you_mean
from automodel.training.activation_checkpointing import checkpoint_activations
from automodel.training.compilation import compile_layers
from automodel.training.label_tokens import keeps_documents_apart
from automodel.training.linear import use_onednn
from automodel.training.options import TrainingOptions
from automodel.training.parts import Parts
from automodel.training.rng import Seeds
from automodel.training.step_scheduler import StepScheduler
from automodel.training.validation import METRICS

_ORDER_ARGUMENTS = ("shuffle", "sampler", "drop_last")


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads, and the model it is for: known, but not loaded."""

    source: ModelSource
    processor: Any
    loader: Loader
    validation_loader: Loader | None
    scheduler: StepScheduler
    seeds: Seeds
    parallelism: Parallelism


@contextmanager
def processes(recipe: Recipe) -> Iterator[torch.device]:
    """Join the processes of the run for the time of the context; gives this one's device.

    Raises:
        InputError: there is no such device here, or the processes cannot find each other.
    """
    options: TrainingOptions = build(recipe, "training")
    device = pick_device(options.device)
    with build(recipe, "dist_env").running(device):
        yield device


def build_data(recipe: Recipe, device: torch.device) -> Data:
    """Build what can be wrong with data before a model is loaded.

    Args:
        recipe: a checked one.
        device: of this process, for the layout of processes that says who reads what.

    Raises:
        InputError: anything about the recipe's data, tokenizer or batch sizes is wrong.
    """
    recipe.require("model", "dataset")
    seeds: Seeds = build(recipe, "rng")
    seeds.apply()
    scheduler: StepScheduler = build(recipe, "step_scheduler")
    source: ModelSource = build(recipe, "model")
    processor = source.load_processor()
    parallelism: Parallelism = build(recipe, "distributed", device=device)
    share = {"rank": group_rank(parallelism.dp_group), "world_size": group_size(parallelism.dp_group)}
    given = {"processor": processor, "seed": seeds.seed, **share}
    dataset = build(recipe, "dataset", **given)
    if recipe.has("packed_sequence"):
        dataset = build(recipe, "packed_sequence", dataset=dataset, **given)
    loader_target = recipe.target("dataloader")
    assert loader_target is not None  # the kind has a default
    loader_target = _with_local_batch_size(recipe, loader_target, scheduler)
    validation_loader = None
    if recipe.has("validation_dataset"):
        validation_target = recipe.target("validation_dataloader") if recipe.has("validation_dataloader") else None
        if validation_target is None:
            kept = {name: value for name, value in loader_target.kwargs.items() if name not in _ORDER_ARGUMENTS}
            validation_target = dataclasses.replace(loader_target, kwargs=kept)
        if validation_target.accepts("sampler") and not validation_target.kwargs.keys() & set(_ORDER_ARGUMENTS):
            in_order = {**validation_target.kwargs, "sampler": "sequential"}
            validation_target = dataclasses.replace(validation_target, kwargs=in_order)
        validation_dataset = build(recipe, "validation_dataset", **given)
        validation_loader = build_target(recipe, validation_target, dataset=validation_dataset, **given)
    loader = build_target(recipe, loader_target, dataset=dataset, **given)
    return Data(source, processor, loader, validation_loader, scheduler, seeds, parallelism)


@collector_paused()
def build_parts(
    recipe: Recipe, data: Data, checkpointer: Checkpointer, manager: pluggy.PluginManager, device: torch.device
) -> Parts:
    """Load the model and build everything that acts on it.

    Raises:
        InputError: the model cannot be loaded, or an adapter, optimizer or schedule does not fit it.
    """
    _check_metric(recipe, checkpointer, data)
    options: TrainingOptions = build(recipe, "training")
    per_step = data.scheduler.micro_batches_per_step(data.loader.samples_per_turn)
    num_steps = data.scheduler.num_steps(per_step, data.loader.num_micro_batches())
    if num_steps == 0:
        raise InputError("the data give no whole micro-batch: there is no step to train; check dataloader.drop_last")
    run = Run(data.source.name, checkpointer.directory, recipe.resolved(), max_steps=num_steps)
    loggers = [build_target(recipe, target, run=run) for target in recipe.sections_of("logger") if is_first()]
    peft: Peft | None = build(recipe, "peft") if recipe.has("peft") else None
    load = partial(_load_model, recipe, data, options, device, peft)
    module, forward, model_fingerprint = load(data.source)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise InputError("no parameter of the model is trainable; check the sections model and peft")
    if device.type == "cpu" and _computes_in_bfloat16(module, options) and not _processor_has_bfloat16():
        notice(
            "this processor has no instructions for bfloat16 and takes hundreds of times longer in it: "
            "use float32 (model.torch_dtype, and no training.mixed_precision)"
        )
    # DTensors count as the whole parameters that they are parts of
    run.num_parameters = sum(parameter.numel() for parameter in module.parameters())
    run.num_trainable_parameters = sum(parameter.numel() for parameter in trainable)
    manager.hook.model_built(module=module, run=run)
    document_inputs = _document_inputs(options, data, module, forward, device)
    optimizer = data.parallelism.shard_optimizer(build_optimizer(recipe, trainable))
    # from here on processes with different samples draw differently (dropout)
    cp_group = data.parallelism.cp_group
    data.seeds.apply(group_rank(data.parallelism.dp_group) * group_size(cp_group) + group_rank(cp_group))
    return Parts(
        recipe=recipe,
        run=run,
        hooks=manager.hook,
        loggers=loggers,
        device=device,
        processor=data.processor,
        module=module,
        forward=forward,
        reload=partial(_reload_model, load, data.source, peft, is_padding_free=document_inputs is not None),
        parallelism=data.parallelism,
        fingerprint=model_fingerprint,
        optimizer=optimizer,
        lr_scheduler=build(recipe, "lr_scheduler", optimizer=optimizer, num_steps=num_steps),
        loader=data.loader,
        validation_loader=data.validation_loader,
        loss_fn=build(recipe, "loss_fn"),
        options=options,
        scheduler=data.scheduler,
        checkpointer=checkpointer,
        micro_batches_per_step=per_step,
        num_steps=num_steps,
        samples_per_step=per_step * data.loader.samples_per_turn,
        document_inputs=document_inputs,
    )


def _check_metric(recipe: Recipe, checkpointer: Checkpointer, data: Data) -> None:
    """Raise if the best checkpoint could never be told."""
    if (metric := checkpointer.metric_for_best_model) is None:
        return
    with _checkpoint_target(recipe).placing_errors():
        if metric not in METRICS:
            wrong = f"`{metric}` is no metric of validation{did_you_mean(metric, METRICS)}"
            raise InputError(f"metric_for_best_model: {wrong}")
        if data.validation_loader is None:
            raise InputError(f"metric_for_best_model: {metric} needs a section validation_dataset")


def _document_inputs(
    options: TrainingOptions, data: Data, module: nn.Module, forward: nn.Module, device: torch.device
) -> DocumentInputs | None:
    """How rows are laid end to end; None, and the reason if the recipe asks for it, where they are not."""
    if options.padding_free is False:
        return None
    found = data.source.document_inputs(module) if isinstance(data.source, PaddingFree) else None
    is_float32 = not options.mixed_precision and all(p.dtype == torch.float32 for p in module.parameters())
    if data.parallelism.splits_positions:
        reason = "context and sequence parallelism share out the positions of padded rows"
    elif found is None:
        reason = f"{data.source.name} has no attention for it"
    elif not keeps_documents_apart(forward, device, data.parallelism, found, is_float32):
        reason = f"trying it out did not show that {data.source.name} keeps rows without padding apart"
    else:
        return found
    if options.padding_free:
        notice(f"training.padding_free: true is not usable here ({reason}); padding is computed with")
    return None


def _computes_in_bfloat16(module: nn.Module, options: TrainingOptions) -> bool:
    return options.mixed_precision == "bf16" or any(p.dtype == torch.bfloat16 for p in module.parameters())


def _processor_has_bfloat16() -> bool:
    """Whether oneDNN, which multiplies matrices in bfloat16 on processors, is not known to be without them."""
    return not torch.backends.mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _load_model(
    recipe: Recipe,
    data: Data,
    options: TrainingOptions,
    device: torch.device,
    peft: Peft | None,
    source: ModelSource,
) -> tuple[nn.Module, nn.Module, str]:
    """The model, what is called in its forward pass, and the fingerprint of its pretrained weights.

    Random weights, and then adapters, depend on the seed alone: not on what reading the data drew, and not on whether
    the model is loaded whole or in parts.
    """
    in_parts = data.parallelism.shards_parameters
    data.seeds.apply()
    module = base = source.empty_module(device) if in_parts else source.load_module(device)
    slots = parameter_slots(base)
    names = [name for name, _ in base.named_parameters()]
    if not in_parts:
        model_fingerprint = fingerprint(base.named_parameters())
    if peft is not None:
        data.seeds.apply()
        with _section(recipe, "peft").placing_errors():
            module = peft.apply(base)
    if options.activation_checkpointing:
        try:
            checkpoint_activations(module, "full")
        except InputError as error:
            raise InputError(f"{recipe.where('training', 'activation_checkpointing')}: {error}") from error
    if not in_parts and device.type == "cpu":
        leave_mapped_files(module)
    if device.type == "cpu":
        use_onednn(module)
    if options.compile:
        try:
            compile_layers(module)
        except InputError as error:
            raise InputError(f"{recipe.where('training', 'compile')}: {error}") from error
    with _section(recipe, "distributed").placing_errors():
        forward = data.parallelism.parallelize(module)
    if in_parts:
        give_memory(module, data.parallelism.parameter_device)
        data.seeds.apply()
        tensors = {name: getattr(owner, attribute) for name, (owner, attribute) in slots.items()}
        source.load_weights(base, tensors)
        model_fingerprint = fingerprint((name, tensors[name]) for name in names)
    return module, forward, model_fingerprint


def _reload_model(
    load: Callable[[ModelSource], tuple[nn.Module, nn.Module, str]],
    source: ModelSource,
    peft: Peft | None,
    directory: Path,
    *,
    is_padding_free: bool,
) -> tuple[nn.Module, nn.Module, DocumentInputs | None]:
    """Load what the run has saved, a whole model or an adapter, laid out and told of documents like its own."""
    module, forward, _ = load(source.at(directory) if peft is None else source)
    if peft is not None:
        peft.load(module, directory)
    found = source.document_inputs(module) if is_padding_free and isinstance(source, PaddingFree) else None
    return module, forward, found


def build_checkpointer(recipe: Recipe) -> Checkpointer:
    """The section `checkpoint`, with what `checkpoint_management.checkpoint_config` says over it."""
    checkpointer: Checkpointer = build_target(recipe, _checkpoint_target(recipe))
    return checkpointer


def _checkpoint_target(recipe: Recipe) -> Target:
    target = _section(recipe, "checkpoint")
    if recipe.has("checkpoint_management.checkpoint_config"):
        over = recipe.targets["checkpoint_management.checkpoint_config"]
        # told as mistakes of the section that has the last word
        target = dataclasses.replace(
            over,
            location=target.location,
            kwargs=target.kwargs | over.kwargs,
            positions=target.positions | over.positions,
        )
    return target


def build(recipe: Recipe, section: str, **given: Any) -> Any:
    """Build a section's target, or the default of its kind."""
    return build_target(recipe, _section(recipe, section), **given)


def _section(recipe: Recipe, section: str) -> Target:
    target = recipe.target(section)
    if target is None:
        raise InputError(f"the recipe has no section `{section}`")
    return target


def build_target(recipe: Recipe, target: Target, **given: Any) -> Any:
    """Build a target; a value that its callable refuses is an error of the recipe."""
    try:
        return target.build(**given)
    except ValueError as error:
        raise InputError(f"{recipe.where(*target.path)}: {'.'.join(map(str, target.path))}: {error}") from error


def pick_device(name: str) -> torch.device:
    """The device that `training.device` names.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None:
            return torch.device("cpu")
        if local_rank() >= (there := torch.accelerator.device_count()):
            raise InputError(
                f"process {local_rank()} of this machine has no device: there are {there} ({found.type}); start as "
                "many processes, or set training.device: cpu"
            )
        return torch.device(found.type, local_rank())
    try:
        device = torch.device(name)
        if device.type != "cpu" and device.index is None:
            device = torch.device(device.type, local_rank())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"training.device: {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def build_optimizer(recipe: Recipe, trainable: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer of these parameters; torch's own by its fused kernel unless the recipe says otherwise."""
    target = recipe.target("optimizer")
    assert target is not None  # the kind has a default
    is_torchs = target.location.startswith("torch.optim")
    if is_torchs and target.accepts("fused") and not target.kwargs.keys() & {"fused", "foreach"}:
        target = dataclasses.replace(target, kwargs={**target.kwargs, "fused": True})  # torch's default is its slowest
    optimizer: torch.optim.Optimizer = build_target(recipe, target, params=trainable)
    return optimizer


def _with_local_batch_size(recipe: Recipe, loader: Target, scheduler: StepScheduler) -> Target:
    """Hand `step_scheduler.local_batch_size` on to the loader."""
    local = scheduler.local_batch_size
    if local is None or loader.kwargs.get("batch_size") == local:
        return loader
    if "batch_size" in loader.kwargs:
        raise InputError(
            f"{recipe.where('step_scheduler', 'local_batch_size')}: step_scheduler.local_batch_size: {local} "
            f"contradicts dataloader.batch_size: {loader.kwargs['batch_size']}; leave one of them out"
        )
    return dataclasses.replace(loader, kwargs={**loader.kwargs, "batch_size": local})
