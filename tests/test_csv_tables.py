"""Rows as CSV text and back, also rows of a class that a user wrote."""

from dataclasses import dataclass, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.csv_tables import columns_from_csv, from_cells, from_csv, to_csv


@dataclass(frozen=True)
class Everything:
    step: int
    largest: float
    sign: int | None
    smallest: float | None
    part: str
    stable: bool
    certain: bool | None
    note: str | None


integers = st.integers(-(10**30), 10**30)
floats = st.floats(allow_nan=False)
# text as a file holds it: reading a file turns each end of a line into \n
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))
everything = st.builds(
    Everything,
    *(integers, floats, st.none() | integers, st.none() | floats, texts, st.booleans()),
    *(st.none() | st.booleans(), st.none() | texts.filter(len)),
)


@given(st.lists(everything, max_size=5))
def test_every_type_holds_every_digit(rows):
    text = to_csv(Everything, rows)
    assert from_csv(Everything, text, "everything.csv") == rows
    assert text.splitlines()[0].split(",") == [*(f.name for f in fields(Everything)), "schema"]


def test_rows_of_a_class_within_a_function():
    @dataclass(frozen=True, slots=True)
    class Local:
        step: "int"
        value: "float | None"

    rows = [Local(0, 0.1), Local(1, None)]
    assert from_csv(Local, to_csv(Local, rows), "local.csv") == rows


def test_cells_that_are_values():
    cells = {"step": 1, "largest": 2, "sign": None, "smallest": 1e-3, "part": "net"}
    row = from_cells(Everything, {**cells, "stable": True, "certain": None, "note": "x"})
    assert row == Everything(1, 2.0, None, 1e-3, "net", True, None, "x")
    assert type(row.largest) is float


def test_a_type_that_no_cell_holds_is_refused():
    @dataclass(frozen=True)
    class Wrong:
        values: list[float]

    with pytest.raises(TypeError, match=r"a field values of type list\[float\]; supported are"):
        to_csv(Wrong, [Wrong([1.0])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"found no column \['step', 'stable', 'schema'\] in small.csv"),
        ("step,schema\n1,1\n", r"found no column \['stable'\] in small.csv"),
        ("step,stable,schema\n1,True,2\n", "found schema 2 in small.csv; supported is schema 1"),
        ("step,stable,schema\n1,True\n", "found schema None in small.csv"),
        ("step,stable,schema\n1.5,True,1\n", "1.5"),
        ("step,stable,schema\n1,yes,1\n", "found 'yes'; supported are True and False"),
    ],
)
def test_text_that_is_no_table_is_refused(text, message):
    @dataclass(frozen=True)
    class Small:
        step: int
        stable: bool

    with pytest.raises(ValueError, match=message):
        from_csv(Small, text, "small.csv")


@given(st.lists(everything, min_size=1, max_size=5))
def test_columns_of_an_unknown_class(rows):
    columns = columns_from_csv(to_csv(Everything, rows), "everything.csv")
    assert list(columns) == [field.name for field in fields(Everything)]
    for name in ("step", "largest", "sign", "smallest", "stable", "certain"):
        assert columns[name] == [getattr(row, name) for row in rows]


def test_the_type_of_a_column_is_the_first_that_every_cell_allows():
    def column(*cells):
        lines = "".join(f"0,{cell},1\n" for cell in cells)
        return columns_from_csv(f"step,value,schema\n{lines}", "t.csv")["value"]

    assert column("1", "", "-3") == [1, None, -3]
    assert column("1", "2.5", "nan")[:2] == [1.0, 2.5]
    assert column("1", "conv") == ["1", "conv"]
    assert column("1_0", "2_0") == ["1_0", "2_0"]
    assert column("True", "False") == [True, False]
    assert column("", "") == [None, None]
    assert column() == []
    with pytest.raises(ValueError, match=r"found no column \['schema'\] in t.csv"):
        columns_from_csv("step\n1\n", "t.csv")
