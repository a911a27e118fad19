"""Margins of the mini-batches' pair on single samples along training, and how many violate it."""

from __future__ import annotations

from matplotlib.axes import Axes

from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._style import (
    BLUE,
    GREY,
    VERMILION,
    drawable,
    finite,
    legend,
    over_steps,
    picture,
    say,
    symlog,
)

BANDS = (
    ("0", "1", 0.15, "all samples"),
    ("0.05", "0.95", 0.25, "5 % to 95 %"),
    ("0.25", "0.75", 0.4, "25 % to 75 %"),
)
"""Quantiles between which a band is drawn, how opaque it is, and its name"""


def draw_margins(axes: Axes, drawn: Drawn) -> None:
    """Draw bands between quantiles of the samples' margins, and the median."""
    axes.set_ylabel(r"margin of $(\alpha, \beta)$")
    entry = drawn.summary.get("per_sample")
    if not entry or not entry["steps"]:
        say(
            axes,
            f"no margins of single samples: {entry['reason']}"
            if entry
            else "no single samples were evaluated",
        )
        return
    steps = [float(step["step"]) for step in entry["steps"]]
    over_steps(axes, steps)
    quantiles = {
        name: drawable(step["quantiles"][name] for step in entry["steps"])
        for name in entry["quantiles"]
    }
    axes.axhline(0, color=GREY, linewidth=0.8)
    for low, high, opacity, name in BANDS:
        axes.fill_between(
            steps,
            quantiles[low],
            quantiles[high],
            color=BLUE,
            alpha=opacity,
            linewidth=0,
            label=name,
        )
    axes.plot(steps, quantiles["0.5"], color=BLUE, label="median")
    shown = [value for values in quantiles.values() for value in values]
    if any(finite(shown)):
        symlog(axes, shown, decades=3)
    found = drawn.alpha_beta
    legend(
        axes,
        drawn.doubt,
        f"α = {found['alpha']:.4g}, β = {found['beta']:.4g}, {entry['samples']} single samples",
    )


def draw_violations(axes: Axes, drawn: Drawn) -> None:
    """Draw the share of the samples of each probe that violate the pair."""
    axes.set_ylabel("violated by (%)")
    entry = drawn.summary.get("per_sample")
    if not entry or not entry["steps"]:
        say(axes, "no violations by single samples to draw")
        return
    steps = [float(step["step"]) for step in entry["steps"]]
    over_steps(axes, steps)
    axes.plot(
        steps,
        [100 * step["violated_share"] for step in entry["steps"]],
        "o-",
        color=VERMILION,
        linewidth=0.8,
    )
    axes.set_ylim(bottom=0)


figure = picture(draw_margins, draw_violations, height=5.2, share_x=True)
