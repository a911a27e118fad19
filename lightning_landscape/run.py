"""`Run`: a measured run, as its files tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_landscape.probes import ProbeTable, to_frame


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run, read from its files."""

    path: Path
    """The monitor's folder"""
    table: ProbeTable
    """The table of probes"""
    summary: dict[str, Any] | None = field(repr=False)
    """The content of ``summary.json``; None if there is no such file"""
    tables: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)
    """The rows of the extras' tables, by name: "segments" for ``segments.csv``"""

    def to_pandas(self, name: str = "probes") -> Any:
        """Return one of the run's tables as a ``pandas.DataFrame``.

        Args:
            name: "probes", or a name in `tables`.

        Raises:
            ImportError: if pandas is not installed.
            ValueError: if there is no such table.
        """
        if name == "probes":
            return self.table.to_pandas()
        if name not in self.tables:
            raise ValueError(
                f"found no {name}.csv in {self.path}; supported are the tables that the run "
                f"measured: {', '.join(['probes', *self.tables])}: pass one of these names"
            )
        rows = self.tables[name]
        names = _column_names(rows[0]) if rows else ()
        return to_frame({column: [getattr(row, column) for row in rows] for column in names})


def _column_names(row: Any) -> Sequence[str]:
    # A row of an unknown table is a plain object, and any other row is a dataclass.
    return list(getattr(row, "__dataclass_fields__", None) or vars(row))
