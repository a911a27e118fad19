r"""Tables as LaTeX. A document needs ``\usepackage{booktabs}`` and ``\usepackage[T1]{fontenc}``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pylatexenc.latexencode import (
    RULE_REGEX,
    UnicodeToLatexConversionRule,
    UnicodeToLatexEncoder,
)

from lightning_landscape.reporting.tables import TextTable

LONGEST_CELL = 36
"""Characters. A column with a longer cell is set as a paragraph, so that the table fits a page."""

_OURS = UnicodeToLatexConversionRule(
    RULE_REGEX,
    [
        (re.compile(r"\b([xf])_(\w)\b"), r"\\ensuremath{\1_\2}"),
        (re.compile("β_min"), r"\\ensuremath{\\beta_{\\min}}"),
        (re.compile(r"\|"), r"\\textbar{}"),
        (re.compile(r"[*\[]"), r"{\g<0>}"),  # else a part of the line break before them
    ],
)
_ENCODER = UnicodeToLatexEncoder(conversion_rules=[_OURS, "defaults"], unknown_char_warning=False)


def as_latex(tables: Iterable[TextTable]) -> str:
    """Return each table as a float."""
    return "\n".join(map(_float, tables))


def escaped(text: str) -> str:
    r"""Return text that LaTeX prints as it is written.

    Example:
        >>> print(escaped("δ ≤ 50% of f(x_p), weight_decay"))
        \ensuremath{\delta} \ensuremath{\leq} 50\% of f(\ensuremath{x_p}), weight\_decay
    """
    return str(_ENCODER.unicode_to_latex(" ".join(text.split())))


def _float(table: TextTable) -> str:
    _, _, rows = table.grid("latex_raw", escaped).partition("\n")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        rows = rows.replace(r"\hline", rule, 1)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            f"\\caption{{{escaped(table.title)}}}",
            f"\\begin{{tabular}}{{{_layout(table)}}}",
            rows,
            *(f"\n\\footnotesize {escaped(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def _layout(table: TextTable) -> str:
    """Return a letter a column: numbers on the right, text on the left, long text a paragraph."""
    long = [max(map(len, column)) > LONGEST_CELL for column in table.columns]
    paragraph = f"p{{{0.6 / max(sum(long), 1):.2f}\\linewidth}}"
    return "".join(
        paragraph if wraps else side[0] for wraps, side in zip(long, table.sides, strict=True)
    )
