"""``summary.json``: what the table of probes says, with every assumption, and in one sentence."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lightning_landscape.conditions import AlphaBeta
from lightning_landscape.functional.alpha_beta import mean_and_error
from lightning_landscape.probes import SCHEMA, ProbeTable

FEW_PROBES = 10
"""Fewer than these are said to be few"""

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


def summarise(table: ProbeTable, run: dict[str, Any], windows: int) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        table: the table of probes; rows whose reference columns are not known are left out of all conditions.
        run: what the table does not hold: how the run was made and measured.
        windows: number of equal slices of training for which constants are given as well.
    """
    drop = drop_of(table)
    alpha_beta = _alpha_beta(table.evaluated, drop, windows, run)
    rounding = run["fidelity"]["exact"] is False and _faithful(run, drop["value"])
    caveats = f" In rounding, {_infidelity(run)}." if rounding else ""
    caveats += _reference_caveat(table.evaluated, windows, run) + _few_probes_caveat(table.evaluated)
    return {
        "schema": SCHEMA,
        "run": {**run, "drop": drop},
        "conditions": {"alpha_beta": alpha_beta},
        "verdict": verdict(alpha_beta, drop, run, len(table.evaluated)) + caveats,
    }


def drop_of(table: ProbeTable) -> dict[str, Any]:
    """Return the estimate of f(x_0) − f(x_p): mean over the rows with ``initial_loss``, and its standard error."""
    rows = ProbeTable(probe for probe in table.evaluated if probe.initial_loss is not None)
    if not len(rows):
        return {"value": None, "standard_error": None, "rows": 0, "reason": "no probe has its loss at x_0 evaluated"}
    value, error = mean_and_error(rows.column("initial_loss") - rows.column("reference_loss"))
    reason = "the standard error needs two rows" if len(rows) < 2 else None
    return {"value": number(value), "standard_error": number(error), "rows": len(rows), "reason": reason}


def number(value: Tensor | float) -> float | None:
    """Return a value as JSON holds it: a finite number, or None."""
    return float(value) if math.isfinite(value) else None


def _alpha_beta(table: ProbeTable, drop: dict[str, Any], windows: int, run: dict[str, Any]) -> dict[str, Any]:
    reason = _reason_against(table)
    result = None if reason else _compute(table)
    achieved = drop["value"]
    neighbourhood = number(result["neighbourhood"]) if result else None
    informativeness = None
    silent = result is not None and neighbourhood == 0 and not result["attained"]
    if neighbourhood is not None and achieved is not None and achieved > 0 and not silent:
        informativeness = number(neighbourhood / achieved)
    if result and reason is None:
        reason = _reason_for_no_pair(result, table) or _reason_for_no_informativeness(achieved)
    if result and neighbourhood is None and reason is None:
        reason = "its neighbourhood is beyond the range of float64"
    if not _faithful(run, achieved):
        reason = f"{_infidelity(run)}{f'; {reason}' if reason else ''}"
    return {
        **_pair(result),
        "neighbourhood": neighbourhood,
        "interpolation_error": number(result["interpolation_error"]) if result else None,
        "interpolation_error_se": number(result["interpolation_error_se"]) if result else None,
        "informativeness": informativeness,
        "informative": informativeness is not None and informativeness < 1 and _faithful(run, achieved),
        "violated": int(result["violated"]) if result else None,
        "degenerate_rows": int((table.column("reference_loss") == table.column("loss_infimum")).sum()),
        "vertices": [[number(rate), number(beta)] for rate, beta in result["vertices"]] if result else [],
        "coverage": {share: _pair_with_size(pair) for share, pair in result["coverage"].items()} if result else {},
        "windows": [
            {"from": start, "to": end, "probes": len(rows), **_window(rows)}
            for start, end, rows in table.windows(windows, run["steps"])
        ],
        "reason": reason,
    }


def _compute(table: ProbeTable) -> dict[str, Any]:
    metric = AlphaBeta()
    metric.update(**table.columns(*_COLUMNS))
    return metric.compute()


def _window(rows: ProbeTable) -> dict[str, Any]:
    reason = _reason_against(rows)
    return {**_pair_with_size(None if reason else _compute(rows)), "reason": reason}


def _pair(result: dict[str, Any] | None) -> dict[str, Any]:
    values = {name: number(result[name]) if result else None for name in ("alpha", "beta", "rate")}
    return {**values, "attained": result["attained"] if result else None}


def _pair_with_size(result: dict[str, Any] | None) -> dict[str, Any]:
    return {**_pair(result), "neighbourhood": number(result["neighbourhood"]) if result else None}


def _reason_against(table: ProbeTable) -> str | None:
    """Return why nothing can be said of these rows; None where it can."""
    if not len(table):
        return "no probe was evaluated at the reference"
    for probe in table:
        for name in ("loss", "reference_loss"):
            if getattr(probe, name) < probe.loss_infimum:
                return (
                    f"{name} {getattr(probe, name):.6g} at step {probe.step} is below loss_infimum {probe.loss_infimum:g}: "
                    "pass loss_infimum= a lower bound of every mini-batch loss"
                )
    return None


def _reason_for_no_pair(result: dict[str, Any], table: ProbeTable) -> str | None:
    if result["attained"]:
        return None
    if math.isnan(result["neighbourhood"]):
        return (
            f"no pair holds at {int(result['violated'])} probes whose loss at the reference equals loss_infimum while the "
            "gradient does not point away from the reference"
        )
    if bool((table.column("loss") <= table.column("reference_loss")).all()):
        return "the loss of no probe is above its value at the reference, so the condition says nothing"
    return "the smallest neighbourhood is approached only as δ → ∞: no finite pair attains it"


def _reason_for_no_informativeness(achieved: float | None) -> str | None:
    if achieved is None:
        return "informativeness needs the loss at x_0, which was not evaluated"
    return f"training achieved no drop ({achieved:.4g})" if achieved <= 0 else None


def verdict(alpha_beta: dict[str, Any], drop: dict[str, Any], run: dict[str, Any], probes: int) -> str:
    """Return one plain sentence: what holds, and what it is worth."""
    size, achieved = alpha_beta["neighbourhood"], drop["value"]
    warning = "" if _faithful(run, achieved) else f"Not to be relied on, {_infidelity(run)}. "
    if size is None:
        return f"{warning}Nothing can be said of the α-β-condition: {alpha_beta['reason']}."
    if alpha_beta["attained"]:
        pair = f"α = {_shown(alpha_beta['alpha'])}, β = {_shown(alpha_beta['beta'])}"
        what = f"The α-β-condition holds at {_all(probes)} with {pair}"
    else:
        what = f"The α-β-condition has no best pair ({alpha_beta['reason']})"
        if size == 0:
            return f"{warning}{what}."
    if achieved is None:
        return f"{warning}{what}; its neighbourhood is {size:.4g}, but what training achieved was not measured."
    if achieved <= 0:
        return f"{warning}{what}, but it is vacuous: training achieved no drop, the loss rose by {-achieved:.4g}."
    share = f"{alpha_beta['informativeness']:.2g} of the drop {achieved:.4g} that training achieved"
    if alpha_beta["informativeness"] < 1:
        return f"{warning}{what}, and is informative: its neighbourhood {size:.4g} is {share}."
    return f"{warning}{what}, but it is vacuous: its neighbourhood {size:.4g} is {share}."


def _shown(value: float | None) -> str:
    return "a number beyond float64" if value is None else f"{value:.4g}"


def _all(probes: int) -> str:
    return "the only probe" if probes == 1 else f"all {probes} probes"


def _reference_caveat(table: ProbeTable, windows: int, run: dict[str, Any]) -> str:
    """Say what the reference is worth: it may be no minimiser, and the end of the same run is no independent witness."""
    *_, (start, _, late) = table.windows(windows, run["steps"])
    if len(late) > 1:
        gap, error = mean_and_error(late.column("loss") - late.column("reference_loss"))
        if gap < -3 * error:
            return (
                f" Mind the reference, which is no minimiser: from step {start} on the loss was {-float(gap):.3g} below its "
                "value there, on average."
            )
    if len(table) and run["reference"]["kind"] == "final":
        return " The reference is this run's own end, to which its steps led: another run's, reference=, is a harder test."
    return ""


def _few_probes_caveat(table: ProbeTable) -> str:
    if 0 < len(table) < FEW_PROBES:
        return f" {'One probe is' if len(table) == 1 else f'{len(table)} probes are'} few: a worst case over more may be worse."
    return ""


def _faithful(run: dict[str, Any], achieved: float | None) -> bool:
    """Return whether replays are exact, or off by rounding beside what training achieved."""
    size = run["fidelity"]["max_abs"]
    if run["fidelity"]["exact"] is not False:
        return True
    return size is not None and achieved is not None and size <= 1e-3 * achieved


def _infidelity(run: dict[str, Any]) -> str:
    size = run["fidelity"]["max_abs"]
    how_far = "by a number that is not finite" if size is None else f"by up to {size:.2g}"
    return f"replays differ from the recorded losses {how_far}"
