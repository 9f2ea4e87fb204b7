"""The table that `automodel train --profile` prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from automodel.training.matmul_peak import MatmulPeak
from automodel.training.profile_events import COMMUNICATION, DATA, PURPOSES, PYTHON, Work

NUM_OPERATORS = 10
NUM_ALLOCATORS = 5


@dataclass(frozen=True)
class Row:
    """A line of the table: milliseconds of a step and per cent of it."""

    name: str
    ms: float
    percent: float
    calls: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What was measured besides the operators.

    Args:
        title: which steps, of what, where.
        num_steps: how many were profiled.
        step_s: seconds of all of them.
        data_s: how many of those waited for data.
        num_tokens: in all of them, of all processes; 0 if they are not known.
        flop_per_token: of the model, forward and backward.
        num_processes: that share the tokens.
        peak_memory_mb: the most so far.
        peak_of: whose memory that is.
        peak: of matrix products on this device.
        before: seconds and tokens of the step before, which was not profiled, if that was not the first.
    """

    title: str
    num_steps: int
    step_s: float
    data_s: float
    num_tokens: float
    flop_per_token: float
    num_processes: int
    peak_memory_mb: float
    peak_of: str
    peak: MatmulPeak
    before: tuple[float, float] | None = None


def time_rows(work: Sequence[Work], step_s: float, data_s: float, num_steps: int) -> list[Row]:
    """Where the time of a step went: a row for each purpose, which together are the whole step.

    What neither waits for data nor is an operator's is Python's and the framework's. Collectives run beside the other
    operators; if all together take longer than the steps, the collectives were hidden behind the others by as much.

    Args:
        work: of all steps.
        step_s: seconds of all steps.
        data_s: seconds that all of them waited for data.
        num_steps: how many they are.
    """
    us = dict.fromkeys(PURPOSES, 0.0)
    for one in work:
        us[one.purpose] += one.self_us
    us[DATA] = data_s * 1e6
    rest = step_s * 1e6 - sum(us.values())
    hidden = min(us[COMMUNICATION], max(-rest, 0.0))
    us[COMMUNICATION] -= hidden
    us[PYTHON] = max(rest + hidden, 0.0)
    percents = _percents(list(us.values()))
    return [
        Row(name, value / num_steps / 1e3, percent) for (name, value), percent in zip(us.items(), percents, strict=True)
    ]


def operator_rows(work: Sequence[Work], step_s: float, num_steps: int) -> list[Row]:
    """The operators with the most time of their own, and how often each runs in a step."""
    us: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for one in work:
        us[one.name] += one.self_us
        calls[one.name] += 1
    return [
        Row(name, us[name] / num_steps / 1e3, us[name] / step_s / 1e4, calls[name] / num_steps)
        for name in sorted(us, key=lambda name: -us[name])[:NUM_OPERATORS]
    ]


def allocated_mb(work: Sequence[Work], num_steps: int) -> Mapping[str, float]:
    """MB (10^6 bytes) a step that the operators which allocate most have allocated and not freed themselves."""
    total: dict[str, float] = defaultdict(float)
    for one in work:
        total[one.allocator] += max(one.self_bytes, 0) / num_steps / 1e6
    return {name: total[name] for name in sorted(total, key=lambda name: -total[name])[:NUM_ALLOCATORS]}


def summary(work: Sequence[Work], measured: Measured) -> str:
    """The whole table as text."""
    rows = time_rows(work, measured.step_s, measured.data_s, measured.num_steps)
    operators = operator_rows(work, measured.step_s, measured.num_steps)
    step_ms = measured.step_s / measured.num_steps * 1e3
    lines = [
        measured.title,
        f"\n{'a step goes to':40}{'ms':>12}{'%':>8}",
        *(f"  {row.name:38}{row.ms:12,.2f}{row.percent:8.1f}" for row in rows),
        f"  {'together':38}{step_ms:12,.2f}{sum(row.percent for row in rows):8.1f}",
        f"\n{'operators by their own time':40}{'ms':>12}{'%':>8}{'calls':>8}",
        *(f"  {_cut(row.name):38}{row.ms:12,.2f}{row.percent:8.1f}{row.calls:8,.0f}" for row in operators),
        f"\n{'memory, and who allocates most a step':40}{'MB':>12}",
        f"  {f'most so far, of {measured.peak_of}':38}{measured.peak_memory_mb:12,.1f}",
        *(f"  {_cut(f'by {name}'):38}{mb:12,.1f}" for name, mb in allocated_mb(work, measured.num_steps).items()),
        "",
        *_speed(measured),
    ]
    return "\n".join(lines) + "\n"


def _speed(measured: Measured) -> list[str]:
    """How fast the model ran, beside how fast the device multiplies matrices."""
    peak = measured.peak
    peak_text = f"peak {_flops(peak.flops)}, measured: {peak}"
    if not measured.num_tokens:
        return [peak_text, "MFU is not known: the batches have no attention_mask to count tokens by"]
    flops = _flop_per_s(measured, measured.step_s, measured.num_tokens)
    lines = [
        f"MFU {flops / peak.flops:.1%}: {_flops(flops)} of the model"
        f"{' a process' if measured.num_processes > 1 else ''}, at {measured.flop_per_token / 1e9:.3g} GFLOP a token",
        peak_text,
    ]
    if measured.before is not None:
        unprofiled = _flop_per_s(measured, *measured.before)
        lines.append(f"the step before, not profiled: MFU {unprofiled / peak.flops:.1%}, {measured.before[0]:.3f} s")
    return lines


def _flop_per_s(measured: Measured, seconds: float, num_tokens: float) -> float:
    return measured.flop_per_token * num_tokens / measured.num_processes / seconds


def _flops(flops: float) -> str:
    return f"{flops / 1e12:,.1f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:,.1f} GFLOP/s"


def _percents(values: Sequence[float]) -> list[float]:
    """Shares in tenths of a per cent that add up to 100: what rounding leaves goes to the largest remainders."""
    exact = [1000 * value / sum(values) for value in values]
    tenths = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: tenths[index] - exact[index])
    for index in by_remainder[: 1000 - sum(tenths)]:
        tenths[index] += 1
    return [share / 10 for share in tenths]


def _cut(name: str) -> str:
    """A name that fits its column; operators of the backward pass often differ at the end only."""
    return name if len(name) <= 37 else f"{name[:15]}...{name[-19:]}"
