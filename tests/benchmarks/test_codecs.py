"""The accuracy of a codec: errors by hand, intervals, and the benchmark on real images."""

import json
import math
import sys

import pytest

from benchmarks import codecs
from lightning_landscape.probes import Probe, ProbeTable

PROBE = Probe(
    step=0,
    epoch=0,
    loss=1.0,
    reference_loss=0.5,
    loss_infimum=0.0,
    inner_product=1.0,
    grad_sq_norm=4.0,
    sq_distance=9.0,
    step_size=0.1,
    step_residual=0.0,
    initial_loss=None,
    logged_step=0,
)


def test_errors_are_relative_to_their_sizes():
    exact = ProbeTable([PROBE, PROBE.with_values(step=1, sq_distance=0.0, inner_product=0.0)])
    coded = ProbeTable(
        [
            PROBE.with_values(inner_product=1.3, sq_distance=16.0),
            PROBE.with_values(step=1, sq_distance=0.0, inner_product=0.0),
        ]
    )
    found = codecs.errors(coded, exact)
    assert found["inner_product"] == [pytest.approx(0.3 / 6), 0.0]
    assert found["distance"] == [pytest.approx(1 / 3), 0.0]


@pytest.mark.parametrize(
    ("said", "true", "inside"),
    [
        ([1.0, 2.0], 1.5, True),
        ([1.0, 2.0], 2.1, False),
        ([1.0, 2.0], 0.9, False),
        ([None, 2.0], -5.0, True),
        ([1.0, 2.0], None, False),
        ([1.0, None], None, True),
        ([1e-6, 2e-6], 1e-5, False),
        ([-1e3, -1e2], -1e3, True),
        ([1.0, None], 9.0, True),
    ],
)
def test_a_true_number_is_inside_or_is_not(said, true, inside):
    assert codecs.interval(said, 1.5, true)["true_is_inside"] is inside


@pytest.mark.slow
def test_the_demo_finds_what_codecs_say_to_be_true(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        sys, "argv", ["benchmarks/codecs.py", "--epochs", "3", "--out", str(tmp_path)]
    )
    codecs.main()
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "codecs.json").read_text())
    assert set(content["codecs"]) == {"bfloat16", "int8"}
    for result in content["codecs"].values():
        for name in ("inner_product", "distance"):
            one = result[name]
            assert (
                0
                < one["median"]
                <= one["largest"]
                <= (math.inf if one["bound"] is None else one["bound"] + codecs.ROUNDING)
            )
        intervals = [
            value for value in result.values() if isinstance(value, dict) and "said" in value
        ]
        assert intervals
        assert all(value["true_is_inside"] for value in intervals)
        assert result["bytes"] < result["native_bytes"]
    assert "OUTSIDE" not in said
    assert str(tmp_path / "codecs.json") in said
