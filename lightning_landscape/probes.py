"""The waist of the hourglass: the table of probes.

Whatever a user reads is computed from this table (and the ``run`` part of ``summary.json``); whatever touches a live model
ends in it. One row is one probe of the training run; columns, units and their order in ``probes.csv``:

==================  ======================================================================================================
``step``            calls of the monitored optimiser's step already made when the probe was taken
``epoch``           Lightning's ``current_epoch``
``loss``            a_k, mini-batch loss at the iterate x_k
``reference_loss``  b_k, the same mini-batch (same randomness, same state) at the reference x_p
``loss_infimum``    l_k, the stated lower bound of the mini-batch loss
``inner_product``   p_k = <g_k, x_k − x_p>
``grad_sq_norm``    G_k² = ‖g_k‖²
``sq_distance``     D_k² = ‖x_k − x_p‖²
``step_size``       η_k = <x_k − x_{k+1}, g_k>/G_k², the step that was really made along −g_k; 0 where G_k = 0
``step_residual``   ‖x_k − x_{k+1} − η_k g_k‖, what of the step was not along −g_k
``initial_loss``    the same mini-batch at x_0, the first probe's parameters; only on some rows
``logged_step``     Lightning's own x-axis, at which curves are logged
``schema``          version of this file format
==================  ======================================================================================================

An empty cell is a value that is not known (yet).
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_landscape.csv_tables import SCHEMA as SCHEMA
from lightning_landscape.csv_tables import check_schema as check_schema
from lightning_landscape.csv_tables import column_names, from_cells, from_csv, to_csv

_INTEGERS = frozenset({"step", "epoch", "logged_step"})


@dataclass(frozen=True, slots=True)
class Probe:
    """One row of the table, see the module's docstring for units."""

    step: int
    epoch: int
    loss: float
    reference_loss: float | None
    loss_infimum: float
    inner_product: float | None
    grad_sq_norm: float
    sq_distance: float | None
    step_size: float
    step_residual: float
    initial_loss: float | None
    logged_step: int

    def with_values(self, **values: float) -> Probe:
        """Return the row with some of its values changed."""
        return replace(self, **values)  # type: ignore[arg-type]

    @property
    def evaluated(self) -> bool:
        """Whether the columns that need the reference are known."""
        return self.reference_loss is not None


COLUMNS = column_names(Probe)


class ProbeTable(Sequence[Probe]):
    """Probes in ascending order of their step.

    Args:
        probes: rows in any order, with distinct steps.

    Raises:
        ValueError: if two rows have the same step.

    Example:
        >>> row = Probe(0, 0, 2.0, 1.0, 0.0, 0.5, 4.0, 1.0, 0.1, 0.0, None, 0)
        >>> table = ProbeTable([row])
        >>> table.column("loss")
        tensor([2.], dtype=torch.float64)
        >>> ProbeTable.from_csv(table.to_csv()) == table
        True
    """

    def __init__(self, probes: Iterable[Probe] = ()) -> None:
        self._rows = sorted(probes, key=lambda probe: probe.step)
        self._columns: dict[str, Tensor] = {}
        if len({probe.step for probe in self._rows}) < len(self._rows):
            raise ValueError("found two probes of the same step; supported is one row a step")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Probe]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProbeTable) and self._rows == other._rows

    def __repr__(self) -> str:
        return f"ProbeTable({len(self)} probes, steps {[probe.step for probe in self._rows[:3]]}…)"

    def column(self, name: str) -> Tensor:
        """Return a column as float64, shape ``(n,)``; ``nan`` where a value is not known."""
        if name not in self._columns:
            values = (getattr(probe, name) for probe in self._rows)
            column = [float("nan") if value is None else float(value) for value in values]
            self._columns[name] = torch.tensor(column, dtype=torch.float64)
        return self._columns[name].clone()

    def columns(self, *names: str) -> dict[str, Tensor]:
        """Return several columns by name."""
        return {name: self.column(name) for name in names}

    @property
    def evaluated(self) -> ProbeTable:
        """The rows whose reference columns are known."""
        return ProbeTable(probe for probe in self._rows if probe.evaluated)

    def windows(self, count: int, steps: int) -> list[tuple[int, int, ProbeTable]]:
        """Cut training into ``count`` equal slices of ``steps`` and return (from, to, rows with from ≤ step < to)."""
        edges = [round(index * steps / count) for index in range(count + 1)]
        return [
            (start, end, ProbeTable(probe for probe in self._rows if start <= probe.step < end))
            for start, end in itertools.pairwise(edges)
        ]

    def merged(self, other: Iterable[Probe]) -> ProbeTable:
        """Return the union by step; rows of ``other`` take the place of ours."""
        return ProbeTable({probe.step: probe for probe in (*self._rows, *other)}.values())

    def at_step(self, step: int) -> Probe:
        """Return the row of a step.

        Raises:
            KeyError: if there is none.
        """
        for probe in self._rows:
            if probe.step == step:
                return probe
        raise KeyError(step)

    def to_csv(self) -> str:
        """Return the table as CSV text: numbers with all digits, an empty cell if not known."""
        return to_csv(Probe, self._rows)

    @classmethod
    def from_csv(cls, text: str) -> ProbeTable:
        """Read the text that `to_csv` returned.

        Raises:
            ValueError: if columns are missing or the schema differs.
        """
        return cls(from_csv(Probe, text, "the table of probes"))

    def to_pandas(self) -> Any:
        """Return the table as a ``pandas.DataFrame`` of int64 and float64 columns.

        An unknown value is ``NaN``.

        Raises:
            ImportError: if pandas is not installed.
        """
        frame = to_frame({name: [getattr(probe, name) for probe in self] for name in COLUMNS})
        return frame.astype({name: "int64" if name in _INTEGERS else "float64" for name in COLUMNS})


def to_frame(columns: Mapping[str, Sequence[Any]]) -> Any:
    """Return columns as a ``pandas.DataFrame``.

    Raises:
        ImportError: if pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError(
            "found no pandas, which a DataFrame needs; install it (pip install pandas), "
            "or use column() and the CSV files"
        ) from error
    return pandas.DataFrame(dict(columns))


def to_json_line(probe: Probe) -> str:
    """Return a probe as one line of ``probes.jsonl``."""
    return json.dumps({"schema": SCHEMA, **to_scalars(probe)}) + "\n"


def from_json_lines(text: str) -> ProbeTable:
    """Read ``probes.jsonl``; a last line that a killed process left unfinished is passed over.

    Raises:
        ValueError: if the schema is another one, or a line before the last is damaged.
    """
    probes: dict[int, Probe] = {}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
            break
        check_schema(row.get("schema"), "probes.jsonl")
        probe = from_scalars(row)
        probes[probe.step] = probe
    return ProbeTable(probes.values())


def to_scalars(probe: Probe) -> dict[str, Any]:
    """Return a probe as plain numbers, as a checkpoint holds it."""
    return {name: getattr(probe, name) for name in COLUMNS}


def from_scalars(row: dict[str, Any]) -> Probe:
    """Read what `to_scalars` returned."""
    return from_cells(Probe, row)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill in the middle, finds the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
