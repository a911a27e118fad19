"""The verdict on a run in plain sentences: the best pair, its informativeness, and cautions."""

from __future__ import annotations

from typing import Any

from lightning_landscape.bounds.assumptions import SAME_GRADIENT
from lightning_landscape.functional.alpha_beta import mean_and_error
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.fidelity import infidelity, is_faithful
from lightning_landscape.reporting.numbers import of_the_drop, shown

FEW_PROBES = 10
"""The verdict cautions against fewer probes than these"""


def verdict(
    alpha_beta: dict[str, Any], drop: dict[str, Any], run: dict[str, Any], probes: int
) -> str:
    """Return sentences on the best pair of the α-β-condition and whether it is informative.

    Args:
        alpha_beta: the entry of the α-β-condition in the summary.
        drop: the estimate of the drop f(x_0) − f(x_p), as ``run.drop`` in the file.
        run: the ``run`` part of the summary.
        probes: number of probes with reference columns.
    """
    size, achieved = alpha_beta["neighbourhood"], drop["value"]
    warning = early_end(run) + (
        "" if is_faithful(run, achieved) else f"Do not rely on these results: {infidelity(run)}. "
    )
    if size is None:
        return f"{warning}The α-β-condition has no result: {alpha_beta['reason']}."
    if alpha_beta["attained"]:
        pair = f"α = {shown(alpha_beta['alpha'])}, β = {shown(alpha_beta['beta'])}"
        what = f"The α-β-condition holds at {_all(probes)} with {pair}"
    else:
        what = f"The α-β-condition has no best pair: {alpha_beta['reason']}"
        if size == 0:
            return f"{warning}{what}."
    drop_is = "f(x_0) − f(x_p)"
    if achieved is None:
        return (
            f"{warning}{what}. Its neighbourhood (β/δ) σ² is {size:.4g}, but the drop {drop_is} to "
            "compare it with was not measured."
        )
    if achieved <= 0:
        return (
            f"{warning}{what}. It is vacuous: training did not lower the loss, {drop_is} = "
            f"{achieved:.4g}."
        )
    share = alpha_beta["informativeness"]
    if share is None:
        # The quotient of two finite numbers can exceed float64, and the file then has null.
        worth = f"= {size:.4g} is beyond all comparison with the drop {drop_is} = {achieved:.4g}"
    elif share == 0:
        worth = f"is 0, the smallest possible; the drop {drop_is} is {achieved:.4g}"
    else:
        worth = f"= {size:.4g} is {of_the_drop(share)} {drop_is} = {achieved:.4g}"
    word = "informative" if share is not None and share < 1 else "vacuous"
    return f"{warning}{what}. It is {word}: its neighbourhood (β/δ) σ² {worth}."


def early_end(run: dict[str, Any]) -> str:
    """Return a sentence on training or measuring that stopped early; empty if neither did."""
    return "" if run["complete"] else f"Incomplete: the run ended early ({run['stopped_by']}). "


def _all(probes: int) -> str:
    return "the only probe" if probes == 1 else f"all {probes} probes"


def caveats(table: ProbeTable, drop: dict[str, Any], windows: int, run: dict[str, Any]) -> str:
    """Return cautions on gradients, reference and number of probes, as further sentences."""
    rounding = run["fidelity"]["exact"] is False and is_faithful(run, drop["value"])
    said = f" By rounding alone, {infidelity(run)}." if rounding else ""
    return (
        said
        + _part_caveat(run)
        + _gradient_caveat(run)
        + _reference_caveat(table, windows, run)
        + _few_probes_caveat(table)
    )


def _part_caveat(run: dict[str, Any]) -> str:
    """Return a caution if parameters outside x were trained too."""
    others = run.get("trained_elsewhere")
    if not others:
        return ""
    return (
        f" x is {run['part']!r}. {others} other tensors were trained too; each loss uses their "
        "values at its own step."
    )


def _gradient_caveat(run: dict[str, Any]) -> str:
    """Return a caution if the recorded gradients are not those of the measured losses."""
    difference = run["fidelity"].get("gradient")
    if difference is None or difference <= SAME_GRADIENT:
        return ""
    return (
        " Caution: the recorded gradients differ from those of the measured losses by "
        f"{100 * difference:.2g} % of their norm. Either a callback changed them, or loss= is not "
        "the training loss."
    )


def _reference_caveat(table: ProbeTable, windows: int, run: dict[str, Any]) -> str:
    """Return a caution if x_p is no minimizer or is the last iterate of the same run."""
    # Only the last window counts: early in training losses are above those at any good reference.
    *_, (start, _, late) = table.windows(windows, run["steps"])
    if len(late) > 1:
        gap, error = mean_and_error(late.column("loss") - late.column("reference_loss"))
        # Mini-batch losses are noisy; three standard errors are hardly chance.
        if gap < -3 * error:
            return (
                f" Caution: the reference x_p is no minimizer. From step {start} on the mini-batch "
                f"losses were {-float(gap):.3g} lower than at x_p, on average."
            )
    if len(table) and run["reference"]["kind"] == "final":
        return (
            " x_p is this run's own last iterate, which is a lenient test. For a stricter one, "
            "pass `reference=` the end of another run."
        )
    return ""


def _few_probes_caveat(table: ProbeTable) -> str:
    if 0 < len(table) < FEW_PROBES:
        count = "1 probe was" if len(table) == 1 else f"{len(table)} probes were"
        return f" Only {count} evaluated; more probes may give a worse worst case."
    return ""
