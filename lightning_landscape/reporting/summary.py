"""``summary.json``: what the table of probes says, with every assumption, and in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_landscape.bounds import Evidence, certify, in_force
from lightning_landscape.functional.alpha_beta import mean_and_error
from lightning_landscape.probes import SCHEMA, ProbeTable
from lightning_landscape.reporting.alpha_beta import alpha_beta_condition
from lightning_landscape.reporting.certificates import entries, theory_sentences
from lightning_landscape.reporting.conditions import other_conditions
from lightning_landscape.reporting.numbers import number
from lightning_landscape.reporting.verdict import caveats, verdict


def summarise(
    table: ProbeTable, run: dict[str, Any], windows: int, secants: Mapping[int, float] | None = None
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        table: the table of probes; rows whose reference columns are not known are left out of conditions and bounds.
        run: what the table does not hold: how the run was made and measured.
        windows: number of equal slices of training for which constants are given as well.
        secants: ‖∇f(x_{k+1}) − ∇f(x_k)‖² of a probe's mini-batch by step, where it was measured.
    """
    drop, rows = drop_of(table), table.evaluated
    evidence = Evidence(table, run)
    certificates = certify(evidence)
    best = in_force(certificates)
    alpha_beta = alpha_beta_condition(rows, drop, windows, run)
    return {
        "schema": SCHEMA,
        "run": {**run, "drop": drop},
        "conditions": {"alpha_beta": alpha_beta, **other_conditions(evidence, windows, secants or {})},
        "bounds": entries(certificates, drop["value"], run),
        "bound_in_force": best.theorem if best else None,
        "verdict": verdict(alpha_beta, drop, run, len(rows))
        + theory_sentences(certificates, run, drop["value"])
        + caveats(rows, drop, windows, run),
    }


def drop_of(table: ProbeTable) -> dict[str, Any]:
    """Return the estimate of f(x_0) − f(x_p): mean over the rows with ``initial_loss``, and its standard error."""
    rows = ProbeTable(probe for probe in table.evaluated if probe.initial_loss is not None)
    if not len(rows):
        return {"value": None, "standard_error": None, "rows": 0, "reason": "no probe has its loss at x_0 evaluated"}
    value, error = mean_and_error(rows.column("initial_loss") - rows.column("reference_loss"))
    reason = "the standard error needs two rows" if len(rows) < 2 else None
    return {"value": number(value), "standard_error": number(error), "rows": len(rows), "reason": reason}
