"""`Segments`: the loss on straight lines from iterates to the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from lightning_landscape.evaluation.extra import Extra
from lightning_landscape.extras.settings import check_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_landscape.evaluation.probed_step import ProbedStep
    from lightning_landscape.reporting.figures import Drawn

FRACTIONS = tuple(part / 10 for part in range(11))
"""Where on a segment the loss is evaluated"""
MOST_DRAWN = 6
"""More lines than these cannot be told apart in one panel; their starts are spread over training"""


@dataclass(frozen=True, slots=True)
class SegmentPoint:
    """One point of ``segments.csv``: f_{i_k}(x_k + t (x_p − x_k))."""

    step: int
    """k: the line starts at x_k, and the loss is that of its mini-batch"""
    fraction: float
    """t in [0, 1]: 0 is x_k, 1 is x_p"""
    loss: float


class Segments(Extra):
    r"""Evaluates mini-batch losses on the straight lines from some iterates to x_p.

    .. math:: f_{i_k}(x_k + t (x_p - x_k)), \qquad t = 0, 0.1, \dots, 1

    Args:
        iterates: Largest number of lines, evenly among the probes; the first starts at x_0.

    Raises:
        MisconfigurationException: if ``iterates`` is no whole number of 1 or more.
    """

    tables = {"segments": SegmentPoint}

    def __init__(self, iterates: int = 4) -> None:
        check_whole("Segments", "iterates", iterates, least=1)
        self.at_most = iterates

    @override
    def at(self, step: ProbedStep) -> Iterable[SegmentPoint]:
        here = step.x()
        losses: list[float | None] = [step.probe.loss]
        for t in FRACTIONS[1:-1]:
            point = {
                name: torch.lerp(here[name].to(there.device), there.to(here[name].dtype), t)
                for name, there in step.reference.items()
                if name in here
            }
            losses.append(step.loss(point))
        losses.append(step.probe.reference_loss)
        points = zip(FRACTIONS, losses, strict=True)
        return [
            SegmentPoint(step.number, t, loss)
            for t, loss in points
            if loss is not None and loss - loss == 0
        ]

    @override
    def evaluations(self, records: int) -> int:
        return records * (len(FRACTIONS) - 2)

    @classmethod
    @override
    def figures(cls, drawn: Drawn) -> Mapping[str, Figure]:
        from lightning_landscape.reporting.figures._style import picture

        return {"segments": picture(draw)(drawn)}


def draw(axes: Axes, drawn: Drawn) -> None:
    """Draw the loss from x_k, on the left, to x_p, on the right, for x_0 and a few later k."""
    from lightning_landscape.reporting.figures._style import SERIES, drawable, finite, legend, say

    axes.set(
        xlabel=r"$t$, from $x_k$ ($t = 0$) to $x_p$ ($t = 1$)",
        ylabel=r"loss at $x_k + t\,(x_p - x_k)$",
    )
    lines = by_start(drawn.tables.get("segments", ()))
    known = {
        step: points
        for step, points in lines.items()
        if finite(drawable(point.loss for point in points))
    }
    if not known:
        say(axes, "no loss on a segment is finite" if lines else "no segment was evaluated")
        return
    chosen = spread(list(known), MOST_DRAWN)
    missing = 0
    for number, step in enumerate(chosen):
        colour, line, marker = SERIES[number]
        losses = drawable(point.loss for point in known[step])
        missing += len(losses) - len(finite(losses))
        fractions = [point.fraction for point in known[step]]
        axes.plot(fractions, losses, line, color=colour, marker=marker, label=f"k = {step}")
    axes.set_xlim(-0.02, 1.02)
    fewer = f"{len(chosen)} of {len(lines)} lines are drawn" if len(chosen) < len(lines) else ""
    unknown = f"{missing} losses are not drawn: not finite, or beyond any axis" if missing else ""
    legend(axes, fewer, unknown, columns=3)


def by_start(points: Sequence[SegmentPoint]) -> dict[int, list[SegmentPoint]]:
    """Return the points of each line in the order of their fraction, by the step of its start."""
    lines: dict[int, list[SegmentPoint]] = {}
    for point in sorted(points, key=lambda point: (point.step, point.fraction)):
        lines.setdefault(point.step, []).append(point)
    return lines


def spread(steps: list[int], most: int) -> list[int]:
    """Return at most so many of the steps, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]
