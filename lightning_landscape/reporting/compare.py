"""Several runs side by side: the pairs of the α-β-condition that hold for all runs of a group.

A group is the runs with the same value of a hyper-parameter, such as the seeds of one width. The
feasible set of a group is the exact intersection of the feasible sets of its runs. From this set we
report the pair with the smallest β/δ, and the smallest β at two fixed values of δ = α − β. The
smallest α alone is useless: it always belongs to a pair with δ near 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

from lightning_landscape.functional._columns import exact
from lightning_landscape.functional._envelope import FeasibleSet, as_float
from lightning_landscape.functional.alpha_beta import feasible_set
from lightning_landscape.probes import SCHEMA, ProbeTable
from lightning_landscape.reporting.conditions import NO_PROBE, reason_against_infimum
from lightning_landscape.reporting.fidelity import infidelity, is_faithful
from lightning_landscape.reporting.grouping import (
    Key,
    differences,
    key_of,
    names_of,
    order,
    unknown,
)
from lightning_landscape.reporting.numbers import number
from lightning_landscape.reporting.summary import drop_of
from lightning_landscape.reporting.tables import NONE, TextTable, shown
from lightning_landscape.run import Run

RATES = (0.1, 1.0)
"""Values of δ for the smallest β."""
ALL = "all runs"

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that share one pair, and the constants of that pair."""

    key: Key
    """Value of the hyper-parameter, or the name of the run."""
    runs: tuple[str, ...]
    probes: int
    alpha: float | None = None
    beta: float | None = None
    """Of the pairs that hold at every probe of every run, the one with the smallest β/δ."""
    rate: float | None = None
    """δ = α − β."""
    attained: bool | None = None
    """False if pairs only approach the smallest β/δ, as δ → ∞."""
    interpolation_error: float | None = None
    """σ², the mean of b − l over all rows."""
    neighbourhood: float | None = None
    """inf (β/δ) σ²."""
    beta_min: tuple[float | None, ...] = (None,) * len(RATES)
    """The smallest β at each δ of `RATES`; None if no β holds."""
    drop: float | None = None
    """f(x_0) − f(x_p), the amount by which training lowered the loss; mean over the runs."""
    informativeness: float | None = None
    """neighbourhood / drop. The pair is informative if this is below 1."""
    reason: str | None = None
    """Why there is no pair, or a caveat."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Groups in the order of their keys.

    Without a hyper-parameter, each run is a group, and `pooled` is the group of all runs.
    """

    group_by: str | None
    groups: tuple[Group, ...]
    pooled: Group | None = None
    notes: tuple[str, ...] = ()
    """Sentences about runs in no group and about other differences within a group."""

    @property
    def rows(self) -> tuple[Group, ...]:
        """All groups, the pooled one last."""
        return (*self.groups, self.pooled) if self.pooled is not None else self.groups


def compare(runs: Sequence[Run], group_by: str | None = None) -> Comparison:
    """Pool the runs of every group.

    Args:
        runs: measured runs, each with its table of probes and the ``run`` part of its summary.
        group_by: name of a hyper-parameter, with dots for a nested one, or "optimizer". Without
            it, each run is a group.

    Raises:
        ValueError: if no run has this hyper-parameter, or a run is given twice.
    """
    named = dict(zip(names_of([run.path for run in runs]), runs, strict=True))
    if len(named) < len(runs):
        raise ValueError(
            "found the same run twice; give each run once, because means would count it twice"
        )
    if group_by is None:
        groups = tuple(pool(name, {name: run}) for name, run in named.items())
        return Comparison(None, groups, pool(ALL, named) if len(named) > 1 else None)
    members: dict[Key, dict[str, Run]] = {}
    left_out = []
    for name, run in named.items():
        key = key_of(run, group_by)
        if key is None:
            left_out.append(name)
        else:
            members.setdefault(key, {})[name] = run
    if not members:
        raise ValueError(unknown(group_by, runs))
    groups = tuple(pool(key, members[key]) for key in sorted(members, key=order))
    return Comparison(group_by, groups, None, tuple(_notes(group_by, left_out, members)))


def _notes(
    group_by: str, left_out: list[str], members: Mapping[Key, Mapping[str, Run]]
) -> list[str]:
    others = {name for runs in members.values() for name in differences(runs.values())}
    notes = []
    if left_out:
        notes.append(
            f"No group contains {', '.join(left_out)}, because the {group_by} is not known there."
        )
    if others:
        notes.append(
            f"Runs of one group also differ in {', '.join(sorted(others))}: its pair holds for all."
        )
    return notes


def pool(key: Key, runs: Mapping[str, Run]) -> Group:
    """Return the group of some runs.

    Args:
        key: the value that the runs share.
        runs: at least one run, by name.
    """
    tables = {name: run.table.evaluated for name, run in runs.items()}
    probes, names = sum(map(len, tables.values())), tuple(runs)
    usable = [table for table in tables.values() if len(table)]
    reasons = {n: reason_against_infimum(t, "loss", "reference_loss") for n, t in tables.items()}
    wrong = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    empty = [f"{name}: {NO_PROBE}" for name, table in tables.items() if not len(table)]
    if wrong or not usable:  # the condition says nothing if a loss is below its infimum
        return Group(key, names, probes, reason="; ".join([*wrong, *empty]))
    sets = (feasible_set(**table.columns(*_COLUMNS)) for table in usable)
    region, sigma = reduce(FeasibleSet.intersect, sets), _interpolation_error(usable)
    best, drop = region.best(), _mean_drop(runs)
    neighbourhood = None if best.value is None else _float(best.value * sigma)
    no_pair = [] if best.pair else [_no_pair(neighbourhood)]
    rate, beta = best.pair or (None, None)
    return Group(
        key=key,
        runs=names,
        probes=probes,
        alpha=None if best.pair is None else _float(sum(best.pair)),
        beta=_float(beta),
        rate=_float(rate),
        attained=best.pair is not None,
        interpolation_error=_float(sigma),
        neighbourhood=neighbourhood,
        beta_min=tuple(_float(region.beta_min(Fraction(rate))) for rate in RATES),
        drop=drop,
        informativeness=_informativeness(neighbourhood, drop, best.pair is not None),
        reason="; ".join([*empty, *_infidelities(runs), *no_pair]) or None,
    )


def _float(value: Fraction | int | None) -> float | None:
    return None if value is None else number(as_float(Fraction(value)))


def _informativeness(size: float | None, drop: float | None, attained: bool) -> float | None:
    if size is None or drop is None or drop <= 0:
        return None
    if size == 0 and not attained:  # no loss is above the reference, so the condition says nothing
        return None
    return number(size / drop)


def _interpolation_error(tables: Sequence[ProbeTable]) -> Fraction:
    gaps = [
        reference - infimum
        for table in tables
        for reference, infimum in zip(
            exact(table.column("reference_loss")), exact(table.column("loss_infimum")), strict=True
        )
    ]
    return sum(gaps, Fraction(0)) / len(gaps)


def _mean_drop(runs: Mapping[str, Run]) -> float | None:
    drops = [drop_of(run.table)["value"] for run in runs.values() if len(run.table.evaluated)]
    return sum(drops) / len(drops) if drops and None not in drops else None


def _no_pair(neighbourhood: float | None) -> str:
    if neighbourhood is None:
        return "no pair holds at all probes of these runs"
    if neighbourhood == 0:
        return (
            "the loss of no probe is above its value at the reference, "
            "so the condition says nothing"
        )
    return "the smallest neighbourhood is approached only as δ → ∞: no finite pair attains it"


def _infidelities(runs: Mapping[str, Run]) -> list[str]:
    parts = {
        name: run.summary["run"]
        for name, run in runs.items()
        if run.summary and run.summary["run"].get("fidelity")
    }
    return [
        f"not to be relied on, {name}: {infidelity(part)}"
        for name, part in parts.items()
        if not is_faithful(part, drop_of(runs[name].table)["value"])
    ]


# ------------------------------------------------------------------------------- as JSON and text


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison for strict JSON."""
    rows = [{**asdict(group), "beta_min": _by_rate(group.beta_min)} for group in comparison.rows]
    last = rows.pop() if comparison.pooled is not None else None
    return {
        "schema": SCHEMA,
        "group_by": comparison.group_by,
        "groups": rows,
        "pooled": last,
        "notes": list(comparison.notes),
    }


def _by_rate(betas: Sequence[float | None]) -> dict[str, float | None]:
    return {f"{rate:g}": beta for rate, beta in zip(RATES, betas, strict=True)}


def as_table(comparison: Comparison) -> TextTable:
    """Return a comparison as a table of text."""
    first = ("run" if comparison.group_by is None else comparison.group_by, "runs", "probes")
    rates = (f"β_min({rate:g})" for rate in RATES)
    headers = (*first, "α", "β", "α − β", "σ²", "neighbourhood", *rates, "mean drop", "/ drop")
    rows = [
        (
            str(group.key),
            str(len(group.runs)),
            str(group.probes),
            *map(shown, (group.alpha, group.beta, group.rate)),
            *map(shown, (group.interpolation_error, group.neighbourhood)),
            *map(shown, (*group.beta_min, group.drop)),
            NONE if group.informativeness is None else f"{group.informativeness:.2g}",
        )
        for group in comparison.rows
    ]
    notes = [f"{group.key}: {group.reason}." for group in comparison.rows if group.reason]
    title = (
        "The pair with the smallest β/δ that holds for all runs of a group, "
        "and the smallest β at fixed δ"
    )
    return TextTable(title, headers, tuple(rows), (*comparison.notes, *notes))
