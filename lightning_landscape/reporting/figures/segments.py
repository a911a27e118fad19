"""The loss on straight lines from x_0, and from some iterates, to the reference."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape.reporting.figures._style import LINES, Drawn, canvas, say


def segments(run: Drawn) -> Figure:
    """Draw f_i(x_k + t(x_p − x_k)) over t, a curve for each k."""
    figure, (axes,) = canvas()
    lines(axes, run)
    return figure


def lines(axes: Axes, run: Drawn) -> None:
    """Draw into a panel; each curve is of the mini-batch of its own step."""
    axes.set(xlabel="t, from x_k (0) to x_p (1)", ylabel="f_i(x_k + t(x_p − x_k))")
    starts = sorted({point.step for point in run.segments})
    if not starts:
        say(axes, "no line to the reference was evaluated (segments=0, or the iterates were not stored)")
        return
    colours = mpl.colormaps["viridis"]
    for place, start in enumerate(starts):
        points = sorted((p.fraction, p.loss) for p in run.segments if p.step == start)
        colour = colours(0.85 * place / max(len(starts) - 1, 1))
        line = LINES[place % len(LINES)][1]
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=".", label=f"from step {start}")
    axes.legend()
