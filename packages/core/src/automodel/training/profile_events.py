"""What torch.profiler saw in the steps of a run, by what it is for."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

DATA = "waiting for data"
MATRIX_PRODUCTS = "matrix products"
ATTENTION = "attention"
LOSS = "output layer and loss"
OTHER = "elementwise, normalisation, copies"
OPTIMIZER = "optimizer and clipping"
COMMUNICATION = "communication"
PYTHON = "Python and framework"
PURPOSES = (DATA, MATRIX_PRODUCTS, ATTENTION, LOSS, OTHER, OPTIMIZER, COMMUNICATION, PYTHON)

STEP_RANGE, OUTPUT_LAYER_RANGE = "automodel.step", "automodel.output_layer"
_RANGES = {
    OUTPUT_LAYER_RANGE: LOSS,
    "automodel.loss": LOSS,
    "automodel.attention": ATTENTION,
    "automodel.optimizer": OPTIMIZER,
}
_NODE = "autograd::engine::evaluate_function: "
"""Begins the name of what the backward pass does for one operator of the forward pass."""

_NAMES = {
    COMMUNICATION: re.compile(r"^(c10d|_c10d_functional|gloo|nccl|mpi|ucc|xccl|fsdp)::?|^record_param_comms"),
    # the softmax of a loss is in its range, so one outside is taken for that of eager attention
    ATTENTION: re.compile(r"scaled_dot_product|flash|efficient_attention|cudnn_attention|^aten::(_safe)?_softmax"),
    MATRIX_PRODUCTS: re.compile(
        r"^aten::(addmm|mm|bmm|baddbmm|addbmm|addmv|mv|dot|_grouped_mm|_scaled_mm|_scaled_grouped_mm|_int_mm|"
        r"_addmm_activation|_weight_int8pack_mm|_weight_int4pack_mm|.*convolution.*)$|^mkldnn::|^onednn::"
    ),
}
_ALLOCATES = re.compile(r"^aten::(new_)?(empty|zeros|ones|full)(_like|_strided)?$|^aten::(resize_|clone|contiguous)$")


@dataclass(frozen=True, eq=False)
class Event:
    """Something that took time.

    Args:
        name: of an operator, or of a range such as `automodel.loss`.
        start_us: when it began, in microseconds.
        end_us: when it ended.
        self_us: time on the device, without that of other events within it.
        self_bytes: memory it allocated and did not free itself, without other events within it.
        parent: the event around it on its thread.
        thread: where it ran.
        forward_thread: of a node of the backward pass, where its operator ran.
        sequence_nr: the same for an operator and its node of the backward pass; -1 where there is none.
        is_operator: it is computing, rather than a range or autograd's bookkeeping.
    """

    name: str
    start_us: float
    end_us: float
    self_us: float = 0.0
    self_bytes: int = 0
    parent: Event | None = field(default=None, repr=False)
    thread: int = 1
    forward_thread: int = 0
    sequence_nr: int = -1
    is_operator: bool = True


@dataclass(frozen=True)
class Work:
    """One run of an operator within a step: what it was for, its time, and who allocated how much memory in it."""

    name: str
    purpose: str
    self_us: float
    allocator: str = ""
    self_bytes: int = 0


def read_events(profiled: Iterable[Any], on_accelerator: bool) -> list[Event]:
    """Torch's `FunctionEvent`s as ours, those around others first.

    On an accelerator the time of an operator is that of the kernels it has launched; what it costs the CPU does not
    count, since the accelerator works meanwhile, or waits for Python.
    """
    ours: dict[int, Event] = {}
    on_cpu = (event for event in profiled if event.device_type.name == "CPU")
    for event in sorted(on_cpu, key=lambda event: (event.time_range.start, -event.time_range.end)):
        self_us = event.self_device_time_total if on_accelerator else event.self_cpu_time_total
        ours[id(event)] = Event(
            event.name,
            event.time_range.start,
            event.time_range.end,
            self_us,
            event.self_device_memory_usage if on_accelerator else event.self_cpu_memory_usage,
            ours.get(id(event.cpu_parent)),
            event.thread,
            event.fwd_thread or 0,
            event.sequence_nr,
            _is_operator(event, on_accelerator),
        )
    return list(ours.values())


def _is_operator(event: Any, on_accelerator: bool) -> bool:
    if event.is_user_annotation:  # that of gloo's threads is all there is of what they do
        return not on_accelerator and _NAMES[COMMUNICATION].search(event.name) is not None
    return on_accelerator or ("::" in event.name and not event.name.startswith("autograd::"))


def work_of_steps(events: Sequence[Event]) -> list[Work]:
    """The operators that ran within a step's range, on its thread or autograd's, and collectives on any thread.

    Of collectives on other threads the time counts in which no operator ran: that in which the step waits for them.

    An operator is for what the range or operator around it is for, else for what its name says. In the backward pass
    it is for what the forward pass's operator was for, if that is attention or the loss.

    Args:
        events: those around others first.
    """
    steps = [event for event in events if event.name == STEP_RANGE]
    threads = {event.thread for event in events if event.name == STEP_RANGE or event.name.startswith(_NODE)}
    purposes: dict[Event | None, str | None] = {None: None}
    forward: dict[tuple[int, int], str | None] = {}
    found, beside = [], []
    for event in events:
        around = purposes[event.parent]
        if event.name.startswith(_NODE):
            around = around or forward.get((event.forward_thread, event.sequence_nr))
        purpose = purposes[event] = _named(event, around)
        if event.sequence_nr >= 0 and not event.name.startswith(_NODE):
            # of several with one number the last is the one that has made the node
            forward[event.thread, event.sequence_nr] = purpose if purpose in (ATTENTION, LOSS) else None
        if event.is_operator and any(step.start_us <= event.start_us < step.end_us for step in steps):
            if event.thread in threads:
                found.append((event, purpose or OTHER))
            elif purpose == COMMUNICATION:
                beside.append(event)
    return [
        *(Work(event.name, purpose, event.self_us, _allocator(event), event.self_bytes) for event, purpose in found),
        *(Work(event.name, COMMUNICATION, us) for event, us in _not_hidden(beside, [event for event, _ in found])),
    ]


def _not_hidden(collectives: Iterable[Event], others: Iterable[Event]) -> Iterator[tuple[Event, float]]:
    """Collectives and how many microseconds of each none of the others ran, nor a collective before it.

    Args:
        collectives: by their start.
        others: by their start.
    """
    busy: list[tuple[float, float]] = []
    for other in others:
        if not busy or other.start_us > busy[-1][1]:
            busy.append((other.start_us, other.end_us))
        elif other.end_us > busy[-1][1]:
            busy[-1] = (busy[-1][0], other.end_us)
    counted_to = 0.0
    for event in collectives:
        start, end = max(event.start_us, counted_to), max(event.end_us, counted_to)
        first = max(bisect_right(busy, (start, inf)) - 1, 0)
        meeting = busy[first : bisect_left(busy, (end, -inf))]
        yield event, end - start - sum(max(min(end, to) - max(start, since), 0.0) for since, to in meeting)
        counted_to = end


def _named(event: Event, around: str | None) -> str | None:
    """What an event is for, given what the one around it is for."""
    if around != COMMUNICATION and _NAMES[COMMUNICATION].search(event.name):
        return COMMUNICATION
    if around is not None:
        return around
    by_name = (purpose for purpose, pattern in _NAMES.items() if pattern.search(event.name))
    return _RANGES.get(event.name) or next(by_name, None)


def _allocator(event: Event) -> str:
    """The operator that wanted the memory: `aten::mm` rather than the `aten::empty` within it."""
    wanted: Event | None = event
    while wanted is not None and _ALLOCATES.match(wanted.name):
        wanted = wanted.parent
    return wanted.name if wanted is not None and wanted.is_operator else event.name
