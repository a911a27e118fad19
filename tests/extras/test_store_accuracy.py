"""What is said of a codec's errors, against tables that are as far off as is said."""

import math
import random

import pytest

from lightning_landscape import functional as F
from lightning_landscape.bounds import Evidence, certify, in_force
from lightning_landscape.extras import StoreAccuracy, started
from lightning_landscape.extras.store_accuracy import (
    AccuracyRow,
    accuracy_entry,
    accuracy_sentence,
)
from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.reporting.summary import summarise
from tests.reporting.test_summary import RUN


def table_of(seed, rows=12, lr=0.01):
    draw = random.Random(seed)
    probes = []
    for step in range(rows):
        loss, there = 1 + draw.random(), 0.3 + 0.1 * draw.random()
        probes.append(
            Probe(
                step=step,
                epoch=0,
                loss=loss,
                reference_loss=there,
                loss_infimum=0.0,
                inner_product=(draw.uniform(-0.3, 1.0) if step else 1.0)
                * (loss - there),  # x_0 is exact: not the worst
                grad_sq_norm=draw.uniform(0.5, 1.5),
                sq_distance=draw.uniform(0.2, 3.0),
                step_size=lr,
                step_residual=0.0,
                initial_loss=1.5,
                logged_step=step,
            )
        )
    return ProbeTable(probes)


def accuracies_of(table, seed):
    draw = random.Random(seed)
    return [
        AccuracyRow(probe.step, draw.uniform(0, 0.1), draw.uniform(0, 0.2))
        for probe in table
        if probe.step
    ]


def neighbourhood(table):
    columns = table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
    sigma = F.interpolation_error(
        reference_loss=columns["reference_loss"], loss_infimum=columns["loss_infimum"]
    )[0]
    return float(F.best_alpha_beta(**columns).ratio * sigma)


@pytest.mark.parametrize("seed", range(8))
def test_no_table_within_the_errors_leaves_what_is_said(seed):
    table, draw = table_of(seed), random.Random(seed)
    rows_of_errors, best = accuracies_of(table, seed), in_force(certify(Evidence(table, RUN)))
    entry = accuracy_entry(table, RUN, rows_of_errors)
    accuracies = {row.step: row for row in rows_of_errors}
    low, high = entry["neighbourhood"]
    assert 0 <= low <= high
    seen = []
    for _ in range(40):
        rows = []
        for probe in table:
            accuracy = accuracies.get(probe.step, AccuracyRow(probe.step, 0.0, 0.0))
            signs = [draw.choice([-1, 1, draw.uniform(-1, 1)]) for _ in range(2)]
            distance = max(math.sqrt(probe.sq_distance) + signs[1] * accuracy.distance, 0.0)
            rows.append(
                probe.with_values(
                    inner_product=probe.inner_product + signs[0] * accuracy.inner_product,
                    sq_distance=distance**2,
                )
            )
        moved = ProbeTable(rows)
        seen.append(neighbourhood(moved))
        if best is not None:
            bounds = entry["bound_in_force"]
            value = next(
                c.value for c in certify(Evidence(moved, RUN)) if c.theorem == best.theorem
            )
            if value is not None and None not in bounds:
                assert bounds[0] - 1e-12 <= value <= bounds[1] + 1e-12
    assert low <= min(seen) <= max(seen) <= high
    worst = [
        p.with_values(inner_product=p.inner_product - accuracies[p.step].inner_product)
        if p.step
        else p
        for p in table
    ]
    assert high == neighbourhood(ProbeTable(worst))  # and it can be as bad as that


def test_most_of_these_tables_move():
    """Not all: where no δ is best, the neighbourhood is that of losses alone."""
    moved = 0
    for seed in range(8):
        entry = accuracy_entry(table_of(seed), RUN, accuracies_of(table_of(seed), seed))
        low, high = entry["neighbourhood"]
        moved += low < high
    assert moved >= 4


def test_the_largest_relative_errors():
    table = table_of(3, rows=3)
    entry = accuracy_entry(table, RUN, [AccuracyRow(1, 0.02, 0.1), AccuracyRow(2, 0.03, 0.2)])
    sizes = [(math.sqrt(p.grad_sq_norm), math.sqrt(p.sq_distance)) for p in table]
    assert entry["inner_product"]["bound"] == pytest.approx(
        max(0.02 / (sizes[1][0] * (sizes[1][1] - 0.1)), 0.03 / (sizes[2][0] * (sizes[2][1] - 0.2)))
    )
    assert entry["distance"]["bound"] == pytest.approx(
        max(0.1 / (sizes[1][1] - 0.1), 0.2 / (sizes[2][1] - 0.2))
    )


def test_without_a_bound_in_force_there_is_no_interval_of_it():
    table = ProbeTable(probe.with_values(step_residual=1.0) for probe in table_of(3, rows=3))
    assert in_force(certify(Evidence(table, RUN))) is None
    assert accuracy_entry(table, RUN, [AccuracyRow(1, 0.02, 0.1)])["bound_in_force"] is None


def test_a_probe_nearer_to_the_reference_than_its_error_has_no_finite_bound():
    entry = accuracy_entry(table_of(3, rows=3), RUN, [AccuracyRow(2, 0.03, 10.0)])
    assert entry["distance"] == entry["inner_product"] == {"bound": None}
    said = accuracy_sentence({"dtype": "int8", "accuracy": entry})
    assert "Probes were stored as int8: inner products are off by at most more than 100 %" in said
    assert "distances by at most more than 100 %" in said


def test_nothing_is_said_where_nothing_was_changed():
    assert accuracy_entry(table_of(1), RUN, []) is None
    assert accuracy_sentence({"dtype": "native", "accuracy": None}) == ""
    assert accuracy_sentence({}) == ""


def test_errors_are_in_the_summary_and_in_the_verdict():
    table, run = table_of(1), {**RUN, "store": {"dtype": "int8", "bytes": 5}}
    extra = StoreAccuracy().start()
    rows = accuracies_of(table, 1)
    for row in rows:
        extra.add(row.step, [row])
    summary = summarise(table, run, 2, [extra])
    entry = accuracy_entry(table, run, rows)
    assert summary["run"]["store"] == {"dtype": "int8", "bytes": 5, "accuracy": entry}
    assert accuracy_sentence(summary["run"]["store"]) in summary["verdict"]
    assert "accuracy" not in run["store"]


def test_it_measures_where_the_dtype_is_lossy():
    assert started([], "native") == []
    assert [type(extra) for extra in started([], "int8")] == [StoreAccuracy]
