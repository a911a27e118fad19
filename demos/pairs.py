"""Common parts of experiments on all pairs of the α-β-condition: a table row and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_landscape.functional import beta_min
from lightning_landscape.reporting.compare import Group
from lightning_landscape.run import Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
RATES = torch.logspace(-2, 1, 61, dtype=torch.float64)
"""δ at which pairs are drawn"""


def over_seeds(runs: Sequence[Run], rates: Tensor = RATES) -> Tensor:
    """Return the smallest β at each δ that holds at every probe of all runs."""
    names = ("loss", "reference_loss", "inner_product", "loss_infimum")
    return torch.stack(
        [beta_min(rates, **run.table.evaluated.columns(*names)) for run in runs]
    ).amax(0)


def informative(rates: Tensor, betas: Tensor, group: Group) -> Tensor:
    """Return whether the neighbourhood (β_min(δ)/δ) σ² is below the drop, at each δ."""
    if group.interpolation_error is None or group.drop is None:
        return torch.zeros_like(rates, dtype=torch.bool)
    return betas / rates * group.interpolation_error < group.drop


def span(rates: Tensor, holds: Tensor) -> str:
    """Return the first and the last selected rate."""
    return (
        f"{float(rates[holds][0]):.3g} to {float(rates[holds][-1]):.3g}"
        if bool(holds.any())
        else "none"
    )


def row_of(name: str, group: Group, betas: Tensor) -> dict[str, Any]:
    """Return a row of the table."""
    good = informative(RATES, betas, group)
    return {
        "runs": name,
        "seeds": len(group.runs),
        "probes": group.probes,
        "alpha": group.alpha,
        "beta": group.beta,
        "beta_min_0.1": group.beta_min[0],
        "beta_min_1": group.beta_min[1],
        "interpolation_error": group.interpolation_error,
        "neighbourhood": group.neighbourhood,
        "drop": group.drop,
        "informativeness": group.informativeness,
        "informative_rates": span(RATES, good),
        "informative_share": float(good.double().mean()),
    }


def draw(
    path: Path,
    betas: Mapping[str, Tensor],
    groups: Mapping[str, Group],
    runs: Mapping[str, Sequence[Run]],
    unit: str = "nats a token",
    scales: Mapping[str, float] | None = None,
) -> None:
    """Draw losses, pairs and neighbourhoods.

    Args:
        path: path of the picture.
        betas: the smallest β at each of `RATES`, by group.
        groups: constants by group.
        runs: runs by group.
        unit: unit of the loss.
        scales: divisors of the losses by group, if the losses of groups are not comparable.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (name, curve), colour, line in zip(betas.items(), COLOURS, LINES, strict=False):
        style: dict[str, Any] = {"color": colour, "linestyle": line, "label": name}
        scale = 1.0 if scales is None else scales[name]
        for seed, run in enumerate(runs[name]):
            rows = run.table.evaluated
            marks = {**style, "label": name if seed == 0 else None, "linewidth": 1.0}
            left.plot(rows.column("step"), rows.column("loss") / scale, **marks)
            left.plot(
                rows.column("step"),
                rows.column("reference_loss") / scale,
                color=colour,
                linewidth=0.8,
                alpha=0.4,
            )
        middle.plot(curve + RATES, curve, **style)
        group = groups[name]
        if group.interpolation_error is not None and group.drop is not None:
            right.plot(RATES, curve / RATES * group.interpolation_error / group.drop, **style)
    left.set(xlabel="step", ylabel=f"mini-batch loss, {unit}")
    left.set_title("Loss at x_k, and pale the same batches at the end", fontsize="medium")
    middle.set(xlabel="α", ylabel="β", xscale="log", yscale="symlog", ylim=(-0.05, None))
    middle.set_title(
        "Pairs on and above a line, up to β < α,\nhold at all probes of all seeds",
        fontsize="medium",
    )
    right.axhline(1, color="#666666", linewidth=0.8)
    right.set(xlabel="δ = α − β", ylabel="(β_min(δ)/δ) σ² / drop", xscale="log")
    right.set_title("Below 1 the pair says something", fontsize="medium")
    left.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
