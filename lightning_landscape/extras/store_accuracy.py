"""`StoreAccuracy`: by how much a lossy store dtype can have moved each probe.

The monitor adds it by itself where ``store.dtype`` is not "native".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_landscape import functional as F
from lightning_landscape.bounds import Certificate, Evidence, certify, in_force
from lightning_landscape.evaluation.extra import Extra
from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.reporting.findings import Findings
from lightning_landscape.reporting.numbers import number, shown

if TYPE_CHECKING:
    from lightning_landscape.evaluation.probed_step import ProbedStep


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    """The error bounds of one probe, of ``store_accuracy.csv``."""

    step: int
    inner_product: float
    """Bound of |p̃ − p|"""
    distance: float
    """Bound of |D̃ − D|"""


class StoreAccuracy(Extra):
    r"""Bounds the errors of p_k and D_k that come from a lossy store dtype.

    .. math::
        |\tilde p - p| \le \|\tilde g - g\| \|\tilde x - x_p\| + |\langle g, \tilde x - x\rangle|,
        \qquad |\tilde D - D| \le \|\tilde x - x\|

    The norms, and the inner product, were measured when the probe was stored. Losses at x_p and
    x_0, gradient norms and steps are exact.
    """

    tables = {"store_accuracy": AccuracyRow}

    @override
    def at(self, step: ProbedStep) -> Iterable[AccuracyRow]:
        own, distance = step.record.error, step.probe.sq_distance
        exchange = step.training.processes.exchange
        shares = exchange(own.gradient, own.product, own.iterate)
        gradient, product, iterate = map(math.fsum, zip(*shares, strict=True))
        if gradient == product == iterate == 0 or distance is None:
            return []
        bound = math.sqrt(gradient * distance) + abs(product)
        return [AccuracyRow(step.number, bound, math.sqrt(iterate))]

    @override
    def summary(self, findings: Findings) -> dict[str, Any]:
        entry = accuracy_entry(findings.table, findings.run, self.rows("store_accuracy"))
        return {} if entry is None else {"run": {"store": {"accuracy": entry}}}

    @override
    def sentence(self, summary: Mapping[str, Any]) -> str:
        return accuracy_sentence(summary["run"]["store"])


def accuracy_entry(
    table: ProbeTable, run: Mapping[str, Any], rows: Sequence[AccuracyRow]
) -> dict[str, Any] | None:
    """Return the largest errors over the probes, and intervals of neighbourhood and bound in force.

    With each p_k lowered and D_k raised by their bounds, everything that follows from the table is
    at its worst; the other way round it is at its best: a larger p_k admits more pairs.

    Args:
        table: the table of probes.
        run: the ``run`` part of the summary.
        rows: the content of ``store_accuracy.csv``.

    Returns:
        Error bounds of p relative to ‖g‖‖x − x_p‖, and of D relative to ‖x − x_p‖; None without
        rows.
    """
    by_step = {row.step: row for row in rows}
    probes = [(probe, by_step[probe.step]) for probe in table.evaluated if probe.step in by_step]
    if not probes:
        return None
    worst, best_case = _moved(table, by_step, -1), _moved(table, by_step, 1)
    best = in_force(certify(Evidence(table, run)))
    bound = None if best is None else [_bound(moved, run, best) for moved in (best_case, worst)]
    return {
        "inner_product": {"bound": _largest(_product_error(*probe) for probe in probes)},
        "distance": {"bound": _largest(_distance_error(*probe) for probe in probes)},
        "neighbourhood": [_neighbourhood(best_case), _neighbourhood(worst)],
        "bound_in_force": bound,
    }


def accuracy_sentence(store: Mapping[str, Any]) -> str:
    """Say how far off the table can be; "" where probes were stored as they were."""
    found = store.get("accuracy")
    if found is None:
        return ""
    of_product, of_distance = (_percent(found[key]) for key in ("inner_product", "distance"))
    low, high = found["neighbourhood"]
    between = ""
    if low is not None and high is not None and shown(low) != shown(high):
        between = f"; the neighbourhood is between {shown(low)} and {shown(high)}"
    return (
        f" Probes were stored as {store['dtype']}: inner products are off by at most {of_product} "
        f"of ‖g‖‖x − x_p‖, distances by at most {of_distance}{between}."
    )


def _percent(error: Mapping[str, Any]) -> str:
    return "more than 100 %" if error["bound"] is None else f"{100 * error['bound']:.2g} %"


def _product_error(probe: Probe, row: AccuracyRow) -> float:
    return _share(row.inner_product, math.sqrt(probe.grad_sq_norm) * _least_distance(probe, row))


def _distance_error(probe: Probe, row: AccuracyRow) -> float:
    return _share(row.distance, _least_distance(probe, row))


def _least_distance(probe: Probe, row: AccuracyRow) -> float:
    """Return D, less its own error bound."""
    return max(math.sqrt(probe.sq_distance or 0.0) - row.distance, 0.0)


def _share(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return math.inf if part else 0.0


def _largest(values: Iterable[float]) -> float | None:
    return number(max(values))


def _moved(table: ProbeTable, rows: Mapping[int, AccuracyRow], sign: int) -> ProbeTable:
    """Return the table with each p and D at an end of its interval: −1 the worst, 1 the best."""
    moved = []
    for probe in table.evaluated:
        row = rows.get(probe.step)
        if row and probe.inner_product is not None and probe.sq_distance is not None:
            distance = max(math.sqrt(probe.sq_distance) - sign * row.distance, 0.0)
            product = probe.inner_product + sign * row.inner_product
            probe = probe.with_values(inner_product=product, sq_distance=distance**2)
        moved.append(probe)
    return ProbeTable(moved)


def _neighbourhood(table: ProbeTable) -> float | None:
    columns: dict[str, Any] = table.columns(
        "loss", "reference_loss", "inner_product", "loss_infimum"
    )
    b, low = columns["reference_loss"], columns["loss_infimum"]

    def value() -> float:
        size, _ = F.interpolation_error(reference_loss=b, loss_infimum=low)
        return float(F.best_alpha_beta(**columns).ratio) * float(size)

    return _or_none(value)


def _bound(table: ProbeTable, run: Mapping[str, Any], best: Certificate) -> float | None:
    """Return the value of the theorem in force on another table."""

    def value() -> float:
        found = certify(Evidence(table, run))
        values = (c.value for c in found if c.theorem == best.theorem and c.value is not None)
        return next(values, math.nan)

    return _or_none(value)


def _or_none(value: Callable[[], float]) -> float | None:
    try:
        return number(value())
    except ValueError:
        return None  # a loss is below its infimum: the condition's own entry says so
