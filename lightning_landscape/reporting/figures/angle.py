"""Whether the gradient pointed away from the reference: the angle, and aiming, over training."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.reporting.conditions import reason_against_infimum
from lightning_landscape.reporting.figures._style import BLUE, GREEN, GREY, NOT_EVALUATED, ORANGE, Drawn, canvas, note, say


def angle(run: Drawn) -> Figure:
    """Draw the cosine between gradient and x − x_p, and below the aiming constant of each probe."""
    figure, (above, below) = canvas(2, 1, height=3.8)
    cosine(above, run)
    aiming(below, run)
    return figure


def cosine(axes: Axes, run: Drawn) -> None:
    """Draw into a panel the cosine of each probe; a negative one is a gradient step that led away from x_p."""
    axes.set(xlabel="step", ylabel="cosine(∇f_i, x − x_p)")
    if not len(run.rows):
        say(axes, NOT_EVALUATED)
        return
    _signed(axes, run, F.cosine(**run.rows.columns("inner_product", "grad_sq_norm", "sq_distance")))


def aiming(axes: Axes, run: Drawn) -> None:
    """Draw into a panel θ = ⟨∇f_i, x − x_p⟩/(f_i − l) of each probe."""
    axes.set(xlabel="step", ylabel="aiming θ")
    reason = reason_against_infimum(run.rows, "loss") if len(run.rows) else NOT_EVALUATED
    if reason is not None:
        say(axes, reason)
        return
    _signed(axes, run, F.aiming_ratio(**run.rows.columns("inner_product", "loss", "loss_infimum")), colour=GREEN)


def _signed(axes: Axes, run: Drawn, values: Tensor, colour: str = BLUE) -> None:
    """Draw values over training, the negative ones marked."""
    steps, shown = run.rows.column("logged_step"), values.isfinite()
    if not bool(shown.any()):
        say(axes, "defined at no probe: gradient, distance or loss above the infimum is zero")
        return
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(steps[shown], values[shown], color=colour, marker="." if len(values) < 60 else None)
    negative = shown & (values < 0)
    if bool(negative.any()):
        axes.plot(steps[negative], values[negative], "x", color=ORANGE)
        note(axes, f"{int(negative.sum())} of {int(shown.sum())} probes are negative")
