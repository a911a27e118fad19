"""What every extra has by itself: rows, checkpoints, files; and one that a user writes."""

from dataclasses import dataclass

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_landscape import Extra, LandscapeMonitor, Layers, Secant, Segments, load
from lightning_landscape.extras import KNOWN, measured
from lightning_landscape.training.failures import NotMeasurable
from tests.helpers.grid import train


@dataclass(frozen=True)
class Entry:
    step: int
    largest: float
    note: str | None


@dataclass(frozen=True)
class Beside:
    step: int
    count: int


class LargestEntry(Extra):
    """The largest entry of a gradient at the reference, as the docstring of `Extra` shows it."""

    tables = {"largest_entry": Entry, "beside": Beside}

    def at(self, step):
        if step.number == 3:
            raise NotMeasurable("not this one")
        _, gradient = step.gradient(step.reference)
        entries = [float(part.abs().max()) for part in gradient.raw.values()]
        yield Entry(step.number, gradient.factor * max(entries), None)
        yield Beside(step.probe.step, len(entries))

    def summary(self, findings):
        largest = max(row.largest for row in self.rows("largest_entry"))
        return {"largest_entry": {"value": largest, "of": len(findings.table)}}

    def sentence(self, summary):
        return f" The largest entry is {summary['largest_entry']['value']:.3g}."

    def curves(self, rows):
        sizes = [row.largest for row in rows if isinstance(row, Entry)]
        return {"largest_entry/value": sizes[0]} if sizes else {}


def filled():
    extra = LargestEntry().start()
    for step in (4, 0, 2):
        extra.add(step, [Entry(step, 0.5 * step, None), Beside(step, step + 1)])
    return extra


def test_rows_are_in_the_order_of_their_steps():
    extra = filled()
    assert extra.rows("largest_entry") == [Entry(step, 0.5 * step, None) for step in (0, 2, 4)]
    assert extra.rows("beside") == [Beside(0, 1), Beside(2, 3), Beside(4, 5)]
    assert extra.at_step(2) == [Entry(2, 1.0, None), Beside(2, 3)]
    assert extra.at_step(7) == []
    assert extra.measured(4)
    assert not extra.measured(7)


def test_rows_of_dropped_probes_go():
    extra = filled()
    extra.forget(0)
    extra.forget(99)
    extra.leave_only([2, 99])
    assert extra.rows("largest_entry") == [Entry(2, 1.0, None)]
    assert extra.rows("beside") == [Beside(2, 3)]


def test_each_fit_has_a_copy():
    extra = filled()
    again = extra.start()
    assert again.rows("largest_entry") == again.rows("beside") == []
    assert len(extra.rows("beside")) == 3


def test_a_checkpoint_holds_the_rows_and_where_there_were_none():
    extra = filled()
    extra.add(6, [])
    other = LargestEntry().start()
    other.adopt(extra.state())
    for table in extra.tables:
        assert other.rows(table) == extra.rows(table)
    assert other.measured(6)


def test_a_row_of_another_class_is_refused_by_name():
    extra = LargestEntry().start()
    with pytest.raises(TypeError, match=r"row of tuple from LargestEntry.*largest_entry: Entry"):
        extra.add(0, [(0, 1.0)])


def test_those_of_this_package_are_found_by_their_tables():
    tables = [table for extra in KNOWN for table in extra.tables]
    assert len(tables) == len(set(tables))
    assert measured(["segments", "secant", "of a user"]) == [Segments, Secant]


def test_two_extras_with_one_table_are_refused():
    class Lines(Layers):
        pass

    with pytest.raises(MisconfigurationException, match="the table 'layers' more than once"):
        LandscapeMonitor(extras=[Layers(), Lines()])


def test_one_that_a_user_wrote(tmp_path):
    folder = train(tmp_path, 3, 0, epochs=1, extras=[LargestEntry()])
    run = load(folder)
    rows = run.tables["largest_entry"]
    assert [row.step for row in rows] == [0, 1, 2, 4, 5]
    assert len(run.table) == 6  # a record that cannot be measured costs its rows alone
    largest = max(row.largest for row in rows)
    assert run.summary["largest_entry"] == {"value": largest, "of": 6}
    assert f"The largest entry is {largest:.3g}." in run.summary["verdict"]
    assert [row.count for row in run.tables["beside"]] == [4] * 5
    curves = (folder.parent / "metrics.csv").read_text().splitlines()
    assert "landscape/largest_entry/value" in curves[0]


def test_one_that_fails_ends_with_a_warning(tmp_path):
    class Failing(LargestEntry):
        def at(self, step):
            if step.number == 2:
                raise KeyError("on purpose")
            return super().at(step)

    with pytest.warns(UserWarning, match=r"Failing failed at step 2, KeyError.*all else goes on"):
        folder = train(tmp_path, 3, 0, epochs=1, extras=[Failing()])
    run = load(folder)
    assert run.summary["run"]["complete"] is True
    assert [row.step for row in run.tables["largest_entry"]] == [0, 1]
    assert all(probe.evaluated for probe in run.table)
