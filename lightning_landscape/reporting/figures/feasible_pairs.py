"""Picture of the pairs (δ, β) that hold at every probe and of the informative ones among them."""

from __future__ import annotations

import math
import textwrap
from itertools import pairwise
from typing import Any

import torch
from matplotlib.axes import Axes

from lightning_landscape import functional as F
from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    SERIES,
    VERMILION,
    drawable,
    legend,
    picture,
    say,
)
from lightning_landscape.reporting.numbers import of_the_drop

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


def draw(axes: Axes, drawn: Drawn) -> None:
    """Draw the feasible set, lines of equal β/δ, the best pair of each theorem, and a verdict."""
    if not draw_set(axes, drawn):
        return
    _equal_ratios(axes)
    _theorems(axes, drawn)
    legend(axes, drawn.doubt, worth(drawn))


def draw_set(axes: Axes, drawn: Drawn) -> bool:
    """Draw β_min over δ = α − β, the pairs above it, the informative ones and the reported pair.

    Returns:
        Whether there is a set to draw. If not, the panel shows the reason.
    """
    axes.set(xlabel=r"$\delta = \alpha - \beta$", ylabel=r"$\beta$")
    found = drawn.alpha_beta
    if found["neighbourhood"] is None:
        say(axes, found["reason"])
        return False
    end = _view(drawn)
    rates, betas = envelope(drawn, end)
    if not rates:
        say(axes, "the feasible pairs are too large to draw")
        return False
    # β_min can be 0 in the whole view; then the view is a square.
    top = 1.15 * max(betas) or end
    axes.fill_between(
        rates, betas, top, color=BLUE, alpha=0.15, linewidth=0, label="holds at every probe"
    )
    _informative(axes, drawn, rates, betas, top)
    axes.plot(rates, betas, color=BLUE, label=r"$\beta_{\min}(\delta)$, exact")
    # Probes with b = l bound δ. The set then ends at its last corner, in a vertical wall.
    if math.isinf(_beta_min(drawn, end)):
        axes.plot([rates[-1], rates[-1]], [betas[-1], top], color=BLUE)
    if found["rate"] is not None:
        pair = ([found["rate"]], [found["beta"]])
        axes.plot(
            *pair,
            "o",
            color=VERMILION,
            markersize=6,
            clip_on=False,
            zorder=5,
            label=r"smallest $\beta/\delta$",
        )
    axes.set(xlim=(0, end), ylim=(0, top))
    return True


def envelope(drawn: Drawn, end: float) -> tuple[list[float], list[float]]:
    """Return δ and β of the points between which β_min is straight, for δ in (0, end]."""
    points = {
        rate: beta
        for rate, beta in drawn.alpha_beta["vertices"]
        if None not in (rate, beta) and 0 < rate < end
    }
    # δ = 0 itself is excluded, so the left end is a small positive δ.
    for rate in (end * 1e-6, end):
        points.setdefault(rate, _beta_min(drawn, rate))
    rates = sorted(points)
    shown = [
        (rate, beta)
        for rate, beta in zip(rates, drawable(map(points.get, rates)), strict=True)
        if not math.isnan(beta)
    ]
    return [rate for rate, _ in shown], [beta for _, beta in shown]


def _beta_min(drawn: Drawn, rate: float) -> float:
    return float(F.beta_min(rate, **drawn.rows.columns(*_COLUMNS)))


def _view(drawn: Drawn) -> float:
    """Return the largest δ in view.

    The view holds the reported pair and the corners and pairs of theorems near it. Without a
    reported pair it holds all corners.
    """
    reported = drawn.alpha_beta["rate"]
    corners = [rate for rate, _ in drawn.alpha_beta["vertices"] if rate is not None and rate > 0]
    pairs = [
        bound["alpha"] - bound["beta"]
        for bound in drawn.applying.values()
        if bound["alpha"] is not None
    ]
    if reported is None:
        return min(2 * max(corners, default=1.0), 1e50)
    # Farther corners would make the neighborhood of the reported pair too small to see.
    near = [rate for rate in (*corners, *pairs) if rate <= 6 * reported]
    return float(min(max([2 * reported, *(1.25 * rate for rate in near)]), 1e50))


def slope(drawn: Drawn) -> float | None:
    """Return drop/σ², below which a ratio β/δ is informative; None if no ratio is."""
    error, drop = drawn.alpha_beta["interpolation_error"], drawn.drop
    if error is None or drop is None or drop <= 0 or drawn.doubt or _silent(drawn):
        return None
    return drop / error if error > 0 else math.inf


def _informative(
    axes: Axes, drawn: Drawn, rates: list[float], betas: list[float], top: float
) -> None:
    """Shade the pairs with (β/δ) σ² < drop."""
    steepest = slope(drawn)
    if steepest is None:
        return
    # Both boundaries of the region are straight between these points, so the picture is exact.
    points = {*rates, *_crossings(rates, betas, steepest)}
    if rates[0] < top / steepest < rates[-1]:
        # The line β = steepest · δ leaves the view here.
        points.add(top / steepest)
    grid = torch.tensor(sorted(points), dtype=torch.float64)
    low = torch.tensor(
        [_between(rates, betas, rate) for rate in grid.tolist()], dtype=torch.float64
    )
    high = (steepest * grid).clamp(max=top)
    # At a crossing the two are equal up to rounding.
    inside = (high >= low * (1 - 1e-12)).tolist()
    if sum(inside) < 2:
        return
    label = r"informative: $(\beta/\delta)\,\sigma^2 <$ drop"
    axes.fill_between(
        grid.tolist(), low.tolist(), high.tolist(), where=inside, facecolor=(*_rgb(GREEN), 0.25),
        edgecolor=GREEN, hatch="///", linewidth=0, label=label,
    )  # fmt: skip


def _crossings(rates: list[float], betas: list[float], steepest: float) -> list[float]:
    """Return each δ at which the line β = steepest · δ meets β_min."""
    if math.isinf(steepest):
        return []
    found = []
    for (r, b), (s, c) in pairwise(zip(rates, betas, strict=True)):
        left, right = steepest * r - b, steepest * s - c
        if left * right < 0:
            found.append(r + (s - r) * left / (left - right))
    return found


def _between(rates: list[float], betas: list[float], rate: float) -> float:
    for (r, b), (s, c) in pairwise(zip(rates, betas, strict=True)):
        if r <= rate <= s:
            return b if rate == r else c if rate == s else b + (c - b) * (rate - r) / (s - r)
    return betas[0]


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def _equal_ratios(axes: Axes) -> None:
    """Draw thin lines of equal β/δ, each with its ratio at the edge of the view."""
    end, top = axes.get_xlim()[1], axes.get_ylim()[1]
    for ratio in _levels(top / end):
        at_right = ratio * end <= top
        x, y = (end, ratio * end) if at_right else (top / ratio, top)
        axes.plot([0, x], [0, y], color=GREY, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
        across, upright, offset = (
            ("left", "center", (3, 0)) if at_right else ("right", "top", (-4, -1))
        )
        axes.annotate(
            f"{ratio:g}",
            (x, y),
            xytext=offset,
            textcoords="offset points",
            ha=across,
            va=upright,
            color=GREY,
            fontsize=8,
        )
    axes.annotate(
        r"$\beta/\delta$", (1, 0), xycoords="axes fraction", xytext=(3, 0),
        textcoords="offset points", ha="left", va="center", color=GREY, fontsize=8,
    )  # fmt: skip


def _levels(diagonal: float) -> list[float]:
    """Return four one-digit ratios around the slope of the view's diagonal."""
    steps = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5)]
    power = 10.0 ** math.floor(math.log10(diagonal))
    allowed = [float(f"{power * step:.0e}") for step in steps]
    nearest = [
        min(allowed, key=lambda level: abs(math.log(level / (part * diagonal))))
        for part in (0.3, 0.7, 1.6, 4.0)
    ]
    return sorted(set(nearest))


def _theorems(axes: Axes, drawn: Drawn) -> None:
    """Mark the pairs in view that give theorems their smallest bound; theorems may share a pair."""
    end, top = axes.get_xlim()[1], axes.get_ylim()[1]
    # One marker per pair: several at the same place would hide each other.
    shared: dict[tuple[float, float], list[str]] = {}
    for key, bound in drawn.applying.items():
        if bound["alpha"] is not None:
            shared.setdefault((bound["alpha"] - bound["beta"], bound["beta"]), []).append(key)
    look: dict[str, Any] = {
        "markerfacecolor": "white",
        "markeredgecolor": BLACK,
        "markersize": 10,
        "clip_on": False,
    }
    for number, ((rate, beta), keys) in enumerate(shared.items()):
        if 0 < rate <= end and 0 <= beta <= top:
            label = textwrap.fill(f"best for {', '.join(keys)}", 34)
            axes.plot([rate], [beta], SERIES[1 + number % 7][2], label=label, zorder=4, **look)


def _silent(drawn: Drawn) -> bool:
    """Return whether every pair holds because no probe has a loss above that at the reference."""
    return drawn.alpha_beta["neighbourhood"] == 0 and not drawn.alpha_beta["attained"]


def worth(drawn: Drawn) -> str:
    """Return a sentence on the smallest neighbourhood: informative or vacuous, attained or not."""
    found, drop = drawn.alpha_beta, drawn.drop
    if _silent(drawn):
        return f"every pair holds: {found['reason']}"
    open_end = "" if found["attained"] else ", approached only as δ → ∞"
    size = f"smallest (β/δ) σ² = {found['neighbourhood']:.3g}"
    if drop is None:
        return f"{size}{open_end}; the drop f(x_0) − f(x_p) to compare it with was not measured"
    if drop <= 0:
        return f"vacuous: training did not lower the loss, f(x_0) − f(x_p) = {drop:.3g}"
    share = found["informativeness"]
    if share is None:
        return f"{size}{open_end}; its ratio to the drop {drop:.3g} exceeds float64"
    verdict = "" if drawn.doubt else "informative: " if share < 1 else "vacuous: "
    part = f"the smallest possible; the drop is {drop:.3g}"
    if share > 0:
        part = f"{of_the_drop(share)} {drop:.3g}"
    return f"{verdict}{size}, {part}{open_end}"


figure = picture(draw)
