"""From a checked recipe to the parts of a run, in the order that finds mistakes soonest: data, then model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pluggy
import torch
from torch import nn

from automodel.checkpoint.checkpointer import Checkpointer
from automodel.checkpoint.state import fingerprint
from automodel.errors import InputError
from automodel.interfaces import Loader, ModelSource, Run
from automodel.recipe import Recipe, Target
from automodel.training.options import TrainingOptions
from automodel.training.parts import Parts
from automodel.training.rng import Seeds
from automodel.training.step_scheduler import StepScheduler

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


def build_data(recipe: Recipe) -> Data:
    """Build what can be wrong with data before a model is loaded.

    Raises:
        InputError: anything about the recipe's data, tokenizer or batch sizes is wrong.
    """
    recipe.require("model", "dataset")
    seeds: Seeds = build(recipe, "rng")
    seeds.apply()
    scheduler: StepScheduler = build(recipe, "step_scheduler")
    source: ModelSource = build(recipe, "model")
    processor = source.load_processor()
    given = {"processor": processor, "seed": seeds.seed}
    dataset = build(recipe, "dataset", **given)
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
    return Data(source, processor, loader, validation_loader, scheduler, seeds)


def build_parts(recipe: Recipe, data: Data, checkpointer: Checkpointer, manager: pluggy.PluginManager) -> Parts:
    """Load the model and build everything that acts on it.

    Raises:
        InputError: the model cannot be loaded, or an adapter, optimizer or schedule does not fit it.
    """
    options: TrainingOptions = build(recipe, "training")
    per_step = data.scheduler.micro_batches_per_step(data.loader.samples_per_turn)
    num_steps = data.scheduler.num_steps(per_step, data.loader.num_micro_batches())
    if num_steps == 0:
        raise InputError("the data give no whole micro-batch: there is no step to train; check dataloader.drop_last")
    run = Run(data.source.name, checkpointer.directory, recipe.resolved(), max_steps=num_steps)
    loggers = [build_target(recipe, target, run=run) for target in recipe.sections_of("logger")]
    device = pick_device(options.device)
    peft = build(recipe, "peft") if recipe.has("peft") else None
    data.seeds.apply()  # random weights and adapters depend on the seed, not on what reading the data drew
    module = data.source.load_module(device)
    model_fingerprint = fingerprint(module)
    if peft is not None:
        module = peft.apply(module)
    if recipe.has("distributed"):
        module = build(recipe, "distributed").parallelize(module)
    if options.activation_checkpointing:
        _checkpoint_activations(module, recipe)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise InputError("no parameter of the model is trainable; check the sections model and peft")
    run.num_parameters = sum(parameter.numel() for parameter in module.parameters())
    run.num_trainable_parameters = sum(parameter.numel() for parameter in trainable)
    manager.hook.model_built(module=module, run=run)
    optimizer = _build_optimizer(recipe, trainable)
    return Parts(
        recipe=recipe,
        run=run,
        hooks=manager.hook,
        loggers=loggers,
        device=device,
        processor=data.processor,
        module=module,
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
    )


def build(recipe: Recipe, section: str, **given: Any) -> Any:
    """Build a section's target, or the default of its kind."""
    target = recipe.target(section)
    if target is None:
        raise InputError(f"the recipe has no section `{section}`")
    return build_target(recipe, target, **given)


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
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"training.device: {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _build_optimizer(recipe: Recipe, trainable: list[nn.Parameter]) -> torch.optim.Optimizer:
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


def _checkpoint_activations(module: Any, recipe: Recipe) -> None:
    if not hasattr(module, "activation_checkpointing_enable"):
        where = recipe.where("training", "activation_checkpointing")
        raise InputError(f"{where}: this model has no activation_checkpointing_enable(), as transformers' models do")
    module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
