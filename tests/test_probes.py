"""The table of probes: in and out of its files, and cut into windows."""

import itertools
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape import load
from lightning_landscape.csv_tables import to_csv
from lightning_landscape.extras.layers import LayerRow
from lightning_landscape.probes import (
    COLUMNS,
    Probe,
    ProbeTable,
    from_json_lines,
    from_scalars,
    to_json_line,
    to_scalars,
    write_atomically,
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
unknown = st.none() | numbers
probes = st.builds(
    Probe,
    step=st.integers(0, 10**9),
    epoch=st.integers(0, 10**6),
    loss=numbers,
    reference_loss=unknown,
    loss_infimum=numbers,
    inner_product=unknown,
    grad_sq_norm=numbers,
    sq_distance=unknown,
    step_size=numbers,
    step_residual=numbers,
    initial_loss=unknown,
    logged_step=st.integers(0, 10**9),
)
tables = st.lists(probes, max_size=6, unique_by=lambda probe: probe.step).map(ProbeTable)


def row(step, **values):
    return Probe(
        **{
            "step": step,
            "epoch": 0,
            "loss": 2.0,
            "reference_loss": 1.0,
            "loss_infimum": 0.0,
            "inner_product": 0.5,
            "grad_sq_norm": 4.0,
            "sq_distance": 1.0,
            "step_size": 0.1,
            "step_residual": 0.0,
            "initial_loss": None,
            "logged_step": step,
            **values,
        }
    )


def test_columns_are_those_of_the_contract_in_order():
    contract = "step epoch loss reference_loss loss_infimum inner_product grad_sq_norm sq_distance"
    rest = ["step_size", "step_residual", "initial_loss", "logged_step"]
    assert list(COLUMNS) == [*contract.split(), *rest]
    assert ProbeTable([row(0)]).to_csv().splitlines()[0] == ",".join([*COLUMNS, "schema"])


@given(tables)
def test_csv_holds_every_digit(table):
    assert ProbeTable.from_csv(table.to_csv()) == table


@given(tables)
def test_lines_and_scalars_hold_every_digit(table):
    assert from_json_lines("".join(map(to_json_line, table))) == table
    assert (
        ProbeTable(from_scalars(json.loads(json.dumps(to_scalars(probe)))) for probe in table)
        == table
    )


@given(tables.filter(len), st.data())
def test_a_line_cut_off_by_a_kill_costs_that_line_only(table, data):
    text = "".join(map(to_json_line, table))
    last = to_json_line(table[-1])
    cut = data.draw(st.integers(1, len(last) - 2))
    assert list(from_json_lines(text[: len(text) - len(last) + cut])) == list(table)[:-1]


def test_a_damaged_line_in_the_middle_is_no_kill():
    with pytest.raises(json.JSONDecodeError):
        from_json_lines("{\n" + to_json_line(row(0)))


def test_unknown_values_are_nan_in_a_column_and_empty_in_the_file():
    table = ProbeTable([row(0, reference_loss=None)])
    assert math.isnan(table.column("reference_loss")[0])
    assert table.to_csv().splitlines()[1].split(",")[3] == ""
    assert len(table.evaluated) == 0


@given(tables, st.integers(1, 5), st.integers(1, 10**9))
def test_windows_are_disjoint_equal_slices(table, count, steps):
    windows = table.windows(count, steps)
    assert windows[0][0] == 0
    assert windows[-1][1] == steps
    assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
    assert (
        max(end - start for start, end, _ in windows)
        - min(end - start for start, end, _ in windows)
        <= 1
    )
    inside = [probe.step for _, _, rows in windows for probe in rows]
    assert inside == [probe.step for probe in table if probe.step < steps]


def test_merged_takes_the_newer_row():
    merged = ProbeTable([row(0), row(2)]).merged([row(2, loss=9.0), row(1)])
    assert [(probe.step, probe.loss) for probe in merged] == [(0, 2.0), (1, 2.0), (2, 9.0)]


def test_two_rows_of_a_step_are_refused():
    with pytest.raises(ValueError, match="one row a step"):
        ProbeTable([row(1), row(1)])


@pytest.mark.parametrize("text", ["step,loss\n1,2\n", ""])
def test_a_table_without_its_columns_is_refused(text):
    with pytest.raises(ValueError, match="found no column"):
        ProbeTable.from_csv(text)


def test_another_schema_is_refused():
    text = ProbeTable([row(0)]).to_csv().replace(",1\n", ",7\n")
    with pytest.raises(ValueError, match="found schema 7"):
        ProbeTable.from_csv(text)


def test_load_joins_the_table_with_newer_lines(tmp_path):
    folder = tmp_path / "landscape"
    folder.mkdir()
    write_atomically(folder / "probes.csv", ProbeTable([row(0), row(1)]).to_csv())
    (folder / "probes.jsonl").write_text(
        "".join(to_json_line(row(step)) for step in (0, 1, 2)) + '{"schema": 1, "st'
    )
    for path in (tmp_path, folder, folder / "probes.csv"):
        run = load(path)
        assert run.path == folder
        assert [probe.step for probe in run.table] == [0, 1, 2]
        assert run.summary is None


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no run .* supported is a log directory"):
        load(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_atomically(tmp_path / name / "probes.csv", ProbeTable([row(0)]).to_csv())
    with pytest.raises(FileNotFoundError, match=r"several runs, \['a', 'b'\]"):
        load(tmp_path)


def test_a_table_as_a_data_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = ProbeTable([row(0), row(2, reference_loss=None)])
    frame = table.to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert {str(frame[name].dtype) for name in ("step", "epoch", "logged_step")} == {"int64"}
    assert {
        str(frame[name].dtype) for name in COLUMNS if name not in ("step", "epoch", "logged_step")
    } == {"float64"}
    assert frame["step"].tolist() == [0, 2]
    assert pandas.isna(frame["reference_loss"]).tolist() == [False, True]
    assert ProbeTable().to_pandas().shape == (0, len(COLUMNS))
    assert str(ProbeTable().to_pandas()["step"].dtype) == "int64"


def test_the_tables_beside_it_as_data_frames(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "probes.csv").write_text(ProbeTable([row(0)]).to_csv())
    (tmp_path / "layers.csv").write_text(to_csv(LayerRow, [LayerRow(0, 0, "net.0", 0.5, 4.0, 1.0)]))
    run = load(tmp_path)
    assert run.to_pandas().shape == (1, len(COLUMNS))
    assert run.to_pandas("layers").to_dict("records") == [
        {
            "step": 0,
            "logged_step": 0,
            "layer": "net.0",
            "inner_product": 0.5,
            "grad_sq_norm": 4.0,
            "sq_distance": 1.0,
        }
    ]
    with pytest.raises(ValueError, match=r"found no segments\.csv .* measured: probes, layers"):
        run.to_pandas("segments")


def test_a_table_of_a_class_that_only_its_user_knows(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "probes.csv").write_text(ProbeTable([row(0)]).to_csv())
    (tmp_path / "sharpness.csv").write_text("step,largest,part,schema\n0,0.25,net,1\n4,,head,1\n")
    run = load(tmp_path)
    assert [(point.step, point.largest) for point in run.tables["sharpness"]] == [
        (0, 0.25),
        (4, None),
    ]
    assert list(run.to_pandas("sharpness").columns) == ["step", "largest", "part"]


def test_a_file_of_the_users_own_is_no_table(tmp_path):
    (tmp_path / "probes.csv").write_text(ProbeTable([row(0)]).to_csv())
    (tmp_path / "notes.csv").write_text("when,what\n1,2\n")
    (tmp_path / "latin.csv").write_bytes("Größe;Maß\n".encode("latin-1"))
    (tmp_path / "empty.csv").write_text("")
    assert load(tmp_path).tables == {}


def test_without_pandas_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        ProbeTable().to_pandas()
