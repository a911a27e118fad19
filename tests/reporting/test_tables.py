"""Tables of a summary: their content, gaps in it, and the tables as Markdown and LaTeX."""

import html
import re

import pytest

from lightning_landscape import load
from lightning_landscape.reading.load import find_runs
from lightning_landscape.reporting import tables
from lightning_landscape.reporting.tables import TextTable
from lightning_landscape.reporting.text import as_markdown, render
from tests.reporting.test_summary import informative, summary_of, vacuous
from tests.test_probes import row

pytest.importorskip("pylatexenc")
from pylatexenc.latex2text import LatexNodes2Text

from lightning_landscape.reporting.latex import as_latex, escaped


def cells(table):
    """Return rows by their first cell."""
    return {first: rest for first, *rest in table.rows}


def test_findings():
    found = cells(tables.findings(summary_of(*informative(), stride=2)))
    assert found["probes"] == ["", "4 over 8 steps, every 2"]
    assert found["alpha"] == ["α", "0.5"]
    assert found["beta"] == ["β", "0"]
    assert found["rate"] == ["δ = α − β", "0.5"]
    assert found["interpolation error"] == ["σ²", "1 ± 0"]
    assert found["drop achieved by training"] == ["f(x_0) − f(x_p)", "2 ± 0"]
    assert found["informativeness"] == ["neighbourhood / drop", "0, informative"]
    assert found["probes that violate the pair"] == ["", "0 of 4"]
    assert found["best pair at 99 % of the probes"][1] == "α = 0.5, β = 0, neighbourhood 0"


def test_what_is_vacuous_or_only_approached_is_said():
    table = tables.findings(summary_of(*vacuous()))
    found = cells(table)
    assert found["neighbourhood"][1] == "1, approached as δ → ∞"
    assert found["informativeness"][1] == "1, vacuous"
    assert "no finite pair attains it" in table.notes[0]
    lost = cells(tables.findings(summary_of(row(0, initial_loss=0.5))))
    assert lost["informativeness"][1] == "vacuous, no drop"
    off = cells(
        tables.findings(
            summary_of(row(0), fidelity={"exact": False, "max_abs": 0.25, "steps": [0]})
        )
    )
    assert off["replays of recorded losses"][1] == "off by 0.25"


def test_conditions():
    rows = [row(k, inner_product=-1.0 if k in (2, 4) else 1.0) for k in range(8)]
    found = cells(tables.conditions(summary_of(*rows)))
    assert found["restricted_secant"] == ["μ", "-1", "step 2", "2, in steps 2 to 4"]
    assert found["error_bound"] == ["μ", "2", "step 0", "0"]
    assert "alpha_beta" not in found
    alone = cells(tables.conditions(summary_of(row(0, loss=0.5, inner_product=-1.0))))
    assert alone["restricted_secant"][-1] == "1, at step 0"
    below = cells(tables.conditions(summary_of(row(0, loss=0.5, inner_product=1.0))))
    above = "no probe has a loss above its loss at the reference: every θ holds"
    assert below["quasar_convexity"][2] == above


@pytest.fixture(scope="module")
def summary(grid):
    return load(find_runs(grid)[0]).summary


def test_theorems_are_the_sum_of_their_terms(summary):
    table = tables.theorems(summary)
    applying = [key for key, bound in summary["bounds"].items() if bound["applies"]]
    assert [
        cells[0] for cells in table.rows[: len(applying)]
    ] == applying  # those with a value come first
    assert len(table.rows) == len(summary["bounds"])
    for name, value, *terms, _, status, why in table.rows:
        bound = summary["bounds"][name]
        assert why in [note.split()[0] for note in table.notes]
        assert status == bound["status"].replace("_", " ")
        reason = next(note for note in table.notes if note.startswith(f"{why} "))
        assert bound["reason"].removeprefix("estimate: ") in reason
        if bound["applies"]:
            assert float(value) == pytest.approx(sum(map(float, terms)), rel=2e-3)
        else:
            assert (value, terms) == ("none", ["", "", ""])
    assert summary["bound_in_force"] in table.notes[0]


def summaries():
    return [
        summary_of(*informative()),
        summary_of(*vacuous()),
        summary_of(),
        summary_of(row(0)),
        summary_of(row(0, reference_loss=-1.0), row(2, sq_distance=0.0)),
        summary_of(row(0, reference_loss=None)),
        {"run": {}, "conditions": {}, "bounds": {}},
        {},
    ]


@pytest.mark.parametrize("summary", summaries())
def test_every_summary_has_tables_that_are_whole(summary):
    for table in tables.of_summary(summary):
        assert all(len(cells) == len(table.headers) for cells in table.rows)
        assert all(isinstance(cell, str) for cells in table.rows for cell in cells)
        assert "None" not in str(table)
    check_markdown(as_markdown(tables.of_summary(summary)))
    check_latex(as_latex(tables.of_summary(summary)))


def test_real_tables(summary):
    check_markdown(as_markdown(tables.of_summary(summary)))
    check_latex(as_latex(tables.of_summary(summary)))


def check_markdown(text):
    """Every row of a table has as many cells as its head."""
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1


def check_latex(text):
    """Check that environments, groups and formulas are closed, and that no cell is missing.

    LaTeX also knows every character.
    """
    stack = []
    for kind, name in re.findall(r"\\(begin|end){(\w+)}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    bare = re.sub(r"\\[\\{}$%&#_]", "", text)
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    for line in bare.splitlines():
        prose = re.sub(r"\\ensuremath{(?:[^{}]|{[^{}]*})*}", "", line)
        assert not set(prose) & set("_^#%~<>|$")
    assert text.isascii()
    for layout, body in re.findall(
        r"\\begin{tabular}{([^\n]*)}\n(.*?)\\end{tabular}", text, flags=re.DOTALL
    ):
        columns = len(re.sub(r"p{[^}]*}", "p", layout))
        lines = [
            line for line in re.sub(r"\\[&_#%$]", "", body).splitlines() if line.endswith("\\\\")
        ]
        assert {line.count("&") + 1 for line in lines} == {columns}
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [
            1,
            1,
            1,
        ]


NASTY = r"50% of a_b & c#1 {x} ^2 ~ \dots $5 <tag> | `code` *bold* [link](x) α²"


def test_what_users_write_is_no_markup():
    table = TextTable(
        "A *title* | here", ("a|b", "c"), ((NASTY, "1"), ("line\nbreak", "2")), (NASTY,)
    )
    check_markdown(as_markdown([table]))
    check_latex(as_latex([table]))
    assert r"\|" in as_markdown([table])
    assert r"line break" in as_markdown([table])
    assert r"50\% of a\_b \& c\#1 \{x\} {\textasciicircum}2" in as_latex([table])


def test_markdown_prints_the_text():
    markdown = pytest.importorskip("markdown").markdown  # as TensorBoard's text tab does
    table = TextTable("t", ("name", "value"), ((NASTY, "1"),), (NASTY,))
    page = markdown(render("markdown", [NASTY], [table]), extensions=["tables"])
    assert html.unescape(page).count(NASTY) == 3
    assert not re.search("<(tag|code|strong|em|a)>", page)


def test_no_first_cell_is_an_argument_of_the_line_break_before_it():
    table = TextTable("t", ("name", "value"), (("*a*", "1"), ("[2em]", "2"), ("*", "3")))
    assert not re.search(r"\\\\\s*[*\[]", as_latex([table]))


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("α − β", "α - β"),
        ("σ²", "σ²"),
        ("β_min(0.1)", "β_min(0.1)"),
        ("f(x_0) − f(x_p)", "f(x_0) - f(x_p)"),
        ("weight_decay", "weight_decay"),
        ("10⁻³ ± 1", "10^-³ ± 1"),
        (
            "∇ ‖g‖ ⟨a,b⟩ ∞ ∈ ∓ → × ≤ ≥ ≠ ≈ Δ Σ λ γ η ε θ μ …",
            "∇ ‖g‖ ⟨a,b⟩ ∞ ∈ ∓ → × ≤ ≥ ≠ ≈ Δ Σ λ γ η ε θ μ …",
        ),
        ("$ α", "$ α"),
        ("\\", "\\"),
        ("[1, 2]*", "[1, 2]*"),
        (r"50% of a_b & c#1 {x} ~ \dots $5 <tag>", r"50% of a_b & c#1 {x} ~ \dots $5 <tag>"),
    ],
)
def test_latex_prints_the_text(text, printed):
    found = escaped(text)
    assert found.isascii()
    assert LatexNodes2Text().latex_to_text(found) == printed


def test_formulas_are_set_as_formulas():
    assert escaped("x_p") == r"\ensuremath{x_p}"
    assert escaped("max_p") == r"max\_p"
    assert escaped("β_min") == r"\ensuremath{\beta_{\min}}"


def test_numbers_are_aligned_at_their_right():
    table = TextTable(
        "t", ("name", "value", "what"), (("a", "1", "x"), ("b", "none", "2"), ("c", "-2e-05", ""))
    )
    assert table.sides == ["left", "right", "left"]
    assert re.search(r"\|:-+\|-+:\|:-+\|", as_markdown([table]))
    assert r"\begin{tabular}{lrl}" in as_latex([table])
    assert TextTable("t", ("a",), ()).sides == ["left"]


def test_long_text_is_a_paragraph():
    table = TextTable("t", ("name", "why"), (("a", "word " * 20),))
    assert r"\begin{tabular}{lp{0.60\linewidth}}" in as_latex([table])
