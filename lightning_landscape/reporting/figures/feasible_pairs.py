"""All pairs with which the α-β-condition holds at every probe, and which of them are worth something."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape import functional as F
from lightning_landscape.reporting.figures._style import BLUE, GREEN, GREY, ORANGE, PURPLE, Drawn, canvas, note, say


def feasible_pairs(run: Drawn) -> Figure:
    """Draw the feasible region of (δ, β), δ = α − β, with its exact boundary and the reported pair."""
    figure, (axes,) = canvas()
    region(axes, run)
    return figure


def region(axes: Axes, run: Drawn) -> None:
    """Draw into a panel: the boundary β_min(δ), lines of equal β/δ, and where the neighbourhood is below the drop."""
    axes.set(xlabel="δ = α − β", ylabel="β")
    found = run.alpha_beta
    if found["neighbourhood"] is None:
        say(axes, found["reason"])
        return
    end, rates, betas = boundary(run)
    top = 1.15 * float(betas.max()) or 1.0
    axes.plot(rates, betas, color=BLUE, label="β_min(δ), exact")
    axes.fill_between(rates, betas, top, color=BLUE, alpha=0.15, linewidth=0, label="holds at every probe")
    _informative(axes, run, rates, betas, top)
    _equal_ratios(axes, end, top)
    if found["rate"] is not None:
        axes.plot([found["rate"]], [found["beta"]], "o", color=ORANGE, zorder=5, clip_on=False, label="smallest β/δ")
    _pairs_of_theorems(axes, run, end, top)
    axes.set(xlim=(0, end), ylim=(0, top))
    axes.legend(loc="upper left")
    if found["informative"] is False:
        note(axes, f"vacuous: the neighbourhood {found['neighbourhood']:.3g} is not below the drop", where="lower right")
    elif found["rate"] is None:
        note(axes, f"no best pair: {found['reason']}", where="lower right")


def boundary(run: Drawn) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return where the picture ends, and β_min at its corners in between, float64."""
    rates = [rate for rate, _ in run.alpha_beta["vertices"] if rate is not None]
    reported = run.alpha_beta["rate"]
    end = 1.6 * max([0.75, *rates[:3], *([reported] if reported is not None else [])])
    inside = sorted({end * 1e-6, *(rate for rate in rates if 0 < rate < end), end})
    deltas = torch.tensor(inside, dtype=torch.float64)
    betas = F.beta_min(deltas, **run.rows.columns("loss", "reference_loss", "inner_product", "loss_infimum"))
    there = betas.isfinite()
    return end, deltas[there], betas[there]


def _informative(axes: Axes, run: Drawn, rates: torch.Tensor, betas: torch.Tensor, top: float) -> None:
    """Shade the feasible pairs whose neighbourhood (β/δ)σ² is below the drop."""
    drop, noise = run.drop, run.alpha_beta["interpolation_error"]
    if drop is None or drop <= 0 or noise is None:
        return
    fine = torch.linspace(float(rates[0]), float(rates[-1]), 400, dtype=torch.float64)
    low = F.beta_min(fine, **run.rows.columns("loss", "reference_loss", "inner_product", "loss_infimum"))
    high = (fine * drop / noise).clamp(max=top) if noise > 0 else torch.full_like(fine, top)
    if not bool((high > low).any()):
        return
    axes.fill_between(
        fine, low, high, where=(high > low).tolist(), color=GREEN, alpha=0.25, linewidth=0, label="informative: (β/δ)σ² < drop"
    )


def _equal_ratios(axes: Axes, end: float, top: float) -> None:
    for share in (0.25, 0.5, 1.0):
        slope = share * top / end
        axes.plot([0, end], [0, slope * end], color=GREY, linewidth=0.6, linestyle=":", zorder=0)
        axes.annotate(f"β/δ = {slope:.2g}", (end, slope * end), ha="right", va="bottom", fontsize="x-small", color=GREY)


def _pairs_of_theorems(axes: Axes, run: Drawn, end: float, top: float) -> None:
    """Mark the pairs at which the theorems' own bounds are smallest, where they are in the picture."""
    pairs = {(b["alpha"] - b["beta"], b["beta"]) for b in run.summary["bounds"].values() if b["alpha"] is not None}
    shown = sorted(pair for pair in pairs if pair[0] <= end and pair[1] <= top)
    if shown:
        xs, ys = zip(*shown, strict=True)
        axes.plot(xs, ys, "x", color=PURPLE, zorder=4, clip_on=False, label="best for a theorem")
