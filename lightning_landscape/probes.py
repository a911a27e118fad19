"""The table of probes, on which everything below it depends.

Code that touches a live model ends in this table. Every result is computed from this table and from
the ``run`` part of ``summary.json``. One row is one probe of the training run. These are the
columns of ``probes.csv``, in their order:

==================  ================================================================================
``step``            number of steps of the monitored optimizer before the probe
``epoch``           Lightning's ``current_epoch``
``loss``            a_k, the mini-batch loss at the iterate x_k
``reference_loss``  b_k, the loss of the same mini-batch at the reference x_p, with the same
                    randomness and module state
``loss_infimum``    l_k, the stated lower bound of the mini-batch loss
``inner_product``   p_k = <g_k, x_k − x_p>
``grad_sq_norm``    G_k² = ‖g_k‖²
``sq_distance``     D_k² = ‖x_k − x_p‖²
``step_size``       η_k = <x_k − x_{k+1}, g_k>/G_k², the size of the actual step along −g_k; 0 if
                    G_k = 0
``step_residual``   ‖x_k − x_{k+1} − η_k g_k‖, the part of the step that is not along −g_k
``initial_loss``    the loss of the same mini-batch at x_0, the parameters of the first probe; only
                    in some rows
``logged_step``     the x-axis of Lightning's loggers
``schema``          version of this file format
==================  ================================================================================

An empty cell is an unknown value. Some values become known only when training ends.
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
    """One row of the table. The docstring of the module defines the fields."""

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

    def with_values(self, **values: float | None) -> Probe:
        """Return the row with some other values."""
        return replace(self, **values)  # type: ignore[arg-type]

    @property
    def evaluated(self) -> bool:
        """Whether the columns that need the reference are known."""
        return self.reference_loss is not None


COLUMNS = column_names(Probe)


class ProbeTable(Sequence[Probe]):
    """Probes in ascending order of their step.

    Args:
        probes: rows with distinct steps, in any order.

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
            raise ValueError(
                "found two probes of the same step; supported is one row a step: remove one"
            )

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
        """Return a column as float64, shape ``(n,)``, with ``nan`` for unknown values."""
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
        """Cut ``steps`` of training into ``count`` equal slices.

        Returns:
            For each slice its first step, the first step after it, and its rows.
        """
        edges = [round(index * steps / count) for index in range(count + 1)]
        return [
            (start, end, ProbeTable(probe for probe in self._rows if start <= probe.step < end))
            for start, end in itertools.pairwise(edges)
        ]

    def merged(self, other: Iterable[Probe]) -> ProbeTable:
        """Return the union by step. A row of ``other`` replaces our row of the same step."""
        return ProbeTable({probe.step: probe for probe in (*self._rows, *other)}.values())

    def at_step(self, step: int) -> Probe:
        """Return the row of a step.

        Raises:
            KeyError: if there is no such row.
        """
        return {probe.step: probe for probe in self._rows}[step]

    def to_csv(self) -> str:
        """Return the table as CSV text: numbers with all digits, empty cells for unknown values."""
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

    Args:
        columns: values by name, all of the same length.

    Raises:
        ImportError: if pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError(
            "found no pandas, which a DataFrame needs: install it (pip install pandas), or use "
            "column() or the CSV files"
        ) from error
    return pandas.DataFrame(dict(columns))


def to_json_line(probe: Probe) -> str:
    """Return a probe as one line of ``probes.jsonl``."""
    return json.dumps({"schema": SCHEMA, **to_scalars(probe)}) + "\n"


def from_json_lines(text: str) -> ProbeTable:
    """Read ``probes.jsonl``. A killed process may have left an unfinished last line: skip it.

    Raises:
        ValueError: if the schema differs, or a line before the last one is damaged.
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
    """Return a probe as plain numbers, for a checkpoint."""
    return {name: getattr(probe, name) for name in COLUMNS}


def from_scalars(row: dict[str, Any]) -> Probe:
    """Read the numbers that `to_scalars` returned."""
    return from_cells(Probe, row)


def write_atomically(path: Path, text: str) -> None:
    """Write a file. A reader finds the old content or the new, also if the process is killed."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
