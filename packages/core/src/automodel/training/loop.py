"""The training loop."""

from __future__ import annotations

from signal import Signals

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.profiler import record_function

from automodel.errors import RunError, StoppedError
from automodel.interfaces import Batch
from automodel.launch.signals import StopRequest
from automodel.parallel.groups import largest
from automodel.training.parts import Parts
from automodel.training.step import train_step
from automodel.training.step_reports import Moment, NotFiniteError, StepReports
from automodel.training.step_scheduler import global_batches
from automodel.training.validation import validate


def fit(parts: Parts, *, ahead: bool) -> None:
    """Train from where `parts.progress` stands to the end of the run.

    Args:
        parts: of the run.
        ahead: give the device its next step before the last one's numbers are read, and tell of each step one late.

    Raises:
        RunError: the loss was not finite for too long, or a checkpoint could not be written.
    """
    progress, scheduler, run = parts.progress, parts.scheduler, parts.run
    validated_at = -1
    parts.forward.train()
    parts.hooks.fit_start(run=run)
    if progress.step == 0 and scheduler.val_at_start and parts.validation_loader:
        run_validation(parts)
        validated_at = 0
    if parts.num_steps is not None and progress.step >= parts.num_steps:
        return
    try:
        with StopRequest() as stop, StepReports(parts, ahead=ahead) as reports:
            _train(parts, stop, reports, validated_at)
    except NotFiniteError:
        if parts.checkpointer.is_saving:
            _finish_save(parts)
        raise
    finally:
        # other processes may be gone where this one ends by an error; what is left unfinished goes at the next start
        if parts.checkpointer.is_saving and not dist.is_initialized():
            _finish_save(parts)


def _train(parts: Parts, stop: StopRequest, reports: StepReports, validated_at: int) -> None:
    """The steps of `fit`."""
    progress, scheduler = parts.progress, parts.scheduler
    saved_at = progress.step
    save_every = parts.checkpointer.save_interval_steps or scheduler.ckpt_every_steps
    tracks_best = parts.checkpointer.enabled and parts.checkpointer.metric_for_best_model is not None
    micro_batches: list[Batch] = []
    dp_group = parts.parallelism.dp_group
    batches = global_batches(parts.loader, progress, parts.micro_batches_per_step, scheduler.epochs(), dp_group)
    started = Moment(parts.device)
    for micro_batches in batches:
        had_data = Moment(parts.device)
        lr = parts.optimizer.param_groups[0]["lr"]
        with record_function("automodel.step"):
            result = train_step(
                parts.forward,
                micro_batches,
                parts.loss_fn,
                parts.optimizer,
                parts.options,
                parts.device,
                parts.parallelism,
                parts.document_inputs,
            )
        parts.lr_scheduler.step()
        progress.step += 1
        progress.num_label_tokens += result.num_label_tokens
        reports.add(result, lr, started, had_data)
        is_last = progress.step == parts.num_steps
        saves = is_last or _due(progress.step, save_every)
        validates = parts.validation_loader and (
            is_last or _due(progress.step, scheduler.val_every_steps) or (saves and tracks_best)
        )
        if saves or validates:
            reports.tell()
        if validates:
            run_validation(parts)
            validated_at = progress.step
        if saves and save(parts, micro_batches[-1], validated=validated_at == progress.step, wait=is_last):
            saved_at = progress.step
        if is_last:
            return
        signal, written = _agreed(parts, stop)
        if written and _finish_save(parts) != saved_at:
            saved_at = -1
        if signal is not None:
            reports.tell()
            if parts.checkpointer.is_saving and _finish_save(parts) != saved_at:
                saved_at = -1
            if saved_at != progress.step:
                save(parts, micro_batches[-1], validated=validated_at == progress.step, wait=True)
            raise StoppedError(_stopped(parts, signal), signal)
        started = Moment(parts.device)
    # data of unknown length has ended
    reports.tell()
    if parts.validation_loader and validated_at != progress.step:
        run_validation(parts)
    if parts.checkpointer.is_saving and _finish_save(parts) != saved_at:
        saved_at = -1
    if saved_at != progress.step:
        save(parts, micro_batches[-1], validated=parts.validation_loader is not None, wait=True)


def run_validation(parts: Parts) -> dict[str, float]:
    """Validate, tell the hooks, and return the metrics."""
    assert parts.validation_loader is not None
    metrics = validate(
        parts.forward,
        parts.validation_loader,
        parts.loss_fn,
        parts.options,
        parts.device,
        parts.parallelism,
        parts.document_inputs,
    )
    parts.run.summary.update(metrics)
    parts.hooks.validation_end(step=parts.progress.step, metrics=metrics)
    return metrics


def save(parts: Parts, batch: Batch, *, validated: bool, wait: bool) -> bool:
    """Write a checkpoint, if the recipe wants any, and tell the hooks when it is there.

    Returns whether it is there or being written: one that was not written as it should be is neither.

    Args:
        parts: of the run.
        batch: a micro-batch of this process.
        validated: the model was validated after this very step.
        wait: return when the checkpoint is there, although the recipe lets the run go on while it is written.

    Raises:
        RunError: a parameter is not finite: a checkpoint of it would push good ones out. Or one that the run ends with
            is not as it should be, or the file system refused it.
    """
    checkpointer = parts.checkpointer
    if not checkpointer.enabled:
        return True
    if checkpointer.is_saving:
        _finish_save(parts)
    if not _all_finite(parts.module):
        raise RunError(
            f"parameters of the model are not finite after step {parts.progress.step}, so it is not saved; earlier "
            "checkpoints are intact. A lower learning rate, or fp32 or bf16 instead of float16, may help"
        )
    path = checkpointer.save(parts, dict(parts.run.summary), batch, validated=validated, wait=wait)
    if path is not None:
        parts.hooks.checkpoint_saved(step=parts.progress.step, path=path)
    if wait and path is None:
        raise RunError(
            f"the checkpoint of step {parts.progress.step}, with which the run ends, was not written as it should be; "
            "the same command goes on from the one before"
        )
    return path is not None or checkpointer.is_saving


def _finish_save(parts: Parts) -> int | None:
    """Wait for the checkpoint that is being written; its step, or None if it was not written as it should be."""
    path = parts.checkpointer.finish(parts)
    if path is None:
        return None
    step = int(path.name.removeprefix("step_"))
    parts.hooks.checkpoint_saved(step=step, path=path)
    return step


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _agreed(parts: Parts, stop: StopRequest) -> tuple[Signals | None, bool]:
    """The signal that has come to any of the processes, and whether all have written the checkpoint that is begun."""
    own = torch.tensor([int(stop.signal or 0), int(not parts.checkpointer.is_written)])
    number, unwritten = largest(own, dist.group.WORLD if dist.is_initialized() else None).tolist()
    return (Signals(number) if number else None), not unwritten


def _stopped(parts: Parts, signal: Signals) -> str:
    saved = "which is saved: the same command goes on from it"
    if not parts.checkpointer.enabled:
        saved = "and nothing is saved, since checkpoint.enabled is false"
    return f"stopped by {signal.name} after step {parts.progress.step}, {saved}"


def _all_finite(module: nn.Module) -> bool:
    """Whether every value that trains is finite, on every process."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters() if p.requires_grad]
    wrong = torch.tensor(sum(not bool(tensor.detach().isfinite().all()) for tensor in local))
    return not largest(wrong, dist.group.WORLD if dist.is_initialized() else None)
