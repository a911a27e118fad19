"""Tables beside the table of probes: lists of frozen dataclasses, one CSV file each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, fields
from types import SimpleNamespace
from typing import Any

from lightning_landscape.probes import SCHEMA, check_schema


def rows_to_csv(kind: type[Any], rows: Iterable[Any]) -> str:
    """Return rows as text: numbers with all their digits, an empty cell for None."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*(field.name for field in fields(kind)), "schema"))
    for row in rows:
        cells: tuple[Any, ...] = (*astuple(row), SCHEMA)
        writer.writerow("" if c is None else c if isinstance(c, str) else repr(c) for c in cells)
    return text.getvalue()


def rows_from_csv(kind: type[Any] | None, text: str, name: str) -> list[Any]:
    """Read what `rows_to_csv` wrote.

    Args:
        kind: the dataclass of the rows; None where it is not known: then columns are attributes.
        text: content of the file.
        name: of the file, for messages.

    Raises:
        ValueError: if columns are missing or the schema is another one.
    """
    reader = csv.DictReader(io.StringIO(text))
    found = list(reader.fieldnames or ())
    columns = [f.name for f in fields(kind)] if kind else [c for c in found if c != "schema"]
    missing = [column for column in (*columns, "schema") if column not in found]
    if missing:
        raise ValueError(f"found no column {missing} in {name}; supported are {tuple(columns)}")
    kinds = {f.name: str(f.type) for f in fields(kind)} if kind else {}
    rows = []
    for row in reader:
        check_schema(row["schema"], name)
        values = {column: _value(row[column], kinds.get(column, "")) for column in columns}
        rows.append(kind(**values) if kind else SimpleNamespace(**values))
    return rows


def _value(cell: str, kind: str) -> Any:
    if kind.startswith("str"):
        return cell
    if cell == "":
        return None
    for parse in (int, float):
        if parse is int and kind.startswith("float"):
            continue
        try:
            return parse(cell)
        except ValueError:
            if kind:
                raise
    return cell
