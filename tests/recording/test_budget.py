"""The budget against simulated trainings: no clock, every cost known."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.recording.budget import Budget, Reading
from lightning_landscape.recording.schedule import Schedule


class Simulation:
    """Training with steps of 1 s; a monitor with given seconds a probe and an evaluation."""

    def __init__(
        self,
        budget,
        *,
        steps,
        cost,
        first=None,
        evaluation=0.0,
        stride=1,
        max_probes=64,
        outliers=(),
    ):
        self.schedule, self.spent = Schedule(stride, max_probes), 0.0
        self.strides, self.shares = [], []
        for step in range(steps):
            if self.schedule.due(step):
                reading = Reading(step, step + self.spent, self.spent, len(self.schedule.kept))
                self.schedule.make_room(step, budget.spacing(reading))
            if self.schedule.due(step):
                seconds = first if step == 0 and first is not None else cost
                self.probe(budget, step, 50 * seconds if step in outliers else seconds)
            self.strides.append(self.schedule.stride)
            at_end = self.spent + evaluation * budget.evaluations(len(self.schedule.kept))
            self.shares.append(at_end / (step + 1 + at_end))

    def probe(self, budget, step, seconds):
        self.spent += seconds
        self.schedule.keep(step)
        budget.note_probe(seconds)

    @property
    def share(self):
        return self.shares[-1]


def evaluations(kept):
    return kept + min(kept, 32)


@pytest.mark.parametrize("known", [True, False], ids=["planned", "endless"])
@pytest.mark.parametrize(
    ("steps", "cost", "first", "evaluation"),
    [
        (10_000, 0.001, 0.001, 0.001),
        (10_000, 0.3, 2.0, 0.3),
        (10_000, 1.0, 100.0, 0.5),
        (20_000, 5.0, 5.0, 1.0),
        (40_000, 100.0, 100.0, 0.9),
        (40_000, 100.0, 400.0, 0.0),
        (500, 0.1, 5.0, 0.1),
        (300, 0.5, 1.0, 0.2),
        (3_000, 1.0, 100.0, 0.0),
    ],
)
def test_the_share_comes_under_the_budget(steps, cost, first, evaluation, known):
    budget = Budget(0.05, evaluations, steps if known else math.inf)
    run = Simulation(budget, steps=steps, cost=cost, first=first, evaluation=evaluation)
    # an unknown end may come while the first probe is still being made up for
    spare = 0.05 if known else 0.06
    assert run.share <= spare
    assert run.schedule.kept == list(range(0, run.schedule.kept[-1] + 1, run.schedule.stride))
    assert steps - run.schedule.kept[-1] <= run.schedule.stride
    assert all(a <= b for a, b in pairwise(run.strides))


@pytest.mark.parametrize("known", [True, False], ids=["planned", "endless"])
def test_what_happens_once_does_not_dominate_for_ever(known):
    steps = 20_000
    ends = {
        first: Simulation(
            Budget(0.05, evaluations, steps if known else math.inf),
            steps=steps,
            cost=1.0,
            first=first,
            evaluation=0.3,
            max_probes=10_000,
        )
        for first in (1.0, 100.0)
    }
    assert ends[100.0].schedule.stride <= 2 * ends[1.0].schedule.stride
    assert len(ends[100.0].schedule.kept) > 100
    assert ends[100.0].share < 0.05


def test_an_evaluation_counts_as_a_step_of_training_until_one_was_measured():
    budget, reading = Budget(0.05, evaluations, 10_000), Reading(100, 102.0, 2.0, 2)
    budget.note_probe(1.0)
    budget.note_probe(1.0)
    allowed = 100 * 0.05 / 0.95
    assert budget.strain(reading) == pytest.approx((2 + 2 * 4 * 1.0) / allowed)
    assert 0 < budget.spacing(reading) < 100
    budget.note_evaluations(2.0, 4)
    assert budget.strain(reading) == pytest.approx((2 + 2 * 4 * 0.5) / allowed)


def test_a_single_slow_probe_changes_nothing():
    calm, once = (
        Simulation(
            Budget(0.05, evaluations, 5_000),
            steps=5_000,
            cost=0.1,
            evaluation=0.05,
            outliers=outliers,
        )
        for outliers in ((), (40,))
    )
    assert once.schedule.stride == calm.schedule.stride


def test_a_run_that_is_too_short_for_its_first_probe_has_no_other():
    run = Simulation(Budget(0.05, evaluations, 1000), steps=1000, cost=100.0)
    assert run.schedule.kept == [0]
    assert run.spent == 100


def test_cheap_probes_are_not_made_rarer():
    run = Simulation(
        Budget(0.05, evaluations, 10_000),
        steps=10_000,
        cost=0.01,
        evaluation=0.01,
        stride=100,
        max_probes=256,
    )
    assert run.schedule.kept == list(range(0, 10_000, 100))


def test_evaluations_that_take_longer_than_expected_drop_kept_rows():
    budget = Budget(0.05, evaluations)
    for _ in range(3):
        budget.note_probe(0.1)
    reading = Reading(steps=1000, elapsed=1010.0, spent=10.0, kept=100)
    schedule = Schedule(10, 256, next_step=1000, kept=list(range(0, 1000, 10)))
    budget.note_evaluations(0.64, 64)
    assert schedule.make_room(1000, budget.spacing(reading)) == []
    budget.note_evaluations(64.0, 64)
    assert schedule.make_room(1000, budget.spacing(reading))
    assert len(schedule.kept) <= 50
    assert budget.strain(reading) > 1


def test_the_end_of_a_run_does_not_cost_half_of_the_table():
    budget = Budget(0.05, evaluations, 1000)
    budget.note_evaluations(0.0, 16)
    for _ in range(9):
        budget.note_probe(0.5)
    reading = Reading(steps=990, elapsed=1043.0, spent=53.0, kept=99)
    assert budget.spacing(reading) == pytest.approx(0.5 / (0.05 / 0.95))


@given(
    st.floats(0.01, 0.5),
    st.floats(0.0, 50.0),
    st.floats(0.0, 300.0),
    st.floats(0.0, 3.0),
    st.one_of(st.just(math.inf), st.integers(10, 3000)),
    st.integers(10, 3000),
    st.integers(1, 20),
)
def test_regular_monotonous_and_bounded_whatever_it_costs(
    share, cost, first, evaluation, planned, steps, stride
):
    budget = Budget(share, evaluations, planned)
    run = Simulation(
        budget,
        steps=steps,
        cost=cost,
        first=first,
        evaluation=evaluation,
        stride=stride,
        max_probes=16,
    )
    kept = run.schedule.kept
    assert kept == list(range(0, kept[-1] + 1, run.schedule.stride))
    assert len(kept) <= 16
    assert steps - 1 - kept[-1] < run.schedule.stride
    assert all(a <= b for a, b in pairwise(run.strides))
    # from the third on, the time that has passed pays for probes, rounded up to a whole one
    limit = share / (1 - share) * steps
    assert run.spent <= max(first, cost) + 4 * cost + limit


def test_nothing_known_asks_for_nothing():
    budget = Budget(0.05, evaluations)
    assert budget.spacing(Reading(10, 10.0, 0.0, 0)) == 0
    budget.note_probe(1.0)
    assert budget.spacing(Reading(0, 1.0, 1.0, 1)) == 0


def test_no_time_that_passed_leaves_nothing():
    budget = Budget(0.05, evaluations)
    budget.note_probe(1.0)
    budget.note_probe(1.0)
    assert budget.spacing(Reading(5, 2.0, 2.0, 2)) == math.inf
    assert budget.strain(Reading(5, 2.0, 2.0, 2)) == math.inf


def test_state_goes_through_a_checkpoint():
    budget, other = Budget(0.05, evaluations, 100), Budget(0.05, evaluations, 100)
    budget.note_probe(1.0)
    budget.note_probe(0.25)
    budget.note_evaluations(3.0, 4)
    other.adopt(budget.state())
    assert other == budget
