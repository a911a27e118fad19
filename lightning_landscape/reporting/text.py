"""Sentences and tables as text: for a terminal, as Markdown, or as LaTeX."""

from __future__ import annotations

import html
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from lightning_landscape.reporting.tables import TextTable, of_summary

TextFormat = Literal["terminal", "markdown", "latex"]

_UNKNOWN_WIDTH = 120
"""Characters in a line if the output is no terminal."""
_NARROWEST = 24


def report(summary: Mapping[str, Any]) -> str:
    """Return the verdict and the tables of a run as Markdown, for loggers that show text."""
    return render("markdown", [str(summary["verdict"])], of_summary(summary))


def render(form: TextFormat, sentences: Sequence[str], tables: Sequence[TextTable]) -> str:
    """Return sentences, each a paragraph, and tables below them.

    Args:
        form: "terminal", "markdown" or "latex". LaTeX needs pylatexenc.
        sentences: paragraphs above the tables, such as the verdict.
        tables: the tables.
    """
    if form == "markdown":
        return "\n\n".join([*map(_escaped, sentences), as_markdown(tables)])
    if form == "latex":
        from lightning_landscape.reporting.latex import as_latex, escaped

        return "\n\n".join([*map(escaped, sentences), as_latex(tables)])
    width = shutil.get_terminal_size((_UNKNOWN_WIDTH, 24)).columns
    paragraphs = [textwrap.fill(sentence, width) for sentence in sentences]
    return "\n\n".join([*paragraphs, *(_terminal(table, width) for table in tables)]) + "\n"


def as_markdown(tables: Iterable[TextTable]) -> str:
    r"""Return a heading, a pipe table and its notes for each table.

    Example:
        >>> print(as_markdown([TextTable("Norms", ("name", "value"), (("|g|", "2"),))]))
        ### Norms
        <BLANKLINE>
        | name   |   value |
        |:-------|--------:|
        | \|g\|  |       2 |
        <BLANKLINE>
    """
    parts = (
        [f"### {_escaped(table.title)}", table.grid("pipe", _escaped), *map(_escaped, table.notes)]
        for table in tables
    )
    return "\n".join("\n\n".join(part) + "\n" for part in parts)


def _escaped(text: str) -> str:
    """Return text on one line in which nothing is Markdown or HTML."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*_\[|]", r"\\\g<0>", plain)


def _terminal(table: TextTable, width: int) -> str:
    notes = [textwrap.fill(note, width, subsequent_indent="    ") for note in table.notes]
    lines = table.grid("simple", widths=_widths(table, width))
    return "\n".join([table.title, "", lines, *([""] if notes else []), *notes, ""])


def _widths(table: TextTable, width: int) -> list[int | None]:
    """Return the largest width of each column: the widest one gets the rest of the line."""
    widths = [max(map(len, column)) for column in table.columns]
    widest = max(range(len(widths)), key=widths.__getitem__)
    left = width - (sum(widths) + 2 * (len(widths) - 1) - widths[widest])
    wraps = widths[widest] > left
    return [
        max(left, _NARROWEST) if wraps and column == widest else None
        for column in range(len(widths))
    ]
