"""The constants of all conditions but the α-β-condition, per window of training."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape.reporting.figures._style import BLUE, GREY, ORANGE, Drawn, canvas, say

COLUMNS = 3


def constants(run: Drawn) -> Figure:
    """Draw a small panel for each condition: its constant in each window of training, and over all of it."""
    found = {key: condition for key, condition in run.summary["conditions"].items() if key != "alpha_beta"}
    figure, panels = canvas(-(-len(found) // COLUMNS), COLUMNS, width=6.2, height=6.4)
    for axes, (key, condition) in zip(panels, found.items(), strict=False):
        windows(axes, key, condition)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    return figure


def windows(axes: Axes, key: str, condition: dict[str, Any]) -> None:
    """Draw into a panel a condition's constant in each window, with the name of both; a window without one is left out."""
    axes.set_ylabel(f"{key.replace('_', ' ')}\n{condition['constant']}", fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.axhline(0, color=GREY, linewidth=0.8)
    shown = [window for window in condition["windows"] if window["value"] is not None]
    if condition["value"] is None and not shown:
        say(axes, condition["reason"] or "no value", width=24, fontsize="x-small")
        return
    for window in shown:
        axes.plot([window["from"], window["to"]], [window["value"]] * 2, color=BLUE, linewidth=2.5, solid_capstyle="butt")
    if condition["value"] is not None:
        axes.axhline(condition["value"], color=ORANGE, linewidth=1, linestyle="--")
    missing = len(condition["windows"]) - len(shown)
    if missing:
        axes.text(0.02, 0.03, f"{missing} windows without", fontsize="xx-small", color=GREY, transform=axes.transAxes)
