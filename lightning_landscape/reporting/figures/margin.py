"""How far each probe is from contradicting the reported pair."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape import functional as F
from lightning_landscape.reporting.figures._style import BLUE, GREY, ORANGE, Drawn, canvas, note, say


def margin(run: Drawn) -> Figure:
    """Draw ⟨∇f_i, x − x_p⟩ − α(f_i(x) − f_i(x_p)) + β(f_i(x) − l) of each probe, for the reported pair."""
    figure, (axes,) = canvas()
    margins(axes, run)
    return figure


def margins(axes: Axes, run: Drawn) -> None:
    """Draw into a panel; where the margin is zero the probe decides the pair."""
    axes.set(xlabel="step", ylabel="margin")
    found = run.alpha_beta
    if found["alpha"] is None:
        say(axes, f"there is no reported pair: {found['reason']}")
        return
    columns = run.rows.columns("loss", "reference_loss", "inner_product", "loss_infimum")
    values = F.alpha_beta_margin(found["alpha"], found["beta"], **columns)
    steps, size = run.rows.column("logged_step"), float(values.abs().max())
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.vlines(steps, 0, values, color=BLUE, linewidth=0.8)
    axes.plot(steps, values, ".", color=BLUE)
    tight = values <= 1e-9 * size
    axes.plot(steps[tight], values[tight], "o", color=ORANGE, label="decides the pair")
    axes.legend(loc="upper left")
    said = f"α = {found['alpha']:.3g}, β = {found['beta']:.3g}"
    note(axes, f"{said}; vacuous" if found["informative"] is False else said)
