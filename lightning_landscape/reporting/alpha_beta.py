"""The entry of the α-β-condition in ``summary.json``: feasible set, best pair, informativeness."""

from __future__ import annotations

import math
from typing import Any

from lightning_landscape.conditions import AlphaBeta
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.conditions import NO_PROBE, reason_against_infimum
from lightning_landscape.reporting.fidelity import infidelity, is_faithful
from lightning_landscape.reporting.numbers import number

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")
_METRIC = AlphaBeta()
"""Used for its `over` only, so it never holds a state"""


def alpha_beta_condition(
    table: ProbeTable, drop: dict[str, Any], windows: int, run: dict[str, Any]
) -> dict[str, Any]:
    """Return the entry of the α-β-condition.

    Args:
        table: rows whose reference columns are known.
        drop: the estimate of the drop f(x_0) − f(x_p), as ``run.drop`` in the file.
        windows: number of equal slices of training.
        run: the ``run`` part of the summary.
    """
    reason = _reason_against(table)
    result = None if reason else _compute(table)
    achieved = drop["value"]
    neighbourhood = number(result["neighbourhood"]) if result else None
    informativeness = None
    # Without a loss above the reference every pair holds, so a neighbourhood of 0 means nothing.
    silent = result is not None and neighbourhood == 0 and not result["attained"]
    if neighbourhood is not None and achieved is not None and achieved > 0 and not silent:
        informativeness = number(neighbourhood / achieved)
    if result and reason is None:
        reason = _reason_for_no_pair(result, table) or _reason_for_no_informativeness(achieved)
    if result and neighbourhood is None and reason is None:
        reason = "the neighbourhood exceeds the range of float64"
    if not is_faithful(run, achieved):
        reason = f"{infidelity(run)}{f'; {reason}' if reason else ''}"
    return {
        **_pair(result),
        "neighbourhood": neighbourhood,
        "interpolation_error": number(result["interpolation_error"]) if result else None,
        "interpolation_error_se": number(result["interpolation_error_se"]) if result else None,
        "informativeness": informativeness,
        "informative": informativeness is not None
        and informativeness < 1
        and is_faithful(run, achieved),
        "violated": int(result["violated"]) if result else None,
        "degenerate_rows": int(
            (table.column("reference_loss") == table.column("loss_infimum")).sum()
        ),
        "vertices": [[number(rate), number(beta)] for rate, beta in result["vertices"]]
        if result
        else [],
        "coverage": {share: _pair_with_size(pair) for share, pair in result["coverage"].items()}
        if result
        else {},
        "windows": [
            {"from": start, "to": end, "probes": len(rows), **_window(rows)}
            for start, end, rows in table.windows(windows, run["steps"])
        ],
        "reason": reason,
    }


def _compute(table: ProbeTable) -> dict[str, Any]:
    return _METRIC.over(**table.columns(*_COLUMNS))


def _window(rows: ProbeTable) -> dict[str, Any]:
    reason = _reason_against(rows)
    return {**_pair_with_size(None if reason else _compute(rows)), "reason": reason}


def _pair(result: dict[str, Any] | None) -> dict[str, Any]:
    values = {name: number(result[name]) if result else None for name in ("alpha", "beta", "rate")}
    return {**values, "attained": result["attained"] if result else None}


def _pair_with_size(result: dict[str, Any] | None) -> dict[str, Any]:
    return {**_pair(result), "neighbourhood": number(result["neighbourhood"]) if result else None}


def _reason_against(table: ProbeTable) -> str | None:
    """Return why the condition cannot be evaluated on these rows; None if it can."""
    return reason_against_infimum(table, "loss", "reference_loss") if len(table) else NO_PROBE


def _reason_for_no_pair(result: dict[str, Any], table: ProbeTable) -> str | None:
    if result["attained"]:
        return None
    if math.isnan(result["neighbourhood"]):
        count = int(result["violated"])
        return (
            f"no pair holds at {count} probe{'s' if count != 1 else ''}, where the loss at the "
            "reference equals loss_infimum and the gradient does not point away from the reference"
        )
    if bool((table.column("loss") <= table.column("reference_loss")).all()):
        return "no probe has a loss above its loss at the reference, so the condition says nothing"
    return "the smallest neighbourhood is approached only as δ → ∞, and no finite pair attains it"


def _reason_for_no_informativeness(achieved: float | None) -> str | None:
    if achieved is None:
        return "informativeness needs the loss at x_0, which was not evaluated"
    if achieved <= 0:
        return f"training did not lower the loss: f(x_0) − f(x_p) = {achieved:.4g}"
    return None
