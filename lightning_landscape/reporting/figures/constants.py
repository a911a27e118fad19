"""Picture of the constants of the conditions in each window of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._style import (
    GREY,
    SERIES,
    drawable,
    finite,
    legend,
    over_steps,
    picture,
    say,
    symlog,
)

CURVATURES = {
    "polyak_lojasiewicz": r"Polyak-Łojasiewicz $\mu$",
    "relaxed_polyak_lojasiewicz": r"relaxed PL $\mu$",
    "restricted_secant": r"restricted secant $\mu$",
    "error_bound": r"error bound $\mu$",
    "quadratic_growth": r"quadratic growth $\mu$",
    "weak_strong_convexity": r"weak strong conv. $\mu$",
    "upper_error_bound": r"upper error bound $L$",
    "smoothness": r"smoothness $L$",
}
"""Constants μ and L, which have the unit of a curvature except for the relaxed inequality"""
SHARES = {
    "quasar_convexity": r"quasar convexity $\theta$",
    "star_convexity": "star convexity, share",
    "aiming": r"aiming $\theta$",
    "gradient_angle": "gradient angle, cosine",
}
"""Constants without a unit"""


def draw_curvatures(axes: Axes, drawn: Drawn) -> None:
    """Draw μ and L of every condition that has them."""
    axes.set_ylabel(r"$\mu$, $L$")
    values = _lines(axes, drawn, CURVATURES)
    symlog(axes, values, decades=5)


def draw_shares(axes: Axes, drawn: Drawn) -> None:
    """Draw θ, the share of star convexity, and the cosine."""
    axes.set_ylabel(r"$\theta$, share, cosine")
    values = _lines(axes, drawn, SHARES)
    # Shares and cosines are at most 1, but θ can be large and would flatten them.
    if any(abs(value) > 10 for value in values):
        symlog(axes, values, decades=3)


def _lines(axes: Axes, drawn: Drawn, names: Mapping[str, str]) -> list[float]:
    """Draw a line per condition with a point in the middle of each window; return all values."""
    found = {key: drawn.summary["conditions"][key] for key in names}
    over_steps(
        axes,
        [
            edge
            for window in found[next(iter(names))]["windows"]
            for edge in (window["from"], window["to"])
        ],
    )
    drawable_ones = {key: entry for key, entry in found.items() if finite(windows(entry)[1])}
    if not drawable_ones:
        say(axes, _reason(found))
        return []
    axes.axhline(0, color=GREY, linewidth=0.8)
    everything: list[float] = []
    # Number all conditions, so that each keeps its color when others are missing.
    for number, (key, entry) in enumerate(found.items()):
        colour, line, marker = SERIES[number]
        if key in drawable_ones:
            middles, values = windows(entry)
            axes.plot(middles, values, line, color=colour, marker=marker, label=names[key])
            everything += finite(values)
    missing = [names[key].split(" $")[0].split(",")[0] for key in found if key not in drawable_ones]
    legend(axes, f"no window has a constant of {', '.join(missing)}" if missing else "")
    return everything


def windows(entry: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return the middle of each window and its constant, ``nan`` if it has none."""
    middles = [(window["from"] + window["to"]) / 2 for window in entry["windows"]]
    return middles, drawable(window["value"] for window in entry["windows"])


def _reason(found: Mapping[str, Any]) -> str:
    reasons = list(dict.fromkeys(entry["reason"] for entry in found.values() if entry["reason"]))
    return (
        f"no window of training has a constant: {reasons[0]}"
        if reasons
        else "no window of training has a constant"
    )


figure = picture(draw_curvatures, draw_shares, height=5.4, share_x=True)
