"""Picture with an overview of a run: feasible pairs, losses, angle."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape.reporting.conditions import NO_PROBE
from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._style import (
    BLUE,
    GREEN,
    GREY,
    drawable,
    legend,
    over_steps,
    plain_numbers,
    say,
    style,
)
from lightning_landscape.reporting.figures.angle import draw_cosine
from lightning_landscape.reporting.figures.feasible_pairs import draw_set


def overview(drawn: Drawn) -> Figure:
    """Draw the feasible pairs, the loss beside the reference's, and the angle of one run.

    Args:
        drawn: the run. Probes without reference columns are left out.

    Returns:
        A figure of three panels; a panel without data says why.
    """
    with style():
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        if draw_set(left, drawn):
            legend(left)
        draw_losses(middle, drawn)
        draw_cosine(right, drawn, columns=1)
        for axes in (left, middle, right):
            plain_numbers(axes)
    return figure


def draw_losses(axes: Axes, drawn: Drawn) -> None:
    """Draw the loss of each probed mini-batch at the iterate and at the reference."""
    over_steps(axes, drawn.steps)
    axes.set_ylabel("mini-batch loss")
    if not len(drawn.rows):
        say(axes, NO_PROBE)
        return
    axes.plot(drawn.steps, drawable(drawn.rows.column("loss")), color=BLUE, label="at the iterate")
    axes.plot(
        drawn.steps,
        drawable(drawn.rows.column("reference_loss")),
        "--",
        color=GREEN,
        label="at the reference",
    )
    # An invisible line takes 0 into view, so that the height of the curves can be judged.
    axes.axhline(0, color=GREY, linewidth=0)
    legend(axes)
