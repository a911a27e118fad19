"""Pictures of what the table of probes says; needs matplotlib (``pip install lightning-landscape[plots]``)."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape import functional as F
from lightning_landscape.probes import ProbeTable

# Okabe and Ito's palette, which colour-blind readers can tell apart
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def overview(table: ProbeTable, summary: dict[str, Any]) -> Figure:
    """Draw the feasible pairs, the loss beside the reference's, and the angle, of one run.

    Args:
        table: the table of probes; rows whose reference columns are not known are left out.
        summary: the content of ``summary.json``.

    Returns:
        A figure of three panels; a panel that has nothing to show says why.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    rows = table.evaluated
    feasible_pairs(left, rows, summary["conditions"]["alpha_beta"])
    losses(middle, rows)
    angles(right, rows)
    return figure


def feasible_pairs(axes: Axes, table: ProbeTable, alpha_beta: dict[str, Any]) -> None:
    """Draw the exact lower boundary β_min over δ = α − β, the region above it, and the reported pair."""
    axes.set(xlabel="δ = α − β", ylabel="β")
    vertices = alpha_beta["vertices"]
    if alpha_beta["neighbourhood"] is None:
        _say(axes, alpha_beta["reason"])
        return
    end = max([2.0, *(2 * rate for rate, _ in vertices if rate is not None)])
    columns = table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
    corners = [rate for rate, _ in vertices if rate is not None and 0 < rate < end]
    rates = torch.tensor(sorted({end * 1e-6, *corners, end}), dtype=torch.float64)
    betas = F.beta_min(rates, **columns)
    inside = betas.isfinite()
    rates, betas = rates[inside], betas[inside]
    top = float(betas.max()) * 1.15 or 1.0
    axes.plot(rates, betas, color=BLUE, label="β_min(δ), exact")
    axes.fill_between(rates, betas, top, color=BLUE, alpha=0.15, label="holds at every probe")
    if alpha_beta["rate"] is not None:
        axes.plot([alpha_beta["rate"]], [alpha_beta["beta"]], "o", color=ORANGE, label="smallest β/δ")
    axes.set(xlim=(0, end), ylim=(0, top))
    axes.legend(loc="upper left", fontsize="small")


def losses(axes: Axes, table: ProbeTable) -> None:
    """Draw each mini-batch's loss at the iterate and at the reference."""
    axes.set(xlabel="step", ylabel="mini-batch loss")
    if not len(table):
        _say(axes, "no probe was evaluated at the reference")
        return
    steps = table.column("logged_step")
    axes.plot(steps, table.column("loss"), color=BLUE, label="at the iterate")
    axes.plot(steps, table.column("reference_loss"), color=GREEN, label="at the reference")
    axes.legend(fontsize="small")


def angles(axes: Axes, table: ProbeTable) -> None:
    """Draw the cosine between the gradient and the direction away from the reference."""
    axes.set(xlabel="step", ylabel="cosine(gradient, x − x_p)")
    if not len(table):
        _say(axes, "no probe was evaluated at the reference")
        return
    values = F.cosine(**table.columns("inner_product", "grad_sq_norm", "sq_distance"))
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(table.column("logged_step"), values, color=BLUE)


def _say(axes: Axes, what: str) -> None:
    axes.text(0.5, 0.5, what, ha="center", va="center", wrap=True, color=GREY, fontsize="small", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])
