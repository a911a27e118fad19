"""The picture of losses on segments, and arguments that are refused."""

import json
import math

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_landscape import Segments
from lightning_landscape.extras.segments import SegmentPoint
from tests.helpers.slow import some
from tests.test_probes import row

pytest.importorskip("matplotlib")

from tests.helpers.pictures import (
    CASES,
    case,
    check_whole,
    drawn_of,
    labelled,
    points,
    said,
    same,
    texts,
)
from tests.reporting.test_summary import informative


def segments_of(rows):
    """Return points of straight lines from each probe, not in order."""
    return {
        "segments": [
            SegmentPoint(
                probe.step,
                t / 4,
                probe.loss * (1 - t / 4) + (probe.reference_loss or 0.0) * t / 4,
            )
            for probe in rows
            for t in (4, 2, 0, 1, 3)
        ]
    }


def drawn(run):
    """Return the picture, by its name."""
    return Segments.figures(run)["segments"]


@pytest.mark.parametrize("of", some(list(CASES), every=4))
def test_the_picture_of_every_run_is_whole(of):
    run = case(of, segments_of)
    before = json.dumps(run.summary)
    check_whole(drawn(run))
    assert json.dumps(run.summary) == before


def test_segments_are_a_line_a_start_in_the_order_of_the_fraction():
    (axes,) = drawn(case("informative", segments_of)).axes
    lines = labelled(axes)
    assert list(lines) == ["k = 0", "k = 2", "k = 4", "k = 6"]
    assert points(lines["k = 0"]) == [
        (0.0, 2.0),
        (0.25, 1.75),
        (0.5, 1.5),
        (0.75, 1.25),
        (1.0, 1.0),
    ]


def test_of_many_segments_some_are_drawn_and_it_is_said():
    rows = [row(k) for k in range(20)]
    (axes,) = drawn(drawn_of(rows, segments_of(rows), steps=20)).axes
    assert list(labelled(axes)) == ["k = 0", "k = 4", "k = 8", "k = 11", "k = 15", "k = 19"]
    assert "6 of 20 lines are drawn" in texts(axes)


def test_losses_that_are_not_finite_are_counted_not_drawn():
    bad = [SegmentPoint(0, 0.0, 2.0), SegmentPoint(0, 0.5, math.inf), SegmentPoint(0, 1.0, 1.0)]
    (axes,) = drawn(drawn_of(informative(), {"segments": bad})).axes
    assert same(list(labelled(axes)["k = 0"].get_ydata()), [2.0, math.nan, 1.0])
    assert "1 losses are not drawn: not finite" in texts(axes)
    none = {"segments": [SegmentPoint(0, 0.0, math.nan)]}
    assert said(drawn(drawn_of(informative(), none))) == "no loss on a segment is finite"
    for nothing in ({"segments": []}, {}):
        assert said(drawn(drawn_of(informative(), nothing))) == "no segment was evaluated"


@pytest.mark.parametrize("iterates", [0, -1, 2.0, True, "4"])
def test_a_number_of_lines_that_is_none_is_refused(iterates):
    with pytest.raises(MisconfigurationException, match=r"Segments\(iterates=.*whole numbers of 1"):
        Segments(iterates)
