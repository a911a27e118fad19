"""The verdict: what holds, what it is worth, what theory promises, and what to mind, in plain sentences."""

from __future__ import annotations

from typing import Any

from lightning_landscape.bounds.assumptions import SAME_GRADIENT
from lightning_landscape.functional.alpha_beta import mean_and_error
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.fidelity import infidelity, is_faithful
from lightning_landscape.reporting.numbers import shown

FEW_PROBES = 10
"""Fewer than these are said to be few"""


def verdict(
    alpha_beta: dict[str, Any], drop: dict[str, Any], run: dict[str, Any], probes: int
) -> str:
    """Return one plain sentence: what holds, and what it is worth."""
    size, achieved = alpha_beta["neighbourhood"], drop["value"]
    warning = early_end(run) + (
        "" if is_faithful(run, achieved) else f"Not to be relied on, {infidelity(run)}. "
    )
    if size is None:
        return f"{warning}Nothing can be said of the α-β-condition: {alpha_beta['reason']}."
    if alpha_beta["attained"]:
        pair = f"α = {shown(alpha_beta['alpha'])}, β = {shown(alpha_beta['beta'])}"
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


def early_end(run: dict[str, Any]) -> str:
    """Say that measuring, or training, stopped before its end, if it did."""
    return (
        "" if run["complete"] else f"Measured in part, up to an early end ({run['stopped_by']}). "
    )


def _all(probes: int) -> str:
    return "the only probe" if probes == 1 else f"all {probes} probes"


def caveats(table: ProbeTable, drop: dict[str, Any], windows: int, run: dict[str, Any]) -> str:
    """Return what to mind, as further sentences."""
    rounding = run["fidelity"]["exact"] is False and is_faithful(run, drop["value"])
    said = f" In rounding, {infidelity(run)}." if rounding else ""
    return (
        said
        + _part_caveat(run)
        + _gradient_caveat(run)
        + _reference_caveat(table, windows, run)
        + _few_probes_caveat(table)
    )


def _part_caveat(run: dict[str, Any]) -> str:
    """Say that losses changed because parameters that are not x were trained too."""
    others = run.get("trained_elsewhere")
    if not others:
        return ""
    return f" x is {run['part']!r}: {others} other tensors were trained too, and each loss is with them as they were at its step."


def _gradient_caveat(run: dict[str, Any]) -> str:
    """Say that the gradient of the table is not that of the loss: a callback changed it, or loss= is not what is trained."""
    difference = run["fidelity"].get("gradient")
    if difference is None or difference <= SAME_GRADIENT:
        return ""
    return f" Mind the gradient: gradients differ from those of the measured losses by {difference:.2g} of their length."


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
