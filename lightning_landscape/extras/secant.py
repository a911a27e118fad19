"""`Secant`: smoothness between consecutive iterates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_landscape.evaluation.extra import FOLLOWING, Extra
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.findings import Findings
from lightning_landscape.training.failures import NotMeasurable

if TYPE_CHECKING:
    from lightning_landscape.evaluation.probed_step import ProbedStep


@dataclass(frozen=True, slots=True)
class SecantRow:
    """One probe of ``secant.csv``."""

    step: int
    grad_sq_change: float
    """‖∇f_{i_k}(x_{k+1}) − ∇f_{i_k}(x_k)‖² of its mini-batch"""


class Secant(Extra):
    r"""Measures how much a mini-batch's gradient changes over the optimizer's step.

    .. math:: L = \max_k \|\nabla f_{i_k}(x_{k+1}) - \nabla f_{i_k}(x_k)\| / \|x_{k+1} - x_k\|

    The store then holds x_{k+1} of each probe too: half as much again. One forward and one
    backward pass a probe.
    """

    tables = {"secant": SecantRow}
    needs = frozenset({FOLLOWING})

    @override
    def at(self, step: ProbedStep) -> Iterable[SecantRow]:
        record, training = step.record, step.training
        following = step.evaluator.everywhere(record.following)
        if following is None:
            raise NotMeasurable(f"x_(k+1) of step {step.number} is not recorded")
        _, after = step.gradient(following)
        change = math.nan
        if training.measures and record.gradient is not None:
            here, sq_change = record.gradient, training.products.sq_change
            change = sq_change(after.raw, after.factor, here.raw, here.factor)
        change = training.processes.exchange(change)[0][0]
        return [SecantRow(step.number, change)] if math.isfinite(change) else []

    @override
    def evaluations(self, records: int) -> int:
        return 3 * records

    @override
    def failed(self, error: str, step: int) -> str:
        return (
            f"LandscapeMonitor: Secant could not take a gradient again at step {step}, {error}. "
            "Supported are modules that torch.autograd.grad goes through (checkpointing with "
            "use_reentrant=False). Secant ends; all else goes on"
        )

    @override
    def summary(self, findings: Findings) -> dict[str, Any]:
        entry = secant_smoothness(findings.table, self.rows("secant"))
        return {} if entry is None else {"conditions": {"smoothness": {"secant": entry}}}


def secant_smoothness(table: ProbeTable, rows: Iterable[SecantRow]) -> dict[str, Any] | None:
    """Return the smoothness between consecutive iterates; None without rows.

    Args:
        table: the probes.
        rows: the content of ``secant.csv``.
    """
    from lightning_landscape import conditions
    from lightning_landscape.functional.constants import QUANTILES
    from lightning_landscape.reporting.conditions import ALONE
    from lightning_landscape.reporting.numbers import number

    # x_k − x_{k+1} = η_k g_k + e_k, and these two are orthogonal
    lengths = {
        p.step: p.step_size * p.step_size * p.grad_sq_norm + p.step_residual * p.step_residual
        for p in table
    }
    known = [row for row in rows if math.isfinite(lengths.get(row.step, math.nan))]
    if not known:
        return None
    metric = conditions.SecantSmoothness(**ALONE)
    for row in known:
        metric.update(grad_sq_change=row.grad_sq_change, sq_step=lengths[row.step])
    result = metric.compute()
    quantiles = zip(QUANTILES, result["quantiles"], strict=True)
    return {
        "value": number(result["value"]),
        "step": None if result["row"] is None else known[result["row"]].step,
        "probes": len(known),
        "quantiles": {f"{share:g}": number(quantile) for share, quantile in quantiles},
    }
