"""The loss gap that was measured beside every bound that applies, and what the bounds are made of."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_landscape.reporting import scalars
from lightning_landscape.reporting.figures._style import BLUE, GREY, LINES, NOT_EVALUATED, ORANGE, SKY, Drawn, canvas, note, say

TERMS = (
    ("initial_distance", "distance of the start", BLUE, ""),
    ("step_size_noise", "noise of the step size", SKY, "//"),
    ("neighbourhood", "neighbourhood β", ORANGE, ".."),
)
"""Key of a term, what it is called, its colour and its hatching"""

FAR = 12
"""A bar that is so many times longer than the shortest, or than the drop, is cut there and says its value"""


def bounds(run: Drawn) -> Figure:
    """Draw the gap and the bounds over training, and below the terms of each bound."""
    figure, (above, below) = canvas(2, 1, width=4.4, height=5.4)
    gap_and_bounds(above, run)
    terms(below, run)
    return figure


def gap_and_bounds(axes: Axes, run: Drawn) -> None:
    """Draw into a panel, on logarithmic axes, each probe's gap, the smallest so far, and each bound after so many steps."""
    axes.set(xlabel="steps", ylabel="loss − loss at x_p")
    if not len(run.rows):
        say(axes, NOT_EVALUATED)
        return
    steps = run.rows.column("step") - run.rows[0].step + 1
    gap = run.rows.column("loss") - run.rows.column("reference_loss")
    axes.plot(*_positive(steps, gap), ".", color=GREY, markersize=4, label="gap of a probe")
    axes.plot(*_positive(steps, gap.cummin(0).values), color=GREY, linewidth=0.8, label="smallest so far")
    curves = scalars.bound_curves(run.rows, run.summary["run"])
    for (key, bound), (colour, line) in zip(_applying(run).items(), LINES * 4, strict=False):
        axes.plot(*_positive(steps - 1, curves[f"bound/{key}"]), color=colour, linestyle=line, label=bound["title"])
    if not any(np.size(line.get_xdata()) for line in axes.lines):
        say(axes, "no gap is above 0, and no bound is above it")
        return
    axes.set(xscale="log", yscale="log")
    axes.legend(loc="lower left", fontsize="x-small")
    hidden = int((gap <= 0).sum())
    said = ["no theorem applies"] * (not _applying(run)) + [f"not shown: {hidden} with a gap of 0 or less"] * bool(hidden)
    if said:
        note(axes, "; ".join(said))


def terms(axes: Axes, run: Drawn) -> None:
    """Draw into a panel the three terms of each bound, stacked, beside the drop."""
    applying = _applying(run)
    if not applying:
        say(axes, "no theorem applies: " + next((b["reason"] for b in run.summary["bounds"].values()), "nothing was measured"))
        return
    values = [bound["value"] for bound in applying.values()]
    drop = run.drop if run.drop is not None and run.drop > 0 else None
    end = 1.15 * min(max([*values, drop or 0.0]), FAR * max(min(abs(value) for value in values), drop or 0.0) or 1.0) or 1.0
    for row, (key, bound) in enumerate(applying.items()):
        _stack(axes, row, bound["terms"])
        cut = bound["value"] > end
        axes.annotate(
            f"{bound['value']:.3g}{' →' if cut else ''}",
            (end if cut else max(bound["value"], 0.0), row),
            xytext=(-4 if cut else 4, 0),
            textcoords="offset points",
            ha="right" if cut else "left",
            va="center",
            fontsize="small",
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        ).set_gid(key)
    if drop is not None:
        axes.axvline(drop, color="black", linewidth=1.2, linestyle="--", label="drop of training")
    low = min(0.0, *(sum(min(term, 0.0) for term in bound["terms"].values()) for bound in applying.values()))
    axes.set(xlim=(1.15 * low, end), ylim=(len(applying) - 0.4, -0.6), xlabel="bound on the loss above f(x_p)")
    axes.set_yticks(range(len(applying)), [textwrap.fill(b["title"], 20) for b in applying.values()], fontsize="x-small")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.22), ncols=2, fontsize="x-small")


def _stack(axes: Axes, row: int, parts: dict[str, float]) -> None:
    """Draw one bar: what is positive to the right of 0, what is negative to the left."""
    right, left = 0.0, 0.0
    for name, said, colour, hatch in TERMS:
        value = parts[name]
        start = right if value >= 0 else left
        label = said if row == 0 else None
        axes.barh(row, value, left=start, height=0.6, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=label)
        right, left = right + max(value, 0.0), left + min(value, 0.0)


def _applying(run: Drawn) -> dict[str, dict[str, Any]]:
    """Return the theorems with a value, and with terms that can be drawn."""
    return {
        key: bound
        for key, bound in run.summary["bounds"].items()
        if bound["value"] is not None and None not in bound["terms"].values()
    }


def _positive(steps: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points that logarithmic axes have room for."""
    shown = values.isfinite() & (values > 0) & (steps > 0)
    return steps[shown], torch.as_tensor(values)[shown]
