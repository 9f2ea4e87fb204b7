"""Loss against the label tokens that were learnt from, as a small SVG."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

Curve = list[tuple[int, float]]

WIDTH, HEIGHT, MARGIN = 720, 360, 48
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e")
SMOOTHED = 0.1  # of the label tokens: the window of the running mean


def curves(results: dict[str, dict[str, Any]]) -> dict[str, Curve]:
    """For each tool, the label tokens seen after each step and the step's loss."""
    return {
        tool: list(zip(accumulate(labels for _, labels, _ in result["counts"]), result["losses"], strict=True))
        for tool, result in results.items()
    }


def smoothed(curve: Curve) -> Curve:
    """The mean loss per label token over the window that ends at each step, once the window is full."""
    window = SMOOTHED * curve[-1][0]
    sums = list(accumulate((tokens - before) * loss for (before, _), (tokens, loss) in pairwise([(0, 0.0), *curve])))
    points, first = [], -1
    for (tokens, _), total in zip(curve, sums, strict=True):
        while tokens - curve[first + 1][0] >= window:
            first += 1
        if first >= 0:
            points.append((tokens, (total - sums[first]) / (tokens - curve[first][0])))
    return points


def svg(all_curves: dict[str, Curve]) -> str:
    """The picture."""
    lines = {tool: smoothed(curve) for tool, curve in all_curves.items()}
    points = [point for line in lines.values() for point in line]
    most_tokens = max(tokens for tokens, _ in points)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)

    def x(tokens: float) -> float:
        return MARGIN + tokens / most_tokens * (WIDTH - 2 * MARGIN)

    def y(loss: float) -> float:
        return HEIGHT - MARGIN - (loss - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        '    font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="black"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">label tokens</text>',
        f'<text x="{MARGIN}" y="{MARGIN - 12}">training loss, running mean</text>',
    ]
    for part in range(5):
        loss, tokens = low + part / 4 * (high - low), part / 4 * most_tokens
        parts.append(f'<text x="{MARGIN - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
        parts.append(f'<text x="{x(tokens):.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{tokens:,.0f}</text>')
    for number, (tool, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(tokens):.1f},{y(loss):.1f}" for tokens, loss in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH - MARGIN - 90}" y="{MARGIN + 16 * number}" fill="{colour}">{tool}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
