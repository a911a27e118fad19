"""Picture of the margin of the reported pair at each probe and on held-out batches."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes

from lightning_landscape import functional as F
from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._style import (
    BLUE,
    GREY,
    VERMILION,
    drawable,
    finite,
    legend,
    over_steps,
    picture,
    say,
    symlog,
)

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


Beside = Callable[[Axes, Drawn, float, float], list[float]]
"""Draws further margins for the pair (α, β) and returns them"""


def draw(axes: Axes, drawn: Drawn, beside: Beside | None = None) -> None:
    """Draw the margin of each probe and mark violations."""
    over_steps(axes, drawn.steps)
    axes.set_ylabel(r"margin of $(\alpha, \beta)$")
    found = drawn.alpha_beta
    alpha, beta = found["alpha"], found["beta"]
    if alpha is None or beta is None:
        say(axes, f"no pair, so no margin: {found['reason']}")
        return
    columns = drawn.rows.columns(*_COLUMNS)
    margins = drawable(F.alpha_beta_margin(alpha, beta, **columns))
    violated = F.alpha_beta_violations(alpha, beta, **columns).tolist()
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(drawn.steps, margins, "o-", color=BLUE, linewidth=0.8, label="holds")
    marked = [
        (step, margin)
        for step, margin, bad in zip(drawn.steps, margins, violated, strict=True)
        if bad
    ]
    if marked:
        axes.plot(
            *zip(*marked, strict=True),
            "X",
            color=VERMILION,
            markersize=7,
            label=f"violated: {len(marked)}",
        )
    shown = [*margins, *(beside(axes, drawn, alpha, beta) if beside else [])]
    # Margins span orders of magnitude, and the small ones near 0 matter most.
    if any(finite(shown)):
        symlog(axes, shown, decades=3)
    tight = min(zip(margins, drawn.steps, strict=True))
    note = (
        f"α = {alpha:.4g}, β = {beta:.4g}: smallest margin {tight[0]:.2g}, at step {tight[1]:.0f}"
    )
    legend(axes, drawn.doubt, note)


figure = picture(draw)
