"""`Extra`: one optional measurement of recorded steps, with everything that belongs to it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_landscape.csv_tables import column_names
from lightning_landscape.reporting.findings import Findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

    from lightning_landscape.evaluation.evaluator import Evaluator
    from lightning_landscape.evaluation.probed_step import ProbedStep
    from lightning_landscape.reporting.figures import Drawn
    from lightning_landscape.store.record import Record
    from lightning_landscape.training.training import Training

FOLLOWING = "following"
"""x_{k+1}, as a need of an extra"""

SAMPLES = "samples"
"""A ``loss=`` that returns one number a sample, as a need of an extra"""


class Extra(ABC):
    """Measures recorded steps again: after training, or with ``reference=`` after each of them.

    A subclass names its tables and says in `at` which rows belong to a step. All else is optional:
    a part of ``summary.json``, a sentence of the verdict, curves, a picture. Rows go to
    ``<table>.csv``, into checkpoints, and to ``load(run).to_pandas("<table>")`` by themselves.

    Each ``fit`` works with a shallow copy of the object that the user passed. A subclass with state
    of its own makes it anew in `check`.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Row:
        ...     step: int
        ...     norm: float
        >>> class ReferenceGradient(Extra):
        ...     tables = {"reference_gradient": Row}
        ...
        ...     def at(self, step):
        ...         _, gradient = step.gradient(step.reference)
        ...         return [Row(step.number, step.evaluator.sq_norm(gradient) ** 0.5)]
    """

    tables: ClassVar[Mapping[str, type]] = {}
    """By name, the frozen dataclass of the rows of each table. Its first field is ``step``. A field
    holds an int, a float, a str, a bool, or None"""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What it needs beside x_k, g_k and the mini-batch: `FOLLOWING`, `SAMPLES`, or nothing"""
    at_most: int | None = None
    """Largest number of records that are measured, evenly among the probes; None for all"""
    stopped_by: str | None = None
    """Why it ended before the last record"""

    def start(self) -> Self:
        """Return a copy for one ``fit``, without rows."""
        new = copy.copy(self)
        new._rows, new.stopped_by = {}, None
        return new

    _rows: dict[int, list[Any]]

    # ------------------------------------------------------------------ what a subclass may say

    def check(self, training: Training) -> None:
        """Prepare for a run, or refuse it before its first step; called more than once.

        Raises:
            MisconfigurationException: what was found, what is supported, what to do.
        """

    def check_first(
        self, record: Record, evaluator: Evaluator, training_loss: float | None
    ) -> None:
        """Refuse a run at its first probe, before the optimizer's step.

        This may evaluate ``loss=``, and nothing else of the user's.

        Args:
            record: the first probe.
            evaluator: in a session, with the parameters at x_0.
            training_loss: what ``training_step`` returned; None under manual optimization.

        Raises:
            MisconfigurationException: what was found, what is supported, what to do.
        """

    @abstractmethod
    def at(self, step: ProbedStep) -> Iterable[Any]:
        """Return the rows of one recorded step, of any of the tables.

        All processes call it for the same steps in the same order, because an evaluation waits for
        all of them. The rows of the first process are written, those of the others are not. By
        convention a row with a number that is not finite is left out.

        Args:
            step: the step, its row and x_p; nothing that an evaluation does outlasts the call.

        Raises:
            NotMeasurable: if this record cannot be measured, and others may be.
            Exception: ends this extra with a warning; all else goes on.
        """

    def evaluations(self, records: int) -> int:
        """Return about how many forward passes the records take; a backward pass counts as two."""
        return 0

    def describe(self) -> str:
        """Return its part of the message before training, as "one held-out batch"; "" for none."""
        return ""

    def failed(self, error: str, step: int) -> str:
        """Return the warning after a failure."""
        name = type(self).__name__
        return f"LandscapeMonitor: {name} failed at step {step}, {error}. It ends; all else goes on"

    def summary(self, findings: Findings) -> dict[str, Any]:
        """Return its part of ``summary.json``, merged with all others key by key."""
        return {}

    def sentence(self, summary: Mapping[str, Any]) -> str:
        """Return its sentences of the verdict, each with a space before it.

        Args:
            summary: the content of ``summary.json`` so far, with the parts of all extras.
        """
        return ""

    def curves(self, rows: Sequence[Any]) -> dict[str, float]:
        """Return values by tag of one record's rows, of which there is at least one."""
        return {}

    @classmethod
    def figures(cls, drawn: Drawn) -> Mapping[str, Figure]:
        """Return pictures by name; it needs matplotlib, and nothing of the run but its files.

        Args:
            drawn: table of probes, summary, and the rows by table; a table may be missing.
        """
        return {}

    # ------------------------------------------------------------------------------------- rows

    def add(self, step: int, rows: Iterable[Any]) -> None:
        """Keep the rows of a record.

        Raises:
            TypeError: if a row is of none of the tables, or holds a value that a CSV cannot.
        """
        found = list(rows)
        for row in found:
            self._table_of(row)
            _check_cells(row)
        self._rows[step] = found

    def measured(self, step: int) -> bool:
        """Return whether a record was measured."""
        return step in self._rows

    def forget(self, step: int) -> None:
        """Remove the rows of a record."""
        self._rows.pop(step, None)

    def leave_only(self, steps: Iterable[int]) -> None:
        """Remove the rows of all other records."""
        for step in set(self._rows).difference(steps):
            self.forget(step)

    def at_step(self, step: int) -> list[Any]:
        """Return the rows of a record; none where it was not measured."""
        return list(self._rows.get(step, ()))

    def rows(self, table: str) -> list[Any]:
        """Return the rows of a table, in the order of their steps."""
        kind = self.tables[table]
        return [row for step in sorted(self._rows) for row in self._rows[step] if type(row) is kind]

    def _table_of(self, row: Any) -> str:
        for name, kind in self.tables.items():
            if type(row) is kind:
                return name
        raise TypeError(
            f"found a row of {type(row).__name__} from {type(self).__name__}; supported are its "
            f"tables, {', '.join(f'{name}: {k.__name__}' for name, k in self.tables.items())}"
        )

    # --------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain values."""
        rows = [
            [step, self._table_of(row), list(astuple(row))]
            for step, rows in self._rows.items()
            for row in rows
        ]
        return {"rows": rows, "steps": list(self._rows)}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._rows = {step: [] for step in state["steps"]}
        for step, table, values in state["rows"]:
            self._rows[step].append(self.tables[table](*values))


def _check_cells(row: Any) -> None:
    for name in column_names(type(row)):
        value = getattr(row, name)
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise TypeError(
                f"found {type(value).__name__} in the field {name} of {type(row).__name__}; "
                "supported are bool, int, float, str and None: convert it, as with float(...)"
            )
