"""What storing probes through a codec cost in accuracy: of p_k and D_k, and of what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning_landscape import functional as F
from lightning_landscape.bounds import Certificate, Evidence, certify
from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.records import Accuracy
from lightning_landscape.reporting.numbers import number, shown


def accuracy_entry(
    table: ProbeTable,
    run: Mapping[str, Any],
    accuracies: Mapping[int, Accuracy],
    best: Certificate | None,
) -> dict[str, Any] | None:
    r"""Return the largest errors over the probes, and between what numbers the neighbourhood and the bound in force lie.

    Losses, norms of gradients and steps are measured at the probe and exact. So with p_k lowered, and D_k raised, by their
    bounds everything that follows from the table is at its worst, and the other way round at its best: a larger p_k admits
    more pairs.

    Args:
        table: the table of probes.
        run: the ``run`` part of the summary.
        accuracies: of the probes that a codec changed, by step.
        best: the bound in force.

    Returns:
        Errors of p relative to ‖g‖‖x − x_p‖ and of D relative to ‖x − x_p‖, their bounds and what was measured where a probe
        was stored as it was, too; None where no codec changed anything.
    """
    probes = [
        (probe, accuracies[probe.step]) for probe in table.evaluated if probe.step in accuracies
    ]
    if not probes:
        return None
    measured = [(probe, accuracy) for probe, accuracy in probes if accuracy.exact is not None]
    worst, best_case = _moved(table, accuracies, -1), _moved(table, accuracies, 1)
    return {
        "inner_product": {
            "bound": _largest(_bounds(probes, 0)),
            "measured": _largest(_errors(measured, 0)),
        },
        "distance": {
            "bound": _largest(_bounds(probes, 1)),
            "measured": _largest(_errors(measured, 1)),
        },
        "measured_at": [probe.step for probe, _ in measured],
        "neighbourhood": [_neighbourhood(best_case), _neighbourhood(worst)],
        "bound_in_force": None
        if best is None
        else [_bound(best_case, run, best), _bound(worst, run, best)],
    }


def accuracy_sentence(store: Mapping[str, Any]) -> str:
    """Say it; nothing where probes were stored as they were."""
    found = store.get("accuracy")
    if found is None:
        return ""
    of_product, of_distance = (_said(found[name]) for name in ("inner_product", "distance"))
    low, high = found["neighbourhood"]
    between = ""
    if low is not None and high is not None and shown(low) != shown(high):
        between = f"; the neighbourhood is between {shown(low)} and {shown(high)}"
    return (
        f" Probes were stored as {store['dtype']}: p is off by at most {of_product} of ‖g‖‖x − x_p‖, and ‖x − x_p‖ by "
        f"{of_distance} of itself{between}."
    )


def _said(error: Mapping[str, Any]) -> str:
    bound = "more than all" if error["bound"] is None else f"{error['bound']:.2g}"
    return (
        bound
        if error["measured"] is None
        else f"{bound} (measured on some: {error['measured']:.2g})"
    )


def _bounds(probes: list[tuple[Probe, Accuracy]], column: int) -> list[float]:
    found = []
    for probe, accuracy in probes:
        # D itself may be as much smaller
        distance = max(math.sqrt(probe.sq_distance or 0.0) - accuracy.distance, 0.0)
        if column == 0:
            found.append(_share(accuracy.inner_product, math.sqrt(probe.grad_sq_norm) * distance))
        else:
            found.append(_share(accuracy.distance, distance))
    return found


def _errors(probes: list[tuple[Probe, Accuracy]], column: int) -> list[float]:
    found = []
    for probe, accuracy in probes:
        product, square = accuracy.exact or (math.nan, math.nan)
        distance = math.sqrt(square)
        if column == 0:
            found.append(
                _share(
                    abs((probe.inner_product or 0.0) - product),
                    math.sqrt(probe.grad_sq_norm) * distance,
                )
            )
        else:
            found.append(_share(abs(math.sqrt(probe.sq_distance or 0.0) - distance), distance))
    return found


def _share(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return math.inf if part else 0.0


def _largest(values: list[float]) -> float | None:
    return number(max(values)) if values else None


def _moved(table: ProbeTable, accuracies: Mapping[int, Accuracy], sign: int) -> ProbeTable:
    """Return the table with each p and D at the end of what it may be: −1 for the worst, 1 for the best."""
    rows = []
    for probe in table.evaluated:
        accuracy = accuracies.get(probe.step)
        if (
            accuracy is not None
            and probe.inner_product is not None
            and probe.sq_distance is not None
        ):
            distance = max(math.sqrt(probe.sq_distance) - sign * accuracy.distance, 0.0)
            product = probe.inner_product + sign * accuracy.inner_product
            probe = probe.with_values(inner_product=product, sq_distance=distance**2)
        rows.append(probe)
    return ProbeTable(rows)


def _neighbourhood(table: ProbeTable) -> float | None:
    columns: dict[str, Any] = table.columns(
        "loss", "reference_loss", "inner_product", "loss_infimum"
    )
    return _or_none(
        lambda: (
            float(F.best_alpha_beta(**columns).ratio)
            * float(
                F.interpolation_error(
                    reference_loss=columns["reference_loss"], loss_infimum=columns["loss_infimum"]
                )[0]
            )
        )
    )


def _bound(table: ProbeTable, run: Mapping[str, Any], best: Certificate) -> float | None:
    """Return the value of the theorem in force, of another table."""
    return _or_none(
        lambda: next(
            (
                found.value
                for found in certify(Evidence(table, run))
                if found.theorem == best.theorem and found.value is not None
            ),
            math.nan,
        )
    )


def _or_none(value: Callable[[], float]) -> float | None:
    try:
        return number(value())
    except ValueError:  # a loss below its infimum: the reason stands beside the condition itself
        return None
