"""`Evaluation`: the one path from a record to its row."""

from dataclasses import replace

import pytest
import torch

from lightning_landscape import Segments
from lightning_landscape.evaluation import evaluation as rooms
from lightning_landscape.evaluation.evaluation import Evaluation, first_middle_last
from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.recording.kept import KeptProbes
from lightning_landscape.recording.schedule import Schedule
from lightning_landscape.store.store import RecordStore
from tests.extras.test_extra import Norms
from tests.helpers.modules import Plain
from tests.helpers.steps import elsewhere, flat, record


@pytest.fixture(scope="module")
def run():
    return record(Plain, batches=9)


def untracked(steps, what):
    return steps


def of(run, folder, extras=(), *, stored=True):
    """Return an evaluation of all steps of a run, whose rows do not know x_p yet.

    Not stored is what a run has with a reference file: the store holds x_0 alone.
    """
    store = RecordStore(folder, 2**30)
    started = [extra.start() for extra in extras]
    kept = KeptProbes(Schedule(1, 100), store, run.training.processes, started)
    for probe, one in zip(run.probes, run.records, strict=True):
        kept.add(probe)
        if stored or probe is run.probes[0]:
            kept.write(one)
    return Evaluation(Evaluator(run.training), kept, started), kept


def by_hand(run, x_p):
    """Return the columns that depend on x_p, from a recording of everything."""
    first, rows = run.slow[0], {}
    for slow in run.slow:
        run.brute.reference = x_p
        row = run.brute.row(slow, first)
        names = ("reference_loss", "inner_product", "sq_distance", "initial_loss")
        rows[slow.step] = {name: row[name] for name in names}
    return rows


def test_rows_equal_a_recomputation_by_brute_force(run, tmp_path):
    x_p = elsewhere(run)
    evaluation, kept = of(run, tmp_path)
    evaluation.complete(x_p, untracked)
    rows = by_hand(run, x_p)
    for probe in kept.table:
        expected = rows[probe.step]
        assert probe.reference_loss == expected["reference_loss"]
        assert probe.initial_loss == expected["initial_loss"]
        assert probe.inner_product == pytest.approx(expected["inner_product"], rel=1e-4)
        assert probe.sq_distance == pytest.approx(expected["sq_distance"], rel=1e-6)


def test_a_record_in_memory_and_from_the_store_give_the_same_row(run, tmp_path):
    x_p, extras = elsewhere(run), [Segments(32), Norms()]
    stored, kept = of(run, tmp_path / "stored", extras)
    stored.complete(x_p, untracked)
    memory, alike = of(run, tmp_path / "memory", extras, stored=False)
    with memory._evaluator.session():
        for one in run.records:
            memory.at(one, x_p)
    assert kept.table == alike.table
    assert all(probe.evaluated for probe in kept.table)
    for one, two in zip(stored.extras, memory.extras, strict=True):
        for name in one.tables:
            assert one.rows(name) == two.rows(name) != []


def test_what_is_evaluated_is_not_evaluated_again(run, tmp_path):
    evaluation, kept = of(run, tmp_path)
    evaluation.complete(elsewhere(run), untracked)
    table, seen = kept.table, []
    evaluation.complete(elsewhere(run, seed=1), lambda steps, what: seen.extend(steps) or steps)
    assert seen == []
    assert kept.table == table


def test_fidelity_is_checked_at_the_first_the_middle_and_the_last_record(run, tmp_path):
    evaluation, _ = of(run, tmp_path)
    evaluation.complete(elsewhere(run), untracked)
    assert evaluation.fidelity.found.steps == [0, 4, 8]
    assert evaluation.fidelity.found.exact


def test_first_middle_last_of_few():
    assert first_middle_last([]) == []
    assert first_middle_last([3]) == [3]
    assert first_middle_last([3, 5]) == [3, 5]
    assert first_middle_last(list(range(10))) == [0, 5, 9]


def test_a_probe_whose_record_is_gone_is_dropped_and_counted(run, tmp_path):
    evaluation, kept = of(run, tmp_path)
    kept.store.drop(5)
    evaluation.complete(elsewhere(run), untracked)
    assert kept.steps == [probe.step for probe in kept.table] == [0, 1, 2, 3, 4, 6, 7, 8]
    assert kept.dropped["unevaluable"] == 1


def test_a_row_without_a_finite_value_at_x_p_is_dropped_and_counted(run, tmp_path):
    evaluation, kept = of(run, tmp_path)
    x_p = elsewhere(run)
    x_p["net.0.bias"] = torch.full_like(x_p["net.0.bias"], float("nan"))
    evaluation.complete(x_p, untracked)
    assert kept.steps == []
    assert kept.dropped["non_finite"] == len(run.probes)


def test_losses_at_x_0_are_those_of_the_evenly_chosen_probes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "INITIAL_LOSSES", 4)
    evaluation, kept = of(run, tmp_path)
    evaluation.complete(elsewhere(run), untracked)
    chosen = [probe.step for probe in kept.table if probe.initial_loss is not None]
    assert chosen == [0, 4, 8]


def test_prune_leaves_what_the_evenly_chosen_probes_have(run, tmp_path, monkeypatch):
    """Step by step every early probe is among the chosen ones; in the end every fourth is."""
    monkeypatch.setattr(rooms, "INITIAL_LOSSES", 4)
    evaluation, kept = of(run, tmp_path / "live", [Segments(2)], stored=False)
    kept.schedule.kept, kept.table = [], type(kept.table)()
    with evaluation._evaluator.session():
        for probe, one in zip(run.probes, run.records, strict=True):
            kept.add(probe)
            evaluation.at(one, elsewhere(run))
    measured = [probe.step for probe in kept.table if probe.initial_loss is not None]
    assert measured[:4] == [0, 1, 2, 3]
    evaluation.prune()
    assert [p.step for p in kept.table if p.initial_loss is not None] == [0, 4, 8]
    assert {point.step for point in evaluation.extras[0].rows("segments")} == {0, 8}
    assert all(probe.evaluated for probe in kept.table)


def test_evaluations_count_losses_at_x_p_at_x_0_and_those_of_the_extras(run, tmp_path):
    evaluation, _ = of(run, tmp_path, [Segments(4)])
    assert evaluation.evaluations(100) == 100 + 32 + 4 * 9
    assert evaluation.evaluations(2) == 2 + 2 + 2 * 9


# ------------------------------------------------------------------------- the present iterate


def test_at_present_is_a_dot_product_with_the_present_parameters(run, tmp_path):
    evaluation, kept = of(run, tmp_path)
    table, present = kept.table, run.training.present()
    rows = evaluation.at_present(losses=False, go_on=lambda: True)
    assert kept.table is table
    assert [row.step for row in rows] == kept.steps
    for row, one in zip(rows, run.records, strict=True):
        away = flat({n: one.x[n] for n in present}) - flat(present)
        g = one.gradient.factor * flat({n: one.gradient.raw[n] for n in present})
        assert row.sq_distance == pytest.approx(float(torch.dot(away, away)), rel=1e-6, abs=1e-12)
        expected = float(torch.dot(g, away))
        size = (row.grad_sq_norm * row.sq_distance) ** 0.5
        assert row.inner_product == pytest.approx(expected, abs=1e-5 * size)
        assert row.reference_loss is None


def test_at_present_calls_no_code_of_the_users_without_losses(run, tmp_path, monkeypatch):
    def fails(*args):
        raise AssertionError("called")

    evaluation, _ = of(run, tmp_path)
    monkeypatch.setattr(type(run.module), "training_step", fails)
    rows = evaluation.at_present(losses=False, go_on=lambda: True)
    assert len(rows) == 9
    with pytest.raises(AssertionError, match="called"):
        evaluation.at_present(losses=True, go_on=lambda: True)


def test_at_present_with_losses_equals_the_row_at_these_parameters(run, tmp_path):
    evaluation, kept = of(run, tmp_path)
    rows = evaluation.at_present(losses=True, go_on=lambda: True)
    evaluation.complete(run.training.present(), untracked)
    for row, probe in zip(rows, kept.table, strict=True):
        assert replace(probe, initial_loss=None) == row


def test_at_present_ends_when_time_is_up_and_measures_at_least_one(run, tmp_path):
    evaluation, _ = of(run, tmp_path)
    asked = iter([True, False])
    rows = evaluation.at_present(losses=False, go_on=lambda: next(asked))
    assert [row.step for row in rows] == [0, 1]
    assert len(evaluation.at_present(losses=False, go_on=lambda: False)) == 1
