"""One picture of a run: the pairs, the losses, the angle."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape.reporting.figures._style import BLUE, GREEN, NOT_EVALUATED, Drawn, canvas, say
from lightning_landscape.reporting.figures.angle import cosine
from lightning_landscape.reporting.figures.feasible_pairs import region


def overview(run: Drawn) -> Figure:
    """Draw the feasible pairs, the loss beside the reference's, and the angle."""
    figure, (left, middle, right) = canvas(1, 3, width=13, height=3.8)
    region(left, run)
    losses(middle, run)
    cosine(right, run)
    return figure


def losses(axes: Axes, run: Drawn) -> None:
    """Draw into a panel each mini-batch's loss at the iterate and at the reference."""
    axes.set(xlabel="step", ylabel="mini-batch loss")
    if not len(run.rows):
        say(axes, NOT_EVALUATED)
        return
    steps = run.rows.column("logged_step")
    axes.plot(steps, run.rows.column("loss"), color=BLUE, label="at the iterate")
    axes.plot(steps, run.rows.column("reference_loss"), color=GREEN, linestyle="--", label="at the reference")
    axes.legend()
