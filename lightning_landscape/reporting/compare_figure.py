"""The picture of a comparison; needs matplotlib (``pip install lightning-landscape[plots]``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape.reporting.compare import RATES, Comparison, Group

# Okabe and Ito's palette, which colour-blind readers can tell apart; markers tell curves apart in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D")
LINES = ("-", "--", ":", "-.")
_TICKS = 12
"""Up to so many keys are written at the axis"""


def draw(comparison: Comparison) -> Figure:
    """Draw the pooled pair, its neighbourhood beside the drop, and the smallest β at fixed δ, against the key.

    Args:
        comparison: groups, at least one.

    Returns:
        A figure of three panels. Keys that are numbers over more than a decade are on a logarithmic axis.
    """
    groups = comparison.groups
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _curves(
        left,
        groups,
        {
            "α": [g.alpha for g in groups],
            "β": [g.beta for g in groups],
            "α − β": [g.rate for g in groups],
        },
    )
    _curves(
        middle,
        groups,
        {
            "neighbourhood (β/δ) σ²": [g.neighbourhood for g in groups],
            "mean drop": [g.drop for g in groups],
        },
    )
    _curves(
        right,
        groups,
        {
            f"β_min({rate:g})": [g.beta_min[place] for g in groups]
            for place, rate in enumerate(RATES)
        },
    )
    for axes, what in (
        (left, "pair with the smallest β/δ"),
        (middle, "loss"),
        (right, "smallest β at fixed δ"),
    ):
        axes.set(xlabel=comparison.group_by or "run", ylabel=what)
    return figure


def _curves(axes: Axes, groups: Sequence[Group], curves: dict[str, list[float | None]]) -> None:
    keys = [group.key for group in groups]
    numeric = _are_numbers(keys)
    places = (
        [float(key) for key in keys] if numeric else [float(place) for place in range(len(keys))]
    )
    for (name, values), colour, marker, line in zip(
        curves.items(), COLOURS, MARKERS, LINES, strict=False
    ):
        heights = [float("nan") if value is None else value for value in values]
        style = line if numeric else "none"
        axes.plot(
            places,
            heights,
            color=colour,
            marker=marker,
            linestyle=style,
            fillstyle="none",
            label=name,
        )
    if numeric and min(places) > 0 and max(places) > 10 * min(places):
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
    if not numeric:
        axes.set_xticks(
            places, [str(key) for key in keys], rotation=30, ha="right", rotation_mode="anchor"
        )
    elif len(keys) <= _TICKS:
        axes.set_xticks(places, [f"{key:g}" for key in places])
    axes.legend(fontsize="small")


def _are_numbers(keys: Sequence[float | int | str]) -> TypeGuard[Sequence[float | int]]:
    return all(isinstance(key, (int, float)) for key in keys)
