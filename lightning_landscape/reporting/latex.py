"""Tables as LaTeX: booktabs, text escaped, the letters of the theory in math mode."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lightning_landscape.reporting.tables import TextTable

LONGEST_CELL = 36
"""A column with a longer cell is set as a paragraph, so that the table fits a page"""

_MARKUP = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "…": r"\dots{}",
    "Ł": r"\L{}",
    "ł": r"\l{}",
    "[": "{[}",  # at the start of a row it would be an argument of the line break before, as a star
    "*": "{*}",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}
_MATH = {
    "−": "-",
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "δ": r"\delta",
    "ε": r"\varepsilon",
    "η": r"\eta",
    "θ": r"\theta",
    "λ": r"\lambda",
    "μ": r"\mu",
    "σ": r"\sigma",
    "Δ": r"\Delta",
    "Σ": r"\Sigma",
    "≤": r"\le",
    "≥": r"\ge",
    "≠": r"\ne",
    "≈": r"\approx",
    "→": r"\to",
    "×": r"\times",
    "·": r"\cdot",
    "±": r"\pm",
    "∓": r"\mp",
    "‖": r"\|",
    "⟨": r"\langle",
    "⟩": r"\rangle",
    "∇": r"\nabla",
    "∞": r"\infty",
    "√": r"\surd",
    "∈": r"\in",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def as_latex(tables: Iterable[TextTable]) -> str:
    r"""Return tables as floats; a document needs ``\usepackage{booktabs}`` and ``\usepackage[T1]{fontenc}``."""
    return "\n".join(_float(table) for table in tables)


def escaped(text: str) -> str:
    r"""Return text that LaTeX sets as it is written.

    Example:
        >>> print(escaped("δ ≤ 50% of f(x_p), σ² ~ 10⁻³, weight_decay"))
        $\delta \le$ 50\% of f($x_{p}$), $\sigma^{2}$ \textasciitilde{} 10$^{-3}$, weight\_decay
    """
    text = "".join(_MARKUP.get(letter, letter) for letter in " ".join(text.split()))
    text = text.replace(r"β\_min", r"$\beta_{\min}$")
    text = re.sub(r"(?<![\w\\])([xf])\\_([A-Za-z0-9])(?!\w)", r"$\1_{\2}$", text)
    text = re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: f"$^{{{found.group().translate(_SUPERSCRIPTS)}}}$", text
    )
    text = "".join(f"${_MATH[letter]}$" if letter in _MATH else letter for letter in text)
    return re.sub(r"(?<!\\)\$( ?)\$", r"\1", text)  # formulas side by side are one


def _float(table: TextTable) -> str:
    layout = "".join(_layout(table))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            f"\\caption{{{escaped(table.title)}}}",
            f"\\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            _line(table.headers),
            r"\midrule",
            *map(_line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(f"\n\\footnotesize {escaped(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def _layout(table: TextTable) -> list[str]:
    """Return how each column is set: numbers at the right, text at the left, long text as a paragraph."""
    columns = list(zip(table.headers, *table.rows, strict=True))
    long = [max(map(len, cells)) > LONGEST_CELL for cells in columns]
    paragraph = f"p{{{0.6 / max(sum(long), 1):.2f}\\linewidth}}"
    numeric = table.numeric or (False,) * len(columns)
    return [
        paragraph if wraps else "r" if number else "l"
        for wraps, number in zip(long, numeric, strict=True)
    ]


def _line(cells: Iterable[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"
