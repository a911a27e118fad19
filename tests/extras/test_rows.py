"""The rows of an extra: their order, those of dropped probes, a checkpoint, a copy per fit."""

from dataclasses import dataclass

import pytest

from lightning_landscape import Extra, Secant, Segments
from lightning_landscape.extras import KNOWN, measured


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
    """Rows of two tables."""

    tables = {"largest_entry": Entry, "beside": Beside}

    def at(self, step):
        return []


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
