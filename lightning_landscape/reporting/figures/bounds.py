"""Picture of the bound of each applicable theorem, against the measured gap and by its parts."""

from __future__ import annotations

import math
from itertools import accumulate

from matplotlib.axes import Axes

from lightning_landscape.reporting.certificates import TERMS, own_theorem
from lightning_landscape.reporting.conditions import NO_PROBE
from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    SERIES,
    SKY,
    counted,
    drawable,
    finite,
    legend,
    picture,
    say,
)

_LOOKS = {
    "initial_distance": (BLUE, ""),
    "step_size_noise": (ORANGE, "///"),
    "neighbourhood": (SKY, "..."),
}
_NAMES = {
    "initial_distance": "initial distance",
    "step_size_noise": "step-size noise",
    "neighbourhood": r"neighbourhood, $\beta\sigma^2$",
}
_FARTHEST = 20.0
"""The view ends at this multiple of the shortest bar or the drop, so that short bars show"""


MARGIN = ("bound/lower", "bound/gap", "bound/in_force")
"""Curves of TensorBoard's margin chart, which belong to no single theorem"""


def draw_curves(axes: Axes, drawn: Drawn) -> None:
    """Draw the measured gap and every applicable bound over the number of updates.

    The vertical axis is logarithmic, so values ≤ 0 are left out.
    """
    axes.set(xlabel=r"updates since $x_0$", ylabel="gap to the reference")
    if not len(drawn.rows):
        say(axes, NO_PROBE)
        return
    updates = [step - drawn.steps[0] for step in drawn.steps]
    gaps = drawable(drawn.rows.column("loss") - drawn.rows.column("reference_loss"))
    lines = _curves(drawn)
    if not any(value > 0 for values in (gaps, *lines.values()) for value in finite(values)):
        below = "no probe has a loss above its loss at the reference, and there is no bound to draw"
        say(axes, below if finite(gaps) else "the gaps are too large to draw")
        return
    stride = updates[1] if len(updates) > 1 else 1.0
    # The first probe is after 0 updates, which a logarithmic axis could not show.
    axes.set_xscale("symlog", linthresh=stride)
    axes.set_yscale("log")
    axes.plot(
        updates, _positive(gaps), "o", color=GREY, markersize=3, zorder=3, label="gap of a probe"
    )
    axes.plot(
        updates,
        _positive(_running_mean(gaps)),
        color=BLACK,
        linewidth=1.8,
        label="running mean of gaps",
    )
    _bound_lines(axes, updates, lines)
    _drop(axes.axhline, drawn)
    axes.set_xlim(-0.1 * stride, max(updates[-1], 1.0) * 1.1)
    hidden = counted(sum(gap <= 0 for gap in gaps), "with a gap of 0 or below, not on the log axis")
    legend(axes, drawn.doubt, "" if drawn.applying else "no theorem applies", hidden)


def draw_terms(axes: Axes, drawn: Drawn) -> None:
    """Draw each bound as a bar of its three parts, negative ones to the left, beside the drop."""
    axes.set(xlabel="bound, in units of the loss")
    bounds = {key: bound for key, bound in drawn.applying.items() if abs(bound["value"]) < 1e100}
    if not bounds:
        say(axes, _none_applies(drawn) or "the bounds are too large to draw")
        return
    end = _end(drawn, [bound["value"] for bound in bounds.values()])
    sums = [
        _stack(axes, row, bound["terms"], row == 0) for row, bound in enumerate(bounds.values())
    ]
    start = min(0.0, *(low for low, _ in sums)) if sums else 0.0
    for row, bound in enumerate(bounds.values()):
        _value(axes, row, bound["value"], sums[row][1], end)
    _drop(axes.axvline, drawn)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(bounds)), list(bounds))
    axes.set(xlim=(1.1 * max(start, -end), 1.25 * end), ylim=(len(bounds) - 0.4, -0.6))
    legend(axes, _no_line(drawn), columns=2)


def _curves(drawn: Drawn) -> dict[str, list[float]]:
    found = {
        tag.removeprefix("bound/"): drawable(curve)
        for tag, curve in drawn.bound_curves.items()
        if tag not in MARGIN
    }
    return {key: values for key, values in found.items() if finite(values)}


def _bound_lines(axes: Axes, updates: list[float], lines: dict[str, list[float]]) -> None:
    """Draw the bounds; earlier ones are wider, so that lines that coincide all remain visible."""
    for number, (key, values) in enumerate(lines.items()):
        colour, line, marker = SERIES[number % len(SERIES)]
        # Widths and places of markers differ, so that coinciding lines can be told apart.
        width = 1.2 + 0.6 * (len(lines) - 1 - number)
        places = max(1, len(values) // 6)
        axes.plot(
            updates, _positive(values), line, color=colour, linewidth=width, marker=marker,
            markevery=(number % places, places), markersize=4, markerfacecolor="white", label=key,
        )  # fmt: skip


def _positive(values: list[float]) -> list[float]:
    return [value if value > 0 else math.nan for value in values]


def _running_mean(values: list[float]) -> list[float]:
    """Return for each value the mean of the values up to it, without ``nan``."""
    # A sum would stay nan after the first value that cannot be drawn.
    sums = accumulate(0.0 if math.isnan(value) else value for value in values)
    counts = accumulate(not math.isnan(value) for value in values)
    return [total / count if count else math.nan for total, count in zip(sums, counts, strict=True)]


def _stack(
    axes: Axes, row: int, terms: dict[str, float | None], labelled: bool
) -> tuple[float, float]:
    """Stack positive parts to the right and negative ones to the left; return the two ends."""
    low = high = 0.0
    for name in TERMS:
        size = terms[name] or 0.0
        colour, hatch = _LOOKS[name]
        # Sharper bounds subtract a part; it goes to the left, since bars cannot be negative.
        start = high if size >= 0 else low
        label = _NAMES[name] if labelled else "_nolegend_"
        axes.barh(
            row,
            size,
            0.7,
            start,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=label,
        )
        low, high = (low, high + size) if size >= 0 else (low + size, high)
    return low, high


def _value(axes: Axes, row: int, value: float, stacked: float, end: float) -> None:
    """Write the value of a bound beside its bar."""
    # With negative parts the value is less than the end of the bar, so it gets a mark.
    if value < stacked * (1 - 1e-9):
        axes.plot([value], [row], "d", color=BLACK, markersize=6)
    beyond = stacked > end * (1 + 1e-9)
    text = f"{value:.3g} →" if beyond else f" {value:.3g}"
    # The line of the drop may run behind the text.
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    place, side = (1.24 * end, "right") if beyond else (stacked, "left")
    axes.text(place, row, text, va="center", ha=side, fontsize=8, bbox=paper)


def _end(drawn: Drawn, values: list[float]) -> float:
    drop = drawn.drop or 0.0
    scale = max(min(abs(value) for value in values), drop)
    return max(min(max(abs(value) for value in values), _FARTHEST * scale), 1.1 * drop) or 1.0


def _drop(line: object, drawn: Drawn) -> None:
    """Draw a line at the drop; a bound beyond it is vacuous."""
    if drawn.drop is not None and 0 < drawn.drop < 1e100 and callable(line):
        line(
            drawn.drop,
            color=BLACK,
            linestyle=(0, (4, 2)),
            linewidth=1.2,
            label="drop (beyond: vacuous)",
        )


def _no_line(drawn: Drawn) -> str:
    if drawn.drop is None:
        return "the drop f(x_0) − f(x_p) to compare bounds with was not measured"
    if drawn.drop <= 0:
        return f"vacuous: training did not lower the loss, f(x_0) − f(x_p) = {drawn.drop:.3g}"
    return ""


def _none_applies(drawn: Drawn) -> str:
    if drawn.applying:
        return ""
    run, bounds = drawn.summary["run"], drawn.summary["bounds"]
    return f"no theorem applies: {bounds[own_theorem(run)]['reason']}"


figure = picture(draw_curves, draw_terms, height=5.4)
