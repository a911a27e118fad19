"""Tables as CSV text: one frozen dataclass describes the columns, one instance is one row.

The rows of this package are such classes, and a user's own class works as well. Numbers keep all
their digits. An empty cell is None. The last column, ``schema``, is the version of the format.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from typing import Any, TypeAlias, TypeVar, get_type_hints

SCHEMA = 1

Cell: TypeAlias = bool | int | float | str | None
Row = TypeVar("Row")


def to_csv(kind: type[Row], rows: Iterable[Row]) -> str:
    """Return rows as CSV text.

    Args:
        kind: the dataclass of the rows. Its fields are the columns.
        rows: the rows, in the order of the file.

    Raises:
        TypeError: if a field is not bool, int, float or str, or one of them with None.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Sharpness:
        ...     step: int
        ...     largest: float | None
        >>> print(to_csv(Sharpness, [Sharpness(3, 0.25), Sharpness(4, None)]), end="")
        step,largest,schema
        3,0.25,1
        4,,1
    """
    names = tuple(_parsers(kind))  # type: ignore[arg-type]  # mypy: a class is not hashable
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*names, "schema"))
    writer.writerows([*(getattr(row, name) for name in names), SCHEMA] for row in rows)
    return text.getvalue()


def from_csv(kind: type[Row], text: str, name: str) -> list[Row]:
    """Read the rows that `to_csv` wrote.

    Args:
        kind: the dataclass of the rows.
        text: content of the file.
        name: name of the file, for error messages.

    Raises:
        ValueError: if a column is missing, a cell has the wrong type, or the schema differs.
    """
    _, rows = _read(text, name, column_names(kind))
    return [from_cells(kind, row) for row in rows]


def from_cells(kind: type[Row], cells: Mapping[str, Any]) -> Row:
    """Build one row from cells by name: text (from CSV) or values (from JSON).

    Raises:
        ValueError: if a cell does not have the type of its field.
    """
    parsers = _parsers(kind)  # type: ignore[arg-type]  # mypy: a class is not hashable
    return kind(**{name: parse(cells[name]) for name, parse in parsers.items()})


def columns_from_csv(text: str, name: str) -> dict[str, list[Cell]]:
    r"""Read a table whose row class is not known, column by column.

    A column holds bool, int, float or str: the first of these types that every cell allows.

    Args:
        text: content of the file, as `to_csv` wrote it.
        name: name of the file, for error messages.

    Raises:
        ValueError: if there is no ``schema`` column, or the schema differs.

    Example:
        >>> columns_from_csv("step,largest,part,schema\n3,0.25,net,1\n4,,head,1\n", "sharpness.csv")
        {'step': [3, 4], 'largest': [0.25, None], 'part': ['net', 'head']}
    """
    names, rows = _read(text, name)
    return {column: _guessed([row[column] for row in rows]) for column in names}


def column_names(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass."""
    return tuple(field.name for field in fields(kind))


def check_schema(found: Any, what: str) -> None:
    """Raise ``ValueError`` if another version of the format wrote a file."""
    if str(found) != str(SCHEMA):
        raise ValueError(
            f"found schema {found} in {what}; supported is schema {SCHEMA}, "
            "read it with the version that wrote it"
        )


def _read(
    text: str, name: str, columns: Sequence[str] = ()
) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of the columns but ``schema``, and the rows, after a check of both."""
    reader = csv.DictReader(io.StringIO(text))
    names = list(reader.fieldnames or ())
    missing = [column for column in (*columns, "schema") if column not in names]
    if missing:
        raise ValueError(
            f"found no column {missing} in {name}; required are the columns {[*columns, 'schema']}"
        )
    rows = list(reader)
    for row in rows:
        check_schema(row["schema"], name)
    return [column for column in names if column != "schema"], rows


@cache
def _parsers(kind: type[Any]) -> dict[str, Callable[[Any], Any]]:
    hints = get_type_hints(kind)
    return {name: _parser(name, hints[name]) for name in column_names(kind)}


def _parser(name: str, hint: Any) -> Callable[[Any], Any]:
    if hint is str:
        return str  # an empty cell is an empty string
    parse = next((p for kind, p in _PARSERS.items() if hint in (kind, kind | None)), None)
    if parse is None:
        raise TypeError(
            f"found a field {name} of type {hint}; supported are bool, int, float and str, "
            "each also with None"
        )
    return lambda cell: None if cell in ("", None) else parse(cell)


def _guessed(cells: Sequence[str]) -> list[Cell]:
    """Return the cells of a column in the first type that all of them allow."""
    is_text = any("_" in cell for cell in cells)  # Python would read 1_0 as 10
    for parse in () if is_text else (_truth, int, float):
        with suppress(ValueError):
            return [parse(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _truth(cell: Any) -> bool:
    if str(cell) not in ("True", "False"):
        raise ValueError(f"found {cell!r}; supported are True and False")
    return str(cell) == "True"


_PARSERS: dict[Any, Callable[[Any], Cell]] = {bool: _truth, int: int, float: float, str: str}
