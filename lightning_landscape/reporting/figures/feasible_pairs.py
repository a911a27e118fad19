"""Which pairs of the α-β-condition hold at every probe, and which of them say something."""

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

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


def draw(axes: Axes, drawn: Drawn) -> None:
    """Draw the feasible set, lines of equal β/δ, each theorem's own pair, and what the certificate is worth."""
    if not draw_set(axes, drawn):
        return
    _equal_ratios(axes)
    _theorems(axes, drawn)
    legend(axes, drawn.doubt, worth(drawn))


def draw_set(axes: Axes, drawn: Drawn) -> bool:
    """Draw the exact lower boundary β_min over δ = α − β, the pairs above it, those that inform, and the reported pair.

    Returns:
        Whether there is a set to draw; else the panel says why not.
    """
    axes.set(xlabel=r"$\delta = \alpha - \beta$", ylabel=r"$\beta$")
    found = drawn.alpha_beta
    if found["neighbourhood"] is None:
        say(axes, found["reason"])
        return False
    end = _view(drawn)
    rates, betas = envelope(drawn, end)
    if not rates:
        say(axes, "the pairs that hold are beyond the numbers that can be drawn")
        return False
    top = 1.15 * max(betas) or end
    axes.fill_between(
        rates, betas, top, color=BLUE, alpha=0.15, linewidth=0, label="holds at every probe"
    )
    _informative(axes, drawn, rates, betas, top)
    axes.plot(rates, betas, color=BLUE, label=r"$\beta_{\min}(\delta)$, exact")
    if math.isinf(_beta_min(drawn, end)):  # probes with b = l bound δ, at the last corner
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
    """Return the points between which β_min is straight, for δ in (0, end]: its corners, and its ends."""
    points = {
        rate: beta
        for rate, beta in drawn.alpha_beta["vertices"]
        if None not in (rate, beta) and 0 < rate < end
    }
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
    """Return the largest δ in view: around the reported pair, with what is not far from it; else with all corners."""
    reported = drawn.alpha_beta["rate"]
    corners = [rate for rate, _ in drawn.alpha_beta["vertices"] if rate is not None and rate > 0]
    pairs = [
        bound["alpha"] - bound["beta"]
        for bound in drawn.applying.values()
        if bound["alpha"] is not None
    ]
    if reported is None:
        return min(2 * max(corners, default=1.0), 1e50)
    near = [rate for rate in (*corners, *pairs) if rate <= 6 * reported]
    return float(min(max([2 * reported, *(1.25 * rate for rate in near)]), 1e50))


def slope(drawn: Drawn) -> float | None:
    """Return drop/σ², the β/δ below which the neighbourhood is less than what training achieved; None if nothing informs."""
    error, drop = drawn.alpha_beta["interpolation_error"], drawn.drop
    if error is None or drop is None or drop <= 0 or drawn.doubt or _silent(drawn):
        return None
    return drop / error if error > 0 else math.inf


def _informative(
    axes: Axes, drawn: Drawn, rates: list[float], betas: list[float], top: float
) -> None:
    """Shade the pairs with (β/δ) σ² < drop; the boundary of each is straight between the points at which it is drawn."""
    steepest = slope(drawn)
    if steepest is None:
        return
    points = {*rates, *_crossings(rates, betas, steepest)}
    if rates[0] < top / steepest < rates[-1]:
        points.add(top / steepest)  # where the line leaves the view
    grid = torch.tensor(sorted(points), dtype=torch.float64)
    low = torch.tensor(
        [_between(rates, betas, rate) for rate in grid.tolist()], dtype=torch.float64
    )
    high = (steepest * grid).clamp(max=top)
    inside = (high >= low * (1 - 1e-12)).tolist()  # at a crossing they are equal but for rounding
    if sum(inside) < 2:
        return
    label = r"informative: $(\beta/\delta)\,\sigma^2 <$ drop"
    axes.fill_between(
        grid.tolist(), low.tolist(), high.tolist(), where=inside, facecolor=(*_rgb(GREEN), 0.25), edgecolor=GREEN, hatch="///",
        linewidth=0, label=label,
    )  # fmt: skip


def _crossings(rates: list[float], betas: list[float], steepest: float) -> list[float]:
    """Return where the line β = steepest · δ meets β_min."""
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
    """Draw thin lines of equal β/δ, each named where it leaves the view."""
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
        r"$\beta/\delta$", (1, 0), xycoords="axes fraction", xytext=(3, 0), textcoords="offset points", ha="left", va="center",
        color=GREY, fontsize=8,
    )  # fmt: skip


def _levels(diagonal: float) -> list[float]:
    """Return four numbers of one digit around the slope of the view's diagonal, a line each."""
    steps = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5)]
    power = 10.0 ** math.floor(math.log10(diagonal))
    allowed = [float(f"{power * step:.0e}") for step in steps]
    nearest = [
        min(allowed, key=lambda level: abs(math.log(level / (part * diagonal))))
        for part in (0.3, 0.7, 1.6, 4.0)
    ]
    return sorted(set(nearest))


def _theorems(axes: Axes, drawn: Drawn) -> None:
    """Mark the pair with which each theorem gives its smallest bound, where it is in view; theorems may share one."""
    end, top = axes.get_xlim()[1], axes.get_ylim()[1]
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
    """Return whether every pair holds, since no loss was above its value at the reference: none of them says anything."""
    return drawn.alpha_beta["neighbourhood"] == 0 and not drawn.alpha_beta["attained"]


def worth(drawn: Drawn) -> str:
    """Return a sentence on what the smallest neighbourhood is worth, and why there is no pair that attains it."""
    found, drop = drawn.alpha_beta, drawn.drop
    if _silent(drawn):
        return f"every pair holds: {found['reason']}"
    open_end = "" if found["attained"] else ", approached only as δ → ∞"
    size = f"smallest (β/δ) σ² = {found['neighbourhood']:.3g}"
    if drop is None:
        return f"{size}{open_end}; the drop of training, to compare it with, was not measured"
    if drop <= 0:
        return f"vacuous: training achieved no drop ({drop:.3g})"
    share = found["informativeness"]
    if share is None:
        return f"{size}{open_end}; beside the drop, {drop:.3g}, it is beyond float64"
    verdict = "" if drawn.doubt else "informative: " if share < 1 else "vacuous: "
    return f"{verdict}{size}, {share:.2g} of the drop {drop:.3g}{open_end}"


figure = picture(draw)
