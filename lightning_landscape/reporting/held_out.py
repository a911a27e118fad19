"""Batches that did not make the trajectory, in ``summary.json``: does the pair of the run's own mini-batches hold there?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_landscape import functional as F
from lightning_landscape.functional.alpha_beta import best_alpha_beta
from lightning_landscape.probes import ProbeTable
from lightning_landscape.records import FixedBatchRow
from lightning_landscape.reporting.conditions import reason_against_infimum
from lightning_landscape.reporting.numbers import number

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


def held_out_entry(
    held_out: ProbeTable, table: ProbeTable, found: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what one held-out batch a probe says; None without any.

    Args:
        held_out: the content of ``held_out.csv``.
        table: the run's own probes, evaluated.
        found: the entry of the α-β-condition on those, whose pair is put to the test.
    """
    if not len(held_out):
        return None
    reason = reason_against_infimum(held_out, "loss", "reference_loss")
    entry: dict[str, Any] = {
        "probes": len(held_out),
        "violated": None,
        "violated_share": None,
        "smallest_margin": {"value": None, "step": None},
        "alpha_beta": _pair(None if reason else held_out),
        "together": _pair(None if reason else _joined(table, held_out)),
        "reason": reason or _reason_without_pair(found),
    }
    if entry["reason"] is None:
        columns = held_out.columns(*_COLUMNS)
        margins = F.alpha_beta_margin(found["alpha"], found["beta"], **columns)
        violated = int(F.alpha_beta_violations(found["alpha"], found["beta"], **columns).sum())
        tight = int(margins.argmin())
        entry |= {
            "violated": violated,
            "violated_share": violated / len(held_out),
            "smallest_margin": {"value": number(margins[tight]), "step": held_out[tight].step},
        }
    return entry


def fixed_batches_entry(
    rows: Sequence[FixedBatchRow], run: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what the same batches say at every probe: the supremum over i at one x_k; None without any.

    Args:
        rows: the content of ``fixed_batches.csv``.
        run: how the run was made and measured; ``loss.infimum`` is the lower bound of every loss.
        found: the entry of the α-β-condition on the run's own probes, whose pair is put to the test.
    """
    if not rows:
        return None
    infimum: float = run["loss"]["infimum"]
    by_step: dict[int, list[FixedBatchRow]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    reason = _reason_without_pair(found)
    if any(min(row.loss, row.reference_loss) < infimum for row in rows):
        reason = f"a loss is below loss_infimum={infimum:g}: pass a smaller loss_infimum="
    return {
        "batches": len({row.batch for row in rows}),
        "probes": len(by_step),
        "alpha_beta": _pair(None if reason else _columns_of(rows, infimum)),
        "steps": []
        if reason
        else [_at_step(step, by_step[step], infimum, found) for step in sorted(by_step)],
        "reason": reason,
    }


def _at_step(
    step: int, rows: Sequence[FixedBatchRow], infimum: float, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the worst case over the batches at one x_k: β that the reported δ needs, the smallest margin, violations."""
    columns = _columns_of(rows, infimum)
    margins = F.alpha_beta_margin(found["alpha"], found["beta"], **columns)
    violated = F.alpha_beta_violations(found["alpha"], found["beta"], **columns)
    tight = int(margins.argmin())
    return {
        "step": step,
        "logged_step": rows[0].logged_step,
        "beta": number(F.beta_min(found["rate"], **columns)),
        "smallest_margin": number(margins[tight]),
        "batch": rows[tight].batch,
        "violated_share": int(violated.sum()) / len(rows),
    }


def held_out_sentence(held_out: Mapping[str, Any] | None, fixed: Mapping[str, Any] | None) -> str:
    """Say whether the pair holds on batches that did not make the trajectory."""
    said = ""
    if held_out is not None and held_out["violated"] is not None:
        count, probes = held_out["violated"], held_out["probes"]
        how = "holds on all" if count == 0 else f"is violated on {count} ({count / probes:.0%}) of"
        said += f" The same pair {how} {probes} batches that were held out."
        both = held_out["together"]
        if count and both["beta"] is not None:
            said += f" Both sets together need α = {both['alpha']:.4g}, β = {both['beta']:.4g}."
    if fixed is not None and fixed["steps"]:
        bad = sum(step["violated_share"] > 0 for step in fixed["steps"])
        where = "at no probe" if bad == 0 else f"at {bad} of {len(fixed['steps'])} probes"
        said += f" Of {fixed['batches']} batches evaluated at every probe some violate it {where}."
    return said


def _joined(table: ProbeTable, held_out: ProbeTable) -> dict[str, torch.Tensor]:
    own, other = table.columns(*_COLUMNS), held_out.columns(*_COLUMNS)
    return {name: torch.cat([own[name], other[name]]) for name in _COLUMNS}


def _columns_of(rows: Sequence[FixedBatchRow], infimum: float) -> dict[str, torch.Tensor]:
    names = ("loss", "reference_loss", "inner_product")
    columns = {
        name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
        for name in names
    }
    return columns | {"loss_infimum": torch.full((len(rows),), infimum, dtype=torch.float64)}


def _pair(rows: ProbeTable | dict[str, torch.Tensor] | None) -> dict[str, Any]:
    """Return the pair with the smallest β/δ that holds on rows, null values where there is none."""
    if rows is None:
        return {"alpha": None, "beta": None, "rate": None, "attained": None}
    columns = rows.columns(*_COLUMNS) if isinstance(rows, ProbeTable) else rows
    best = best_alpha_beta(
        loss=columns["loss"],
        reference_loss=columns["reference_loss"],
        inner_product=columns["inner_product"],
        loss_infimum=columns["loss_infimum"],
    )
    return {name: number(getattr(best, name)) for name in ("alpha", "beta", "rate")} | {
        "attained": bool(best.attained)
    }


def _reason_without_pair(found: Mapping[str, Any]) -> str | None:
    return (
        None
        if found["alpha"] is not None and found["beta"] is not None
        else "there is no pair to put to the test"
    )
