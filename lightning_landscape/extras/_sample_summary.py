"""Single samples in ``summary.json``: the α-β-condition for every i, where i is one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.functional._hull import near_envelope
from lightning_landscape.functional.alpha_beta import best_alpha_beta
from lightning_landscape.reporting.conditions import metrics
from lightning_landscape.reporting.findings import Findings
from lightning_landscape.reporting.numbers import number, shown

COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Shares of the samples at which quantiles of their margins are given"""
RATES = (0.1, 1.0)
"""δ at which the smallest β over all samples is given"""
SAME = 1e-2
"""A larger relative error of the mean inner product comes from other derivatives than gradients"""


@dataclass(frozen=True, slots=True)
class PerSampleRow:
    """One sample of the mini-batches of one probe, of ``per_sample.csv``."""

    step: int
    logged_step: int
    sample: int
    """j, counted through processes, and in each through micro-batches"""
    loss: float
    """f_j(x_k)"""
    reference_loss: float
    """f_j(x_p)"""
    inner_product: float
    """<∇f_j(x_k), x_k − x_p>"""


def per_sample_entry(
    rows: Sequence[PerSampleRow], about: Mapping[str, Any], findings: Findings
) -> dict[str, Any]:
    """Return the findings on single samples.

    Args:
        rows: the content of ``per_sample.csv``.
        about: how the samples were evaluated.
        findings: the run. ``loss.infimum`` is the lower bound of every loss, that of a single
            sample too; the pair of the α-β-condition on the run's own probes is tested.
    """
    found = findings.alpha_beta
    infimum: float = findings.run["loss"]["infimum"]
    logged = {probe.step: probe.logged_step for probe in findings.table}
    kept = {step: values for step, values in _by_step(rows).items() if step in logged}
    finite = {step: values[values.isfinite().all(dim=1)] for step, values in kept.items()}
    finite = {step: values for step, values in finite.items() if len(values)}
    none = torch.zeros(0, 3, dtype=torch.float64)
    columns = _columns(torch.cat(list(finite.values())) if finite else none, infimum)
    reason = _reason(finite, infimum)
    has_pair = found["alpha"] is not None and found["beta"] is not None
    untested = reason or (None if has_pair else "there is no pair to test")
    count = len(columns["loss"])
    entry: dict[str, Any] = {
        "samples": count,
        "probes": len(finite),
        "not_finite": sum(map(len, kept.values())) - count,
        **about,
        "alpha_beta": _pair(None if reason else columns),
        "beta_min": {f"{rate:g}": None if reason else _beta_min(rate, columns) for rate in RATES},
        "conditions": _conditions(None if reason else columns, finite),
        "violated": None,
        "violated_share": None,
        "smallest_margin": {"value": None, "step": None, "sample": None},
        "quantiles": {},
        "steps": [],
        "reason": untested,
    }
    if untested is None:
        steps = [
            _at_step(step, logged[step], rows, infimum, found) for step, rows in finite.items()
        ]
        margins = F.alpha_beta_margin(found["alpha"], found["beta"], **columns)
        violated = int(F.alpha_beta_violations(found["alpha"], found["beta"], **columns).sum())
        tight = int(margins.argmin())
        entry |= {
            "violated": violated,
            "violated_share": violated / count,
            "smallest_margin": {"value": number(margins[tight]), **_place(finite, tight)},
            "quantiles": _quantiles(margins),
            "steps": steps,
        }
    return entry


def _by_step(rows: Sequence[PerSampleRow]) -> dict[int, Tensor]:
    """Return f_j(x_k), f_j(x_p), <∇f_j(x_k), x_k − x_p> by step: float64, ``(samples, 3)``."""
    values: dict[int, list[tuple[float, float, float]]] = {}
    for row in sorted(rows, key=lambda row: (row.step, row.sample)):
        values.setdefault(row.step, []).append((row.loss, row.reference_loss, row.inner_product))
    return {step: torch.tensor(found, dtype=torch.float64) for step, found in values.items()}


def _at_step(
    step: int, logged_step: int, rows: Tensor, infimum: float, found: Mapping[str, Any]
) -> dict[str, Any]:
    columns = _columns(rows, infimum)
    margins = F.alpha_beta_margin(found["alpha"], found["beta"], **columns)
    violated = F.alpha_beta_violations(found["alpha"], found["beta"], **columns)
    return {
        "step": step,
        "logged_step": logged_step,
        "samples": len(rows),
        "beta": _beta_min(found["rate"], columns),
        "quantiles": _quantiles(margins),
        "violated_share": int(violated.sum()) / len(rows),
    }


def per_sample_sentence(entry: Mapping[str, Any] | None) -> str:
    """Say whether the pair of the mini-batches holds for single samples."""
    if entry is None:
        return ""
    stopped = entry["stopped_by"]
    if not entry["samples"]:
        return f" No single sample was evaluated{f': {stopped}' if stopped else ''}."
    said = f" Single samples were evaluated in part ({stopped})." if stopped else ""
    count, bad, pair = entry["samples"], entry["violated"], entry["alpha_beta"]
    if entry["mixing"] == "allowed":
        said += " A single sample's loss may depend on the rest of its mini-batch."
    if bad is not None:
        how = "holds for all" if bad == 0 else f"is violated by {bad} ({bad / count:.2%}) of"
        said += f" The same pair {how} {count} single samples."
    if pair["beta"] is not None and bad != 0:
        said += f" For all of them, α = {shown(pair['alpha'])}, β = {shown(pair['beta'])} holds."
    if bad is None:
        said += f" Nothing can be said of single samples: {entry['reason']}."
    return said + _caveats(entry)


def _caveats(entry: Mapping[str, Any]) -> str:
    said, trained = "", entry["training_loss"]
    if trained is not None and not trained["same"]:
        said += (
            " Mind the samples: at the first probe the mean of their losses was "
            f"{trained['samples']:.6g}, and the loss of training_step was "
            f"{trained['training_step']:.6g}. So the measured loss is not the trained one."
        )
    off = entry["fidelity"]["inner_product"]
    if off > max(SAME, 8 * (entry["rounding"] or 0.0)):
        said += (
            " Mind the samples: on average their inner products differ from those of the "
            f"mini-batches by {off:.2g} of ‖g‖‖x − x_p‖. Something in the loss changes gradients, "
            "or stops them."
        )
    return said


def _reason(finite: Mapping[int, Tensor], infimum: float) -> str | None:
    """Return why nothing can be said of the samples; None where it can."""
    if not finite:
        return "no sample was evaluated"
    for step, rows in finite.items():
        below = (rows[:, :2] < infimum).any(dim=1).nonzero().flatten().tolist()
        if below:
            loss = float(rows[below[0], :2].min())
            return (
                f"the loss {loss:.6g} of sample {below[0]} at step {step} is below loss_infimum "
                f"{infimum:g}: pass loss_infimum= a lower bound of the loss of every sample"
            )
    return None


def _conditions(columns: dict[str, Tensor] | None, finite: Mapping[int, Tensor]) -> dict[str, Any]:
    """Return the conditions that need neither gradient norm nor distance: there are none here."""
    entries = {}
    for key, metric in metrics().items():
        if not set(metric.columns) <= set(COLUMNS):
            continue
        entry: dict[str, Any] = {
            "constant": metric.constant,
            "value": None,
            "step": None,
            "sample": None,
            "violated_share": None,
        }
        if columns is not None:
            metric.update(**{name: columns[name] for name in metric.columns})
            result = metric.compute()
            value = number(result["value"])
            place = (
                {} if value is None or result["row"] is None else _place(finite, int(result["row"]))
            )
            entry |= {"value": value, **place, "violated_share": number(result["violated_share"])}
        entries[key] = entry
    return entries


def _columns(rows: Tensor, infimum: float) -> dict[str, Tensor]:
    named = dict(zip(COLUMNS, rows.unbind(dim=1), strict=False))
    return named | {"loss_infimum": torch.full((len(rows),), infimum, dtype=torch.float64)}


def _place(finite: Mapping[int, Tensor], row: int) -> dict[str, int]:
    """Return the step and the number of a row of all samples."""
    for step, rows in finite.items():
        if row < len(rows):
            return {"step": step, "sample": row}
        row -= len(rows)
    raise IndexError(row)


def _quantiles(margins: Tensor) -> dict[str, float | None]:
    ordered = margins.sort().values  # torch.quantile takes no more than 16 million
    last = len(ordered) - 1
    return {f"{share:g}": number(ordered[round(share * last)]) for share in QUANTILES}


def _beta_min(rate: float, columns: dict[str, Tensor]) -> float | None:
    return number(F.beta_min(rate, **_decisive(columns)))


def _decisive(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the samples near the envelope: exact arithmetic on all samples takes seconds."""
    kept = near_envelope(**columns)
    return {name: column[kept] for name, column in columns.items()}


def _pair(columns: dict[str, Tensor] | None) -> dict[str, Any]:
    """Return the pair with the smallest β/δ that holds for every sample; null values for none."""
    if columns is None:
        return {"alpha": None, "beta": None, "rate": None, "attained": None, "neighbourhood": None}
    few = _decisive(columns)
    best = best_alpha_beta(
        loss=few["loss"],
        reference_loss=few["reference_loss"],
        inner_product=few["inner_product"],
        loss_infimum=few["loss_infimum"],
    )
    size, _ = F.interpolation_error(
        reference_loss=columns["reference_loss"], loss_infimum=columns["loss_infimum"]
    )
    pair = {name: number(getattr(best, name)) for name in ("alpha", "beta", "rate")}
    return {**pair, "attained": bool(best.attained), "neighbourhood": number(best.ratio * size)}
