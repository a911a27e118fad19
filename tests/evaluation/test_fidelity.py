"""Whether replays give what was recorded."""

import math
from dataclasses import replace

import pytest

from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.evaluation.fidelity import Fidelity, FidelityCheck
from lightning_landscape.store.record import CodecError
from lightning_landscape.vectors.gradients import Gradient
from tests.helpers.modules import Plain, Recurrent
from tests.helpers.steps import record


@pytest.fixture(scope="module")
def run():
    return record(Plain, batches=3)


@pytest.fixture
def check(run):
    evaluator = Evaluator(run.training)
    with evaluator.session():
        yield FidelityCheck(evaluator)


def test_a_replay_of_what_was_recorded_is_exact(run, check):
    assert [check.check(one) for one in run.records] == [True, True, True]
    assert check.found == Fidelity([0, 1, 2], 0.0, 0.0)
    assert check.found.exact


def test_a_difference_of_the_loss_is_noted_and_said(run, check):
    one = run.records[1]
    assert not check.check(replace(one, loss=one.loss + 0.25))
    assert check.found.max_abs == 0.25
    with pytest.warns(UserWarning, match="the value is off by 0.25"):
        check.found.warn()


def test_the_largest_difference_counts(run, check):
    for off in (0.25, 1.0, 0.5):
        check.check(replace(run.records[0], loss=run.records[0].loss - off))
    assert check.found.max_abs == pytest.approx(1.0)
    assert check.found.steps == [0]


def test_a_loss_that_is_not_finite_is_infinitely_far_off(run, check):
    assert not check.check(replace(run.records[0], loss=math.nan))
    assert check.found.max_abs == math.inf


@pytest.mark.parametrize(("factor", "expected"), [(2.0, 0.5), (-1.0, 2.0), (1.0, 0.0)])
def test_a_gradient_is_compared_relative_to_the_longer_one(factor, expected, run, check):
    """‖a g − g‖ / max(‖a g‖, ‖g‖)."""
    one = run.records[1]
    changed = Gradient(one.gradient.raw, factor * one.gradient.factor)
    assert check.check(replace(one, gradient=changed))
    assert check.found.gradient == pytest.approx(expected, rel=1e-6)


def test_a_gradient_that_was_rounded_by_the_store_is_not_compared(run, check):
    check.check(replace(run.records[1], error=CodecError(gradient=1e-3)))
    assert check.found.gradient is None
    assert check.found.steps == [1]


def test_a_gradient_that_cannot_be_taken_again_costs_nothing(run, check, monkeypatch):
    def fails(*args):
        raise RuntimeError("no gradient")

    monkeypatch.setattr(check._evaluator.replay, "loss_and_gradient", fails)
    assert check.check(run.records[1])
    assert check.found.gradient is None


def test_kernels_that_round_differently_without_gradients_are_used_with_them():
    run = record(Recurrent, batches=2)
    evaluator = Evaluator(run.training)
    evaluator.replay.gradients_enabled = False
    with evaluator.session():
        check = FidelityCheck(evaluator)
        check.check(run.records[0])
    assert check.found.exact


def test_a_loss_that_depends_on_what_lies_outside_is_found_out():
    calls = []

    class Outside(Plain):
        def compute_loss(self, batch):
            calls.append(1)
            return super().compute_loss(batch) * (1 + 0.1 * len(calls))

    run = record(Outside, batches=2)
    evaluator = Evaluator(run.training)
    with evaluator.session():
        check = FidelityCheck(evaluator)
        assert not check.check(run.records[1])
    assert check.found.max_abs > 0.05


def test_it_goes_on_from_a_checkpoint():
    found = Fidelity()
    found.note(4, 0.5)
    found.note(2, 0.25)
    found.note_gradient(1e-3)
    found.note_gradient(1e-4)
    assert Fidelity.of(found.state()) == found == Fidelity([2, 4], 0.5, 1e-3)
    Fidelity().warn()  # exact: nothing to say
