"""Read runs that were killed or damaged, and say which files are missing or damaged."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning_landscape.bounds import Evidence, certify
from lightning_landscape.files import PROBES_CSV, PROBES_JSONL, SUMMARY
from lightning_landscape.probes import SCHEMA, Probe, ProbeTable
from lightning_landscape.reading.load import (
    read_lines,
    read_rows,
    read_summary,
    read_table,
    tables_in,
)
from lightning_landscape.reporting.alpha_beta import alpha_beta_condition
from lightning_landscape.reporting.certificates import entries
from lightning_landscape.reporting.conditions import other_conditions
from lightning_landscape.reporting.summary import drop_of
from lightning_landscape.reporting.tables import at, shown
from lightning_landscape.reporting.verdict import caveats, verdict
from lightning_landscape.run import Run

WINDOWS = 4
"""Windows of a summary that is computed from the table alone"""
_REQUIRED = ("loss", "loss_infimum", "grad_sq_norm", "step_size", "step_residual")
_OF_THE_REFERENCE = ("reference_loss", "inner_product", "sq_distance")

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Found:
    """The readable part of a run, and a sentence for each missing part."""

    run: Run
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> dict[str, Any] | None:
        """``summary.json``, or else a summary of the table alone; None without a table."""
        if self.run.summary is not None:
            return self.run.summary
        return summary_of_table(self.run.table) if len(self.run.table) else None


def read(folder: Path) -> Found:
    """Read a run file by file. A damaged file causes a note, and no error.

    Args:
        folder: the monitor's folder, ``<prefix>/``.
    """
    notes: list[str] = []
    summary = _attempt(lambda: _checked(read_summary(folder)), SUMMARY, notes)
    run = Run(folder, _table(folder, notes), summary, _tables(folder, notes))
    return Found(run, tuple(notes + _missing(run)))


def _tables(folder: Path, notes: list[str]) -> dict[str, list[Any]]:
    """Return the rows of the readable tables of the extras."""
    found: dict[str, list[Any]] = {}
    for name in tables_in(folder):
        rows = _attempt(functools.partial(read_rows, folder, name), f"{name}.csv", notes)
        if rows is not None:
            found[name] = rows
    return found


def _attempt(reader: Callable[[], Content], name: str, notes: list[str]) -> Content | None:
    try:
        return reader()
    except Exception as error:  # a parser may raise anything for a damaged file
        notes.append(f"{name} cannot be read and is left out: {' '.join(str(error).split())}.")
        return None


def _checked(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a summary.

    Raises:
        ValueError: if a part is missing or has the wrong type, or if a number is not finite.
    """
    if summary is None:
        return None
    for part in ("run", "conditions", "bounds"):
        if not isinstance(summary.get(part), dict):
            raise ValueError(f"found no {part!r} in it, which must be an object")
    entries_found = [*summary["conditions"].values(), *summary["bounds"].values()]
    if not all(isinstance(entry, dict) for entry in entries_found):
        raise ValueError("found a condition or a bound that is not an object")
    if not _is_finite(summary):
        raise ValueError("found a number that is not finite, which strict JSON does not allow")
    return summary


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _table(folder: Path, notes: list[str]) -> ProbeTable:
    """Return the usable rows of the table, or of ``probes.jsonl`` if the table is damaged."""
    name = f"the table of probes ({PROBES_CSV}, {PROBES_JSONL})"
    table = _attempt(lambda: read_table(folder), name, notes)
    if table is None:
        table = _attempt(lambda: read_lines(folder), PROBES_JSONL, notes) or ProbeTable()
        if len(table):
            notes.append(f"The {len(table)} probes shown are those of {PROBES_JSONL}.")
    usable = [_with_whole_reference(probe) for probe in table if _are_finite(probe, _REQUIRED)]
    if len(usable) < len(table):
        notes.append(
            f"{len(table) - len(usable)} of {len(table)} probes have a value that is missing or "
            "not finite; they are left out."
        )
    return ProbeTable(usable)


def _are_finite(probe: Probe, names: tuple[str, ...]) -> bool:
    values = [getattr(probe, name) for name in names]
    return all(value is not None and math.isfinite(value) for value in values)


def _with_whole_reference(probe: Probe) -> Probe:
    """Return a probe without its reference columns if one of them is missing."""
    values: dict[str, Any] = {}
    if not _are_finite(probe, _OF_THE_REFERENCE):
        values = dict.fromkeys(_OF_THE_REFERENCE)
    if not _are_finite(probe, ("initial_loss",)):
        values["initial_loss"] = None
    return probe.with_values(**values)


def _missing(run: Run) -> list[str]:
    """Return a sentence for each file or evaluation that a run has not finished."""
    notes = (_about_table(run), _about_summary(run), _about_evaluation(run.table))
    return [note for note in notes if note]


def _about_table(run: Run) -> str:
    if not len(run.table):
        rest = f"only {SUMMARY} is shown" if run.summary is not None else "nothing can be computed"
        return f"No probe can be read ({PROBES_CSV}, {PROBES_JSONL}): {rest}."
    if (run.path / PROBES_CSV).is_file():
        return ""
    return (
        f"{PROBES_CSV} is missing: the {len(run.table)} probes are those of {PROBES_JSONL}, which "
        "ends where the run was killed."
    )


def _about_summary(run: Run) -> str:
    if not (run.path / SUMMARY).is_file():
        note = f"{SUMMARY} is missing: the run is still training, or was killed."
        return f"{note} All results follow from its probes alone." if len(run.table) else note
    count = at(run.summary, "run", "probes")
    if run.summary is None or not len(run.table) or count == len(run.table):
        return ""
    return (
        f"{SUMMARY} is about {count} probes, but the table has {len(run.table)}: the two files "
        "were not written at the same time."
    )


def _about_evaluation(table: ProbeTable) -> str:
    missing = len(table) - len(table.evaluated)
    if not missing:
        return ""
    if missing < len(table):
        return (
            f"{missing} of {len(table)} probes were not evaluated at the reference; the conditions "
            "are those of the other probes."
        )
    first, last = table[0], table[-1]
    return (
        f"None of the {missing} probes was evaluated at the reference, so no condition can be "
        f"computed; the loss was {shown(first.loss)} at step {first.step} and {shown(last.loss)} "
        f"at step {last.step}."
    )


def summary_of_table(table: ProbeTable) -> dict[str, Any]:
    """Return the part of ``summary.json`` that follows from the table alone, without theorems.

    Args:
        table: the table of probes, at least one row.
    """
    run = _unknown_run(table)
    drop, rows = drop_of(table), table.evaluated
    alpha_beta = alpha_beta_condition(rows, drop, WINDOWS, run)
    bounds = entries(certify(Evidence(ProbeTable(), run)), None, run)
    for bound in bounds.values():
        bound["reason"] = f"{SUMMARY} is missing, so the settings of the run are unknown"
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
    """Return the ``run`` part of a summary from the table; other values are unknown."""
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
