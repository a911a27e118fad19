"""The picture of a comparison; needs matplotlib (``pip install lightning-landscape[plots]``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape.reporting.compare import RATES, Comparison, Group

# color-blind readers can distinguish the palette of Okabe and Ito; markers are for print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D")
LINES = ("-", "--", ":", "-.")
_TICKS = 12
"""Largest number of keys with a label at the axis."""


def draw(comparison: Comparison) -> Figure:
    """Draw the pair, its neighbourhood, the drop and the smallest β at fixed δ, against the key.

    Args:
        comparison: at least one group.

    Returns:
        A figure of three panels. The axis is logarithmic if the keys are positive numbers over
        more than a decade.
    """
    groups = comparison.groups
    panels: dict[str, dict[str, list[float | None]]] = {
        "pair with the smallest β/δ": {
            "α": [group.alpha for group in groups],
            "β": [group.beta for group in groups],
            "α − β": [group.rate for group in groups],
        },
        "loss": {
            "neighbourhood (β/δ) σ²": [group.neighbourhood for group in groups],
            "mean drop": [group.drop for group in groups],
        },
        "smallest β at fixed δ": {
            f"β_min({rate:g})": [group.beta_min[place] for group in groups]
            for place, rate in enumerate(RATES)
        },
    }
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        _curves(axes, groups, curves)
        axes.set(xlabel=comparison.group_by or "run", ylabel=title)
    return figure


def _curves(axes: Axes, groups: Sequence[Group], curves: dict[str, list[float | None]]) -> None:
    keys = [group.key for group in groups]
    numeric = _are_numbers(keys)
    places = [float(key) for key in keys] if numeric else list(map(float, range(len(keys))))
    styles = zip(COLOURS, MARKERS, LINES, strict=True)
    for (name, values), (color, marker, line) in zip(curves.items(), styles, strict=False):
        heights = [float("nan") if value is None else value for value in values]
        (curve,) = axes.plot(places, heights, color=color, marker=marker, label=name)
        curve.set(linestyle=line if numeric else "none", fillstyle="none")
    if numeric and min(places) > 0 and max(places) > 10 * min(places):
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
    if not numeric:
        names = [str(key) for key in keys]
        axes.set_xticks(places, names, rotation=30, ha="right", rotation_mode="anchor")
    elif len(keys) <= _TICKS:
        axes.set_xticks(places, [f"{key:g}" for key in places])
    axes.legend(fontsize="small")


def _are_numbers(keys: Sequence[float | int | str]) -> TypeGuard[Sequence[float | int]]:
    return all(isinstance(key, (int, float)) for key in keys)
