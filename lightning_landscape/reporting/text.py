"""Sentences and tables as the text of a format: a terminal's (needs tabulate), Markdown, or LaTeX."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_landscape.reporting.latex import as_latex, escaped
from lightning_landscape.reporting.tables import TextTable, as_markdown, of_summary

TextFormat = Literal["terminal", "markdown", "latex"]

_UNKNOWN_WIDTH = 120
"""Where the output is no terminal"""
_NARROWEST = 24


def report(summary: Mapping[str, Any]) -> str:
    """Return the verdict and the tables of a run in Markdown, for loggers that show text."""
    return render("markdown", [str(summary["verdict"])], of_summary(summary))


def render(form: TextFormat, sentences: Sequence[str], tables: Sequence[TextTable]) -> str:
    """Return sentences, each a paragraph, and tables below them.

    Args:
        form: "terminal", "markdown" or "latex".
        sentences: what is said first: what is missing, the verdict.
        tables: what is shown.
    """
    if form == "markdown":
        return "\n\n".join([*sentences, as_markdown(tables)])
    if form == "latex":
        return "\n\n".join([*map(escaped, sentences), as_latex(tables)])
    width = shutil.get_terminal_size((_UNKNOWN_WIDTH, 24)).columns
    paragraphs = [textwrap.fill(sentence, width) for sentence in sentences]
    return "\n\n".join([*paragraphs, *(_terminal(table, width) for table in tables)]) + "\n"


def _terminal(table: TextTable, width: int) -> str:
    from tabulate import tabulate

    numeric = table.numeric or (False,) * len(table.headers)
    lines = tabulate(
        table.rows,
        table.headers,
        disable_numparse=True,
        colalign=["right" if number else "left" for number in numeric] if table.rows else None,
        maxcolwidths=_widths(table, width) if table.rows else None,
    )
    notes = [textwrap.fill(note, width, subsequent_indent="    ") for note in table.notes]
    return "\n".join([table.title, "", lines, *([""] if notes else []), *notes, ""])


def _widths(table: TextTable, width: int) -> list[int | None]:
    """Give the widest column what the others leave, if all do not fit."""
    widths = [max(map(len, cells)) for cells in zip(table.headers, *table.rows, strict=True)]
    widest = max(range(len(widths)), key=widths.__getitem__)
    left = width - (sum(widths) + 2 * (len(widths) - 1) - widths[widest])
    return [
        max(left, _NARROWEST) if column == widest and widths[column] > left else None
        for column in range(len(widths))
    ]
