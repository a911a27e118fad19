"""Several runs side by side: the pairs of the α-β-condition that hold over all runs of a group, as over seeds in the paper.

The feasible sets of a group's runs intersect, exactly. Of the pairs that are left, the one with the smallest β/δ is given, and
the smallest β at two fixed values of δ: "the smallest α" alone would always be a pair with δ near 0, of no use.
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
from lightning_landscape.loading import Run
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

RATES = (0.1, 1.0)
"""δ at which the smallest β is given"""
ALL = "all runs"

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that one pair has to satisfy, and what is left."""

    key: Key
    """Value of the hyper-parameter, or the name of the run"""
    runs: tuple[str, ...]
    probes: int
    alpha: float | None = None
    beta: float | None = None
    """The pair with the smallest β/δ that holds at every probe of every run; None where there is none"""
    rate: float | None = None
    """δ = α − β"""
    attained: bool | None = None
    """False where the smallest β/δ is only approached, as δ → ∞"""
    interpolation_error: float | None = None
    """σ², the mean of b − l over all rows"""
    neighbourhood: float | None = None
    """inf (β/δ) σ²"""
    beta_min: tuple[float | None, ...] = (None,) * len(RATES)
    """The smallest β at each δ of `RATES`; None where no β works"""
    drop: float | None = None
    """What training achieved, f(x_0) − f(x_p), the mean over the runs"""
    informativeness: float | None = None
    """neighbourhood / drop; below 1 the pair says something"""
    reason: str | None = None
    """Why there is no pair, or what to mind"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Groups in the order of their keys; without a hyper-parameter every run is one, and `pooled` is over all."""

    group_by: str | None
    groups: tuple[Group, ...]
    pooled: Group | None = None
    notes: tuple[str, ...] = ()
    """What was left out, and why"""

    @property
    def rows(self) -> tuple[Group, ...]:
        """All groups, the pooled one last."""
        return (*self.groups, self.pooled) if self.pooled is not None else self.groups


def compare(runs: Sequence[Run], group_by: str | None = None) -> Comparison:
    """Pool the runs of every group.

    Args:
        runs: measured runs; of each only the table of probes and the ``run`` part of the summary are used.
        group_by: a hyper-parameter by its dotted name, or "optimizer"; without it each run is a group of its own.

    Raises:
        ValueError: if no run knows that hyper-parameter; the message names those that are there.
    """
    named = dict(zip(names_of([run.path for run in runs]), runs, strict=True))
    if len(named) < len(runs):
        raise ValueError(
            "found the same run twice; supported is every run once, else it would count twice in means"
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
            f"{', '.join(left_out)}: no {group_by} is known of them, so they are in no group."
        )
    if others:
        notes.append(
            f"Runs of one group differ in {', '.join(sorted(others))} as well: its worst case is over these, too."
        )
    return notes


def pool(key: Key, runs: Mapping[str, Run]) -> Group:
    """Return the pairs that hold over all of some runs.

    Args:
        key: what the runs have in common.
        runs: by name, at least one.
    """
    tables = {name: run.table.evaluated for name, run in runs.items()}
    probes, names = sum(map(len, tables.values())), tuple(runs)
    usable = [table for table in tables.values() if len(table)]
    wrong = [
        f"{name}: {said}"
        for name, rows in tables.items()
        if (said := reason_against_infimum(rows, "loss", "reference_loss"))
    ]
    empty = [f"{name}: {NO_PROBE}" for name, rows in tables.items() if not len(rows)]
    if (
        wrong or not usable
    ):  # a run without probes asks nothing of a pair, one whose infimum is none cannot be asked
        return Group(key, names, probes, reason="; ".join([*wrong, *empty]))
    region = reduce(
        FeasibleSet.intersect, (feasible_set(**table.columns(*_COLUMNS)) for table in usable)
    )
    sigma = _interpolation_error(usable)
    best, drop = region.best(), _mean_drop(runs)
    neighbourhood = None if best.value is None else number(as_float(best.value * sigma))
    silent = (
        neighbourhood == 0 and best.pair is None
    )  # no loss is above the reference, which says nothing
    worth = (
        None
        if neighbourhood is None or drop is None or drop <= 0 or silent
        else number(neighbourhood / drop)
    )
    minds = [
        *empty,
        *_infidelities(runs),
        *([_no_pair(neighbourhood)] if best.pair is None else []),
    ]
    return Group(
        key=key,
        runs=names,
        probes=probes,
        alpha=number(as_float(best.pair[0] + best.pair[1])) if best.pair else None,
        beta=number(as_float(best.pair[1])) if best.pair else None,
        rate=number(as_float(best.pair[0])) if best.pair else None,
        attained=best.pair is not None,
        interpolation_error=number(as_float(sigma)),
        neighbourhood=neighbourhood,
        beta_min=tuple(_beta_min(region, rate) for rate in RATES),
        drop=drop,
        informativeness=worth,
        reason="; ".join(minds) or None,
    )


def _interpolation_error(tables: Sequence[ProbeTable]) -> Fraction:
    gaps: list[Fraction] = []
    for table in tables:
        references, infima = (
            exact(table.column("reference_loss")),
            exact(table.column("loss_infimum")),
        )
        gaps += [b - low for b, low in zip(references, infima, strict=True)]
    return sum(gaps, Fraction(0)) / len(gaps)


def _beta_min(region: FeasibleSet, rate: float) -> float | None:
    beta = region.beta_min(Fraction(rate))
    return None if beta is None else number(as_float(beta))


def _mean_drop(runs: Mapping[str, Run]) -> float | None:
    drops = [drop_of(run.table)["value"] for run in runs.values() if len(run.table.evaluated)]
    return sum(drops) / len(drops) if drops and None not in drops else None


def _no_pair(neighbourhood: float | None) -> str:
    if neighbourhood is None:
        return "no pair holds at all probes of these runs"
    if neighbourhood == 0:
        return "the loss of no probe is above its value at the reference, so the condition says nothing"
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


# ------------------------------------------------------------------------------------------------------------ as JSON and text


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as strict JSON holds it."""
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
            *map(
                shown,
                (
                    group.alpha,
                    group.beta,
                    group.rate,
                    group.interpolation_error,
                    group.neighbourhood,
                ),
            ),
            *map(shown, group.beta_min),
            shown(group.drop),
            NONE if group.informativeness is None else f"{group.informativeness:.2g}",
        )
        for group in comparison.rows
    ]
    notes = [f"{group.key}: {group.reason}." for group in comparison.rows if group.reason]
    title = "The pair with the smallest β/δ that holds over all runs of a group, and the smallest β at fixed δ"
    return TextTable(title, headers, tuple(rows), (*comparison.notes, *notes))
