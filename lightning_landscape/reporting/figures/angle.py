"""Picture of the angle between gradients and the direction from the reference, over training."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.reporting.conditions import NO_PROBE
from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._style import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    counted,
    drawable,
    legend,
    over_steps,
    picture,
    say,
)


def draw_cosine(axes: Axes, drawn: Drawn, columns: int = 2) -> None:
    """Draw the cosine between gradient and x − x_p, with a legend of ``columns`` columns."""
    over_steps(axes, drawn.steps)
    axes.set_ylabel(r"cos(gradient, $x - x_p$)")
    if not len(drawn.rows):
        say(axes, NO_PROBE)
        return
    cosines = F.cosine(**drawn.rows.columns("inner_product", "grad_sq_norm", "sq_distance"))
    values = drawable(cosines)
    _series(axes, drawn, values, BLUE, "o")
    legend(
        axes,
        drawn.doubt,
        *_missing(cosines, "without an angle: gradient or distance is 0"),
        columns=columns,
    )


def draw_aiming(axes: Axes, drawn: Drawn) -> None:
    """Draw the θ of the aiming condition of each probe."""
    over_steps(axes, drawn.steps)
    axes.set_ylabel(r"aiming $\theta$")
    if not len(drawn.rows):
        say(axes, NO_PROBE)
        return
    ratios = F.aiming_ratio(**drawn.rows.columns("loss", "inner_product", "loss_infimum"))
    values = drawable(ratios)
    _series(axes, drawn, values, GREEN, "^")
    legend(axes, *_missing(ratios, "without a θ: the loss is at its lower bound or below"))


def _missing(values: Tensor, why: str) -> tuple[str, str]:
    """Return notes on the probes without a value and on those with a value too large to draw."""
    undefined = int(values.isnan().sum())
    lost = sum(map(math.isnan, drawable(values))) - undefined
    return counted(undefined, why), counted(lost, "not drawn: infinite or too large")


def _series(axes: Axes, drawn: Drawn, values: list[float], colour: str, marker: str) -> None:
    """Draw values over training and mark the negative ones and the smallest."""
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(drawn.steps, values, color=colour, marker=marker, markersize=3.5)
    below = [(step, value) for step, value in zip(drawn.steps, values, strict=True) if value < 0]
    if below:
        axes.plot(
            *zip(*below, strict=True),
            "X",
            color=VERMILION,
            markersize=6,
            label=f"gradient towards $x_p$: {len(below)}",
        )
    known = [
        (value, step)
        for step, value in zip(drawn.steps, values, strict=True)
        if not math.isnan(value)
    ]
    if known:
        value, step = min(known)
        # A ring instead of a disk, so that a cross below it remains visible.
        ring: dict[str, Any] = {
            "markerfacecolor": "none",
            "markeredgecolor": "black",
            "markersize": 9,
            "clip_on": False,
        }
        axes.plot([step], [value], "o", label=f"smallest: {value:.3g} at step {step:.0f}", **ring)


figure = picture(draw_cosine, draw_aiming, height=4.0, share_x=True)
