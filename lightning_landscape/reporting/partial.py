"""Runs that were killed or damaged: what can still be read and computed, and in plain sentences what is missing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning_landscape.bounds import Evidence, certify
from lightning_landscape.files import PROBES_CSV, PROBES_JSONL, SUMMARY
from lightning_landscape.loading import (
    Run,
    read_lines,
    read_rows,
    read_summary,
    read_table,
    tables_in,
)
from lightning_landscape.probes import SCHEMA, Probe, ProbeTable
from lightning_landscape.reporting.alpha_beta import alpha_beta_condition
from lightning_landscape.reporting.certificates import entries
from lightning_landscape.reporting.conditions import other_conditions
from lightning_landscape.reporting.summary import drop_of
from lightning_landscape.reporting.tables import at, shown
from lightning_landscape.reporting.verdict import caveats, verdict

WINDOWS = 4
_REQUIRED = ("loss", "loss_infimum", "grad_sq_norm", "step_size", "step_residual")
_OF_THE_REFERENCE = ("reference_loss", "inner_product", "sq_distance")

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Found:
    """A run as far as its files can be read, and a sentence for everything that is missing."""

    run: Run
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> dict[str, Any] | None:
        """``summary.json``, or what follows from the table alone; None where there is neither."""
        if self.run.summary is not None:
            return self.run.summary
        return summary_of_table(self.run.table) if len(self.run.table) else None


def read(folder: Path) -> Found:
    """Read whatever can be read of a run, file by file; nothing is raised for its content.

    Args:
        folder: the monitor's folder, ``<prefix>/``.
    """
    notes: list[str] = []
    summary = _attempt(lambda: _usable(read_summary(folder)), SUMMARY, notes)
    table = _table(folder, notes)
    run = Run(
        folder,
        table,
        summary,
        _tables(folder, notes),
    )
    return Found(run, tuple(notes + _missing(run)))


def _tables(folder: Path, notes: list[str]) -> dict[str, list[Any]]:
    """Return the rows of the extras' tables that can be read."""
    found: dict[str, list[Any]] = {}
    for name in tables_in(folder):
        rows = _attempt(functools.partial(read_rows, folder, name), f"{name}.csv", notes)
        if rows is not None:
            found[name] = rows
    return found


def _attempt(reader: Callable[[], Content], name: str, notes: list[str]) -> Content | None:
    try:
        return reader()
    except Exception as error:  # whatever a damaged file makes of a parser
        notes.append(f"{name} cannot be read and is left out: {' '.join(str(error).split())}.")
        return None


def _usable(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    """Raise ``ValueError`` where a summary lacks its parts, or holds a number that is not finite."""
    if summary is None:
        return None
    for part in ("run", "conditions", "bounds"):
        if not isinstance(summary.get(part), dict):
            raise ValueError(f"found no {part!r} in it; supported is what a run writes")
    if not all(
        isinstance(entry, dict)
        for part in ("conditions", "bounds")
        for entry in summary[part].values()
    ):
        raise ValueError(
            "found a condition or a bound that is no object; supported is what a run writes"
        )
    if not _is_finite(summary):
        raise ValueError("found a number that is not finite, where strict JSON has none")
    return summary


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _table(folder: Path, notes: list[str]) -> ProbeTable:
    """Return the rows that can be computed with; where the table is damaged, those of the lines."""
    table = _attempt(
        lambda: read_table(folder), f"the table of probes ({PROBES_CSV}, {PROBES_JSONL})", notes
    )
    if table is None:
        table = _attempt(lambda: read_lines(folder), PROBES_JSONL, notes) or ProbeTable()
        if len(table):
            notes.append(f"The {len(table)} probes shown are those of {PROBES_JSONL}.")
    kept = [_with_whole_reference(probe) for probe in table if _are_finite(probe, _REQUIRED)]
    if len(kept) < len(table):
        notes.append(
            f"{len(table) - len(kept)} of {len(table)} probes have a value that is missing or not finite; they are left out."
        )
    return ProbeTable(kept)


def _are_finite(probe: Probe, names: tuple[str, ...]) -> bool:
    values = [getattr(probe, name) for name in names]
    return all(value is not None and math.isfinite(value) for value in values)


def _with_whole_reference(probe: Probe) -> Probe:
    """Return a probe that counts as not evaluated where one of the columns that need the reference is missing."""
    values: dict[str, Any] = (
        {} if _are_finite(probe, _OF_THE_REFERENCE) else dict.fromkeys(_OF_THE_REFERENCE)
    )
    if not _are_finite(probe, ("initial_loss",)):
        values["initial_loss"] = None
    return probe.with_values(**values)


def _missing(run: Run) -> list[str]:
    """Say what a run did not write, or did not finish."""
    return [
        said
        for said in (_about_lines(run), _about_summary(run), _about_evaluation(run.table))
        if said
    ]


def _about_lines(run: Run) -> str:
    if not len(run.table):
        rest = f"only {SUMMARY} is shown" if run.summary is not None else "nothing can be computed"
        return f"No probe can be read ({PROBES_CSV}, {PROBES_JSONL}): {rest}."
    if (run.path / PROBES_CSV).is_file():
        return ""
    return f"{PROBES_CSV} is missing: the {len(run.table)} probes are those of {PROBES_JSONL}, up to where the run was killed."


def _about_summary(run: Run) -> str:
    if not (run.path / SUMMARY).is_file():
        said = f"{SUMMARY} is missing: the run is still training, or was killed."
        return f"{said} What is shown follows from its probes alone." if len(run.table) else said
    count = at(run.summary, "run", "probes")
    if run.summary is None or not len(run.table) or count == len(run.table):
        return ""
    return f"{SUMMARY} is of {count} probes, the table has {len(run.table)}: they are not of the same moment."


def _about_evaluation(table: ProbeTable) -> str:
    missing = len(table) - len(table.evaluated)
    if missing and missing == len(table):
        return (
            f"None of the {missing} probes was evaluated at the reference, so no condition can be computed; the loss "
            f"was {shown(table[0].loss)} at step {table[0].step} and {shown(table[-1].loss)} at step {table[-1].step}."
        )
    return (
        f"{missing} of {len(table)} probes were not evaluated at the reference; conditions are those of the others."
        * bool(missing)
    )


def summary_of_table(table: ProbeTable) -> dict[str, Any]:
    """Return what ``summary.json`` would say as far as it follows from the table alone; no theorem applies to that.

    Args:
        table: the table of probes, at least one row.
    """
    run = _unknown_run(table)
    drop, rows = drop_of(table), table.evaluated
    alpha_beta = alpha_beta_condition(rows, drop, WINDOWS, run)
    bounds = entries(certify(Evidence(ProbeTable(), run)), None, run)
    for bound in bounds.values():
        bound["reason"] = f"{SUMMARY} is missing: how the run was made is not known"
    return {
        "schema": SCHEMA,
        "run": {**run, "drop": drop},
        "conditions": {
            "alpha_beta": alpha_beta,
            **other_conditions(Evidence(table, run), WINDOWS),
        },
        "bounds": bounds,
        "bound_in_force": None,
        "verdict": verdict(alpha_beta, drop, run, len(rows)) + caveats(rows, drop, WINDOWS, run),
    }


def _unknown_run(table: ProbeTable) -> dict[str, Any]:
    """Return the ``run`` part of a summary with what a table shows; the rest is not known."""
    return {
        "complete": False,
        "stopped_by": f"no {SUMMARY} was written",
        "first_step": table[0].step,
        "steps": table[-1].step + 1,
        "probes": len(table),
        "reference": {"kind": None, "path": None},
        "fidelity": {"steps": [], "max_abs": None, "exact": None, "gradient": None},
        "optimizer": {"class": None, "defaults": {}},
        "hparams": {},
        "accumulate_grad_batches": 1,
        "sampling": "unknown",
    }
