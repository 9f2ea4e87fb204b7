"""A plan as text, and the changes that would make one fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from automodel.errors import InputError
from automodel.plan.devices import Device
from automodel.plan.estimate import Plan, estimate
from automodel.recipe import Recipe

GIB = 2**30
RESERVE = 0.9
"""The share of a device's memory that a run can count on; CUDA, NCCL and fragmentation take the rest."""
_LABELS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "gathered": "gathered for computing",
    "activations": "activations and logits",
}


def report(plan: Plan, world_size: int, name: str, device: Device) -> str:
    """The plan of each process, whether it fits the device, and what dominates."""
    sizes = {label: getattr(plan, field) for field, label in _LABELS.items()}
    lines = [
        f"{plan.num_parameters:,} parameters, {plan.num_trainable:,} of them train, on {world_size} x {name}; each has",
        *(f"  {label:<24}{size / GIB:9.2f} GiB" for label, size in sizes.items()),
        f"  {'together':<24}{plan.total / GIB:9.2f} GiB of {device.memory / GIB:.0f}",
    ]
    most = max(sizes, key=lambda label: sizes[label])
    verdict = "fits" if fits(plan, device) else "does not fit"
    lines.append(f"{verdict} (a run can count on {RESERVE:.0%} of the memory); most is {most}")
    bandwidth, over = (device.link, "links") if world_size <= device.per_machine else (device.network, "network")
    sent = plan.sent_for_parameters + plan.sent_for_activations
    lines.append(
        f"a step sends {plan.sent_for_parameters / GIB:.2f} GiB for parameters and gradients and "
        f"{plan.sent_for_activations / GIB:.2f} GiB for activations: at least {sent / bandwidth:.2f} s over {over} at "
        f"{bandwidth / 1e9:.0f} GB/s, less what is hidden behind computing"
    )
    return "\n".join(lines)


def fits(plan: Plan, device: Device) -> bool:
    """Whether a plan leaves the device's reserve free."""
    return plan.total <= RESERVE * device.memory


def remedies(
    recipe: Recipe,
    reload: Callable[[dict[str, object]], Recipe],
    world_size: int,
    sequence_length: int,
    device: Device,
) -> str:
    """The first changes that make it fit, found by planning with them.

    Args:
        recipe: that does not fit.
        reload: gives the recipe with further overrides.
        world_size: processes of the run.
        sequence_length: tokens of each sample.
        device: to fit.
    """
    tried: dict[str, object] = {}
    for change in _changes(recipe):
        candidate = tried | change
        try:
            plan = estimate(reload(candidate), world_size, sequence_length)
        except InputError:
            continue  # this plugin or layout does not go with the recipe
        if fits(plan, device):
            words = " ".join(f"{key}={str(value).lower()}" for key, value in candidate.items())
            return f"it fits with {words} ({plan.total / GIB:.2f} GiB)"
        if "distributed._target_" not in change or plan.gathered:  # a layout that shards is kept for the next tries
            tried = candidate
    for factor in (2, 4, 8, 16, 32):
        try:
            plan = estimate(reload(tried), world_size * factor, sequence_length)
        except InputError:
            continue
        if fits(plan, device):
            words = " ".join(f"{key}={str(value).lower()}" for key, value in tried.items())
            return f"it fits on {world_size * factor} devices with {words} ({plan.total / GIB:.2f} GiB)"
    return "no change known to `automodel plan` makes it fit: shorter samples, a smaller model or larger devices may"


def _changes(recipe: Recipe) -> Iterator[dict[str, object]]:
    """What to try, in the order in which a person would: what costs least first."""
    registry = recipe.resolver.registry
    loader = recipe.target("dataloader")
    if loader is not None and loader.kwargs.get("batch_size", 1) > 1:
        yield {"dataloader.batch_size": 1}
    yield {"training.activation_checkpointing": True}
    if not recipe.has("distributed"):
        for entry in registry.providers("parallelism"):
            yield {"distributed._target_": entry.provider.name}
    yield {"distributed.defer_fsdp_grad_sync": False}
    if not recipe.has("peft"):
        for entry in registry.providers("peft"):
            yield {"peft._target_": entry.provider.name}
