"""The values of the curves by tag, as pure functions of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.bounds import THEOREMS, Evidence, in_force
from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.reporting.conditions import columns_of, metrics

Curves = dict[str, Tensor]
"""One value for each row of a table, by tag without prefix; ``nan`` if there is no point"""

_CONDITIONS = metrics()  # shared, because the constants of single probes need no state
WHILE_TRAINING = ("polyak_lojasiewicz", "smoothness")
"""Conditions that need no reference"""
WITH_REFERENCE = tuple(key for key in _CONDITIONS if key not in WHILE_TRAINING)


def known_while_training(table: ProbeTable) -> Curves:
    """Return the curves that need no reference."""
    return {
        "loss": table.column("loss"),
        "grad_norm": table.column("grad_sq_norm").sqrt(),
        "step_size": table.column("step_size"),
        **condition_curves(table, WHILE_TRAINING),
    }


def known_with_reference(table: ProbeTable) -> Curves:
    """Return the curves that need the reference and one probe at a time."""
    columns = table.columns("inner_product", "grad_sq_norm", "sq_distance")
    empty = torch.zeros(0, dtype=torch.float64)
    return {
        "reference_loss": table.column("reference_loss"),
        "gap": table.column("loss") - table.column("reference_loss"),
        "inner_product": columns["inner_product"],
        "distance": columns["sq_distance"].sqrt(),
        "cosine": F.cosine(**columns) if len(table) else empty,
        **condition_curves(table, WITH_REFERENCE),
    }


def condition_curves(table: ProbeTable, keys: Sequence[str]) -> Curves:
    """Return the constants of conditions at single probes, for the mini-batch losses.

    Args:
        table: the rows.
        keys: names of the conditions.
    """
    if not len(table):
        return {}
    chosen = {key: _CONDITIONS[key] for key in keys}
    columns = table.columns(*{name for metric in chosen.values() for name in metric.columns})
    return {
        f"{key}/{m.constant}": m.ratio(**{name: columns[name] for name in m.columns})
        for key, m in chosen.items()
    }


def bound_curves(table: ProbeTable, run: Mapping[str, Any]) -> Curves:
    """Return the bounds of the theorems that apply, after the steps before each probe.

    They use the final pair and constants, and are ``nan`` at the first probe, before any step.

    Three more curves with the same steps draw loss gap and bound as a margin in TensorBoard:
    ``bound/in_force``, the bound in the verdict, ``bound/gap``, and ``bound/lower`` = 0.

    Args:
        table: the rows.
        run: the ``run`` part of ``summary.json``.
    """
    evidence = Evidence(table, run)
    certificates = {theorem.name: theorem.certify(evidence) for theorem in THEOREMS}
    curves = {
        f"bound/{t.name}": t.curve(evidence, certificates[t.name])
        for t in THEOREMS
        if certificates[t.name].applies
    }
    best = in_force(list(certificates.values()))
    if best is not None:
        upper = curves[f"bound/{best.theorem}"]
        gap = table.column("loss") - table.column("reference_loss")
        both = upper.isfinite() & gap.isfinite()
        margin = {"bound/in_force": upper, "bound/gap": gap, "bound/lower": torch.zeros_like(upper)}
        curves |= {tag: curve.where(both, torch.nan) for tag, curve in margin.items()}
    return curves


class RunningAlphaBeta:
    """The best pair (α, β) over all probes so far, at the same cost for every probe.

    From the first probe on whose loss is below the infimum, no pair is defined and no value exists.
    """

    def __init__(self) -> None:
        self._pairs = F.RunningBestAlphaBeta()
        self._excess = 0.0
        self._defined = True

    def add(self, probe: Probe) -> dict[str, float]:
        """Add a probe with known reference columns, and return the new values by tag."""
        b, low = probe.reference_loss, probe.loss_infimum
        if b is None or probe.inner_product is None or min(probe.loss, b) < low:
            self._defined = False
        if not self._defined or b is None or probe.inner_product is None:
            return {}
        pair = self._pairs.add(
            loss=probe.loss, reference_loss=b, inner_product=probe.inner_product, loss_infimum=low
        )
        self._excess += b - low
        neighbourhood = float(pair.ratio) * self._excess / len(self._pairs)
        values = {
            f"alpha_beta/{name}": float(getattr(pair, name)) for name in ("alpha", "beta", "rate")
        }
        return {**values, "alpha_beta/neighbourhood": neighbourhood}


def bounds_of_the_whole(summary: dict[str, Any]) -> dict[str, float]:
    """Return the report's bounds after all steps by tag.

    ``bound/final`` is the bound in force, if there is one.
    """
    bounds = summary["bounds"]
    values = {
        f"bound/{name}": bound["value"]
        for name, bound in bounds.items()
        if bound["value"] is not None
    }
    best = summary["bound_in_force"]
    return values if best is None else {**values, "bound/final": bounds[best]["value"]}


NO_LOSSES = frozenset({"inner_product", "sq_distance", "grad_sq_norm"})
"""Columns that need no loss at the present iterate"""


def at_present(table: ProbeTable) -> dict[str, float]:
    """Return values of all rows with the present iterate as x_p, by tag in the group ``live``.

    With reference losses these are the best pair and the constants of all conditions. Without them
    they are the constants that need no loss, and the means of inner product, cosine and distance.

    Args:
        table: rows whose reference columns belong to the present iterate.
    """
    if not len(table):
        return {}
    values: dict[str, float] = {}
    with_losses = all(probe.evaluated for probe in table)
    if with_losses:
        running = RunningAlphaBeta()
        values = [running.add(probe) for probe in table][-1]
    else:
        columns = table.columns("inner_product", "sq_distance", "grad_sq_norm")
        values["inner_product"] = float(columns["inner_product"].mean())
        values["cosine"] = float(F.cosine(**columns).mean())
        values["distance"] = float(columns["sq_distance"].sqrt().mean())
    for key, metric in metrics().items():
        # Without losses, the mean cosine replaces the smallest one, the gradient angle.
        no_losses = key != "gradient_angle" and set(metric.columns) <= NO_LOSSES
        if not (with_losses or no_losses):
            continue
        metric.update(**columns_of(metric, table, full_batch=False))
        values[f"{key}/{metric.constant}"] = float(metric.compute()["value"])
    return {f"live/{tag}": value for tag, value in values.items()}


def running_alpha_beta(table: ProbeTable, drop: float | None = None) -> Curves:
    """Return the best pair over the rows up to each row, as curves.

    Args:
        table: rows with known reference columns.
        drop: the decrease of the loss in training, for the curve of informativeness; None for no
            such curve.
    """
    running = RunningAlphaBeta()
    points = [running.add(probe) for probe in table]
    tags = points[0] if points else {}
    curves = {
        tag: torch.tensor([p.get(tag, math.nan) for p in points], dtype=torch.float64)
        for tag in tags
    }
    if drop is not None and drop > 0 and curves:
        curves["alpha_beta/informativeness"] = curves["alpha_beta/neighbourhood"] / drop
    return curves


def alpha_beta_margin(table: ProbeTable, alpha: float | None, beta: float | None) -> Curves:
    """Return the margin of each probe for a pair (α, β); no curve if α or β is None."""
    if alpha is None or beta is None:
        return {}
    columns = table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
    return {"alpha_beta/margin": F.alpha_beta_margin(alpha, beta, **columns)}
