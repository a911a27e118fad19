"""The loss on straight lines from iterates to the reference."""

from __future__ import annotations

from matplotlib.axes import Axes

from lightning_landscape.records import SegmentPoint
from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._style import (
    SERIES,
    drawable,
    finite,
    legend,
    picture,
    say,
)

MOST = 6
"""More lines than these cannot be told apart in one panel; their starts are spread over training"""


def draw(axes: Axes, drawn: Drawn) -> None:
    """Draw the loss from x_k, on the left, to x_p, on the right, for x_0 and a few later k."""
    axes.set(
        xlabel=r"$t$, from $x_k$ ($t = 0$) to $x_p$ ($t = 1$)",
        ylabel=r"loss at $x_k + t\,(x_p - x_k)$",
    )
    lines = by_start(drawn)
    known = {
        step: points
        for step, points in lines.items()
        if finite(drawable(point.loss for point in points))
    }
    if not known:
        say(
            axes,
            "no finite loss on a segment was found"
            if lines
            else "no losses on segments to the reference were evaluated",
        )
        return
    chosen = spread(list(known), MOST)
    missing = 0
    for number, step in enumerate(chosen):
        colour, line, marker = SERIES[number]
        losses = drawable(point.loss for point in known[step])
        missing += len(losses) - len(finite(losses))
        axes.plot(
            [point.fraction for point in known[step]],
            losses,
            line,
            color=colour,
            marker=marker,
            label=f"k = {step}",
        )
    axes.set_xlim(-0.02, 1.02)
    fewer = f"{len(chosen)} of {len(lines)} starts are drawn" if len(chosen) < len(lines) else ""
    unknown = (
        f"{missing} of the losses are not drawn: not finite, or beyond any axis" if missing else ""
    )
    legend(axes, fewer, unknown, columns=3)


def by_start(drawn: Drawn) -> dict[int, list[SegmentPoint]]:
    """Return the points of each line in the order of their fraction, by the step of its start."""
    lines: dict[int, list[SegmentPoint]] = {}
    for point in sorted(drawn.segments or (), key=lambda point: (point.step, point.fraction)):
        lines.setdefault(point.step, []).append(point)
    return lines


def spread(steps: list[int], most: int) -> list[int]:
    """Return at most so many of the steps, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


figure = picture(draw)
