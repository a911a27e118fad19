"""The common style of all pictures.

They are readable as a thumbnail of 480 × 360 pixels, in one column of a paper, in gray and by
color-blind readers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from matplotlib import style as _styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from torch import Tensor

from lightning_landscape.reporting.figures._drawn import Drawn

Panel = Callable[[Axes, Drawn], None]
"""A function that draws one panel of a run into the caller's axes"""

# The palette of Okabe and Ito, which color-blind readers can tell apart.
BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
ORANGE, SKY, PURPLE, GREY = "#E69F00", "#56B4E9", "#CC79A7", "#666666"
SERIES: tuple[tuple[str, str, str], ...] = (
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    (ORANGE, "-", "v"),
    (SKY, "--", "P"),
    (BLACK, "-.", "X"),
    (GREY, ":", "*"),
)
"""Color, line and marker of each series; series of different colors differ in all three"""

WIDTH, HEIGHT = 4.8, 3.6
"""Size in inches: 480 × 360 pixels at 100 dots per inch"""
DPI = 200
"""Resolution of PNG files: twice that of a thumbnail"""
_LARGEST = 1e100
"""Larger values overflow in matplotlib's layout"""
_CHARACTERS = 62
"""Characters per line of a note; such a line fits the narrowest axes"""

_RC: dict[str, Any] = {
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.constrained_layout.w_pad": 0.07,
    "pdf.fonttype": 42,  # text stays text: journals refuse Type 3 fonts
    "savefig.dpi": DPI,
}


def style() -> AbstractContextManager[None]:
    """Return a context with our style settings, independent of the user's."""
    # "default" comes first, so that nothing of the user's style shows through.
    return _styles.context(["default", _RC])


def picture(
    *panels: Panel, height: float = HEIGHT, share_x: bool = False
) -> Callable[[Drawn], Figure]:
    """Return a function that draws panels of a run, one above the other, into a new figure."""

    def figure(drawn: Drawn) -> Figure:
        with style():
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            column = figure.subplots(len(panels), 1, squeeze=False, sharex=share_x)[:, 0]
            for axes, panel in zip(column, panels, strict=True):
                panel(axes, drawn)
                plain_numbers(axes)
                if share_x:
                    axes.label_outer()
            figure.draw_without_rendering()
            # A figure is saved several times and layout takes most of that time, so freeze it.
            figure.set_layout_engine("none")
        return figure

    return figure


class _Sentence(Text):
    """A text that wraps at the width of its axes.

    Matplotlib wraps at the edge of the figure, so a text could run into the next panel.
    """

    def _get_wrap_line_width(self) -> float:
        return 0.92 * self.axes.bbox.width if self.axes else 0.0


def say(axes: Axes, what: str) -> None:
    """Write a sentence into axes without a plot."""
    text = _Sentence(
        0.5,
        0.5,
        what,
        ha="center",
        va="center",
        wrap=True,
        color=GREY,
        fontsize=8,
        parse_math=False,  # a reason may contain $ or _
    )
    # A long text must not shrink the axes.
    text.set(transform=axes.transAxes, in_layout=False)
    axes.add_artist(text)
    axes.set(xticks=[], yticks=[])


def plain_numbers(axes: Axes) -> None:
    """Write tick labels of linear axes in full.

    By default matplotlib writes a common factor above the axes, where our legend is.
    """
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), ScalarFormatter):
            axis.set_major_formatter("{x:.6g}")


def over_steps(axes: Axes, steps: Sequence[float]) -> None:
    """Make the horizontal axis one of optimizer steps, from the first of ``steps`` to the last."""
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if steps:
        # Room at both ends keeps the first and the last marker whole.
        room = 0.04 * (steps[-1] - steps[0]) or 1.0
        axes.set_xlim(steps[0] - room, steps[-1] + room)


def legend(axes: Axes, *notes: str, columns: int = 2) -> None:
    """Put notes and the legend above the axes, where they hide no data."""
    lines = [textwrap.fill(note, _CHARACTERS) for note in notes if note]
    handles, labels = axes.get_legend_handles_labels()
    if not handles and not lines:
        return
    key = axes.legend(
        handles,
        labels,
        title="\n".join(lines) or None,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        borderpad=0.0,
        handlelength=2.4,
        columnspacing=1.2,
    )
    key.get_title().set(color=GREY, parse_math=False)


def drawable(values: Tensor | Iterable[float | None]) -> list[float]:
    """Return values with ``nan`` (not drawn) for None, infinite and too large ones."""
    listed: Iterable[float | None] = values.tolist() if isinstance(values, Tensor) else values
    return [
        math.nan if value is None or not abs(value) < _LARGEST else float(value) for value in listed
    ]


def finite(values: Iterable[float]) -> list[float]:
    """Return the values that are not ``nan``."""
    return [value for value in values if not math.isnan(value)]


def symlog(axes: Axes, values: Iterable[float], decades: int) -> None:
    """Scale the vertical axis so that zero, both signs and small values are visible.

    Args:
        axes: axes with the values.
        values: the drawn values.
        decades: the scale is logarithmic down to the smallest absolute value, but at most over this
            many decades below the largest; it is linear below.
    """
    known = finite(values)
    sizes = [abs(value) for value in known if value]
    # On a linear axis a value of 1/30 of the largest is still visible.
    if not sizes or max(sizes) < 30 * min(sizes):
        return
    smallest = max(min(sizes), max(sizes) * 10.0**-decades)
    axes.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(smallest)), linscale=0.5)
    # Margins are taken on the transformed scale, where they have the same size at both ends.
    scale = axes.yaxis.get_transform()
    low, high = scale.transform([min(0.0, *known), max(0.0, *known)])
    room = 0.06 * (high - low)
    axes.set_ylim(*scale.inverted().transform([low - room, high + room]))


def counted(count: int, what: str) -> str:
    """Return a note such as ``2 probes <what>``; empty for a count of 0."""
    return f"{count} probe{'s' if count > 1 else ''} {what}" if count else ""
