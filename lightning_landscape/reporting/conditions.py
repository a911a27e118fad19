"""The entries of the other conditions in ``summary.json``, over training and over its windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_landscape import conditions as C
from lightning_landscape.bounds import Evidence
from lightning_landscape.functional.constants import QUANTILES
from lightning_landscape.functional.relaxed_polyak_lojasiewicz import EXPONENTS
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.numbers import number

NO_PROBE = "no probe was evaluated at the reference"


_NOTHING: dict[str, Any] = {
    "violated": None,
    "violated_share": None,
    "violated_between": None,
    "quantiles": {},
}


ALONE: dict[str, Any] = {"sync_on_compute": False}
"""The table already has the probes of all processes, so no metric waits for the others"""


def metrics() -> dict[str, C.WorstCase]:
    """Return a fresh metric for each condition with one constant, by its key in files and tags."""
    return {
        "quasar_convexity": C.QuasarConvexity(**ALONE),
        "star_convexity": C.StarConvexity(**ALONE),
        "aiming": C.Aiming(**ALONE),
        "polyak_lojasiewicz": C.PolyakLojasiewicz(**ALONE),
        "relaxed_polyak_lojasiewicz": C.RelaxedPolyakLojasiewicz(exponent=EXPONENTS[0], **ALONE),
        "restricted_secant": C.RestrictedSecant(**ALONE),
        "error_bound": C.ErrorBound(**ALONE),
        "upper_error_bound": C.UpperErrorBound(**ALONE),
        "quadratic_growth": C.QuadraticGrowth(**ALONE),
        "weak_strong_convexity": C.WeakStrongConvexity(**ALONE),
        "gradient_angle": C.GradientAngle(**ALONE),
        "smoothness": C.Smoothness(**ALONE),
    }


_METRICS = metrics()
_RELAXED = {
    exponent: C.RelaxedPolyakLojasiewicz(exponent=exponent, **ALONE) for exponent in EXPONENTS
}
"""Like `_METRICS`, used for its `over` only, so it never holds a state"""


def other_conditions(evidence: Evidence, windows: int) -> dict[str, Any]:
    """Return the entries of all conditions but the α-β-condition.

    Args:
        evidence: the measured run.
        windows: number of equal slices of training.
    """
    slices = evidence.table.windows(windows, int(evidence.run["steps"]))
    found = {key: _entry(metric, evidence, slices) for key, metric in _METRICS.items()}
    found["relaxed_polyak_lojasiewicz"] |= {
        "exponent": EXPONENTS[0],
        "exponents": {
            f"{exponent:g}": _entry(metric, evidence, slices)
            for exponent, metric in _RELAXED.items()
        },
    }
    # Their ratio is the inverse condition number along the run.
    mu, upper = found["restricted_secant"]["value"], found["upper_error_bound"]["value"]
    found["upper_error_bound"]["restricted_secant_over_it"] = (
        number(mu / upper) if mu is not None and upper else None
    )
    return found


def reason_against_infimum(table: ProbeTable, *names: str) -> str | None:
    """Return the first row where loss_infimum exceeds a column, as a sentence; None if none."""
    for probe in table:
        for name in names:
            if getattr(probe, name) < probe.loss_infimum:
                return (
                    f"{name} {getattr(probe, name):.6g} at step {probe.step} is below loss_infimum "
                    f"{probe.loss_infimum:g}: pass as loss_infimum= a lower bound of every "
                    "mini-batch loss"
                )
    return None


def columns_of(metric: C.WorstCase, table: ProbeTable, full_batch: bool) -> dict[str, Tensor]:
    """Return the columns that a metric takes."""
    columns = table.columns(*metric.columns)
    # The Polyak-Łojasiewicz inequality is stated for f with f(x_p), which full batches give.
    if full_batch and isinstance(metric, C.PolyakLojasiewicz):
        columns["loss_infimum"] = table.column("reference_loss")
    return columns


def _entry(
    metric: C.WorstCase, evidence: Evidence, slices: Sequence[tuple[int, int, ProbeTable]]
) -> dict[str, Any]:
    table, full = evidence.table, evidence.full_batch
    return {
        "constant": metric.constant,
        **_found(metric, table, full),
        "measured_on": "full batch" if full else "mini-batch",
        "windows": [
            {
                "from": start,
                "to": end,
                "probes": len(rows),
                **_in_window(_found(metric, rows, full)),
            }
            for start, end, rows in slices
        ],
    }


def _found(metric: C.WorstCase, table: ProbeTable, full_batch: bool) -> dict[str, Any]:
    reason = NO_PROBE if not len(table) else None
    if reason is None and "loss_infimum" in metric.columns:
        reason = reason_against_infimum(table, "loss")
    if reason is not None:
        return {"value": None, "step": None, **_NOTHING, "reason": reason}
    result = metric.over(**columns_of(metric, table, full_batch))
    steps = [
        int(table[int(row)].step) for row in result["violated"].reshape(-1).nonzero().flatten()
    ]
    step = None if result["row"] is None else int(table[result["row"]].step)
    value = float(result["value"])
    extra = {"lower": number(result["lower"])} if "lower" in result else {}
    return {
        "value": number(value),
        # Without a finite constant no probe attains it; `reason` then names the step.
        "step": step if math.isfinite(value) else None,
        **extra,
        "violated": len(steps),
        "violated_share": float(result["violated_share"]),
        "violated_between": [steps[0], steps[-1]] if steps else None,
        "quantiles": {
            f"{share:g}": number(q) for share, q in zip(QUANTILES, result["quantiles"], strict=True)
        },
        "reason": _reason(value, step, "lower" in result),
    }


def _in_window(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("value", "step", "violated", "reason")}


def _reason(value: float, step: int | None, interval: bool) -> str | None:
    """Return why there is no finite constant; None if there is one."""
    if math.isfinite(value):
        return None
    if interval:
        return (
            "no probe has a loss above its loss at the reference: every θ holds"
            if value > 0
            else "no θ > 0 holds at every probe"
        )
    if math.isnan(value):
        return "no probe restricts the constant: every value holds"
    return f"no constant holds at step {step}"
