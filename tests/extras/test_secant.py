"""Smoothness between consecutive iterates, from rows made by hand."""

import pytest

from lightning_landscape import Secant
from lightning_landscape.extras.secant import SecantRow
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.summary import summarise
from tests.reporting.test_summary import RUN
from tests.test_probes import row


def summary_of(*rows):
    """Return the summary of two probes, both with ‖x_{k+1} − x_k‖ = 0.5."""
    table = [
        row(0, step_size=0.15, grad_sq_norm=4.0, step_residual=0.4),
        row(2, step_size=0.2, grad_sq_norm=4.0, step_residual=0.3),
    ]
    extra = Secant().start()
    for one in rows:
        extra.add(one.step, [one])
    return summarise(ProbeTable(table), {**RUN, "probes": 2}, 2, [extra])


def test_it_is_the_largest_change_of_a_gradient_over_the_length_of_its_step():
    # lengths: (0.15² · 4 + 0.4²)½ = 0.5 and (0.2² · 4 + 0.3²)½ = 0.5
    found = summary_of(SecantRow(0, 4.0), SecantRow(2, 9.0))["conditions"]["smoothness"]
    assert found["secant"]["value"] == pytest.approx(3.0 / 0.5)
    assert (found["secant"]["step"], found["secant"]["probes"]) == (2, 2)
    assert found["secant"]["quantiles"]["0.99"] == pytest.approx(6.0)
    assert found["constant"] == "L"  # the entry itself stays


def test_rows_of_probes_that_were_dropped_do_not_count():
    found = summary_of(SecantRow(0, 4.0), SecantRow(1, 1e9))["conditions"]["smoothness"]["secant"]
    assert (found["value"], found["probes"]) == (pytest.approx(4.0), 1)


def test_without_rows_there_is_no_value():
    assert "secant" not in summary_of()["conditions"]["smoothness"]
    plain = summarise(ProbeTable([row(0)]), {**RUN, "probes": 1}, 2)
    assert "secant" not in plain["conditions"]["smoothness"]
