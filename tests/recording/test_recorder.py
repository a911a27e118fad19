"""`Recorder`: the row and the record of each step, without a call of the user's code."""

import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from lightning_landscape.recording.recorder import Found, Missed
from tests.helpers.modules import Plain, PlainAdam
from tests.helpers.steps import Steps, fit, flat, record


@pytest.fixture(scope="module", params=["plain", "accumulation", "clipping", "adam"])
def run(request):
    kind = PlainAdam if request.param == "adam" else Plain
    arguments = {
        "accumulation": {"accumulate_grad_batches": 2},
        "clipping": {"gradient_clip_val": 0.05},
    }
    steps = Steps(following=True)
    return record(kind, steps, batches=5, **arguments.get(request.param, {}))


def moved(step, names):
    """Return x_k − x_{k+1} as one vector."""
    return flat({n: step.before[n] for n in names}) - flat({n: step.after[n] for n in names})


def test_rows_equal_a_recomputation_by_brute_force(run):
    for probe, slow in zip(run.probes, run.slow, strict=True):
        expected = run.brute.row(slow, run.slow[0])
        for name in ("step", "epoch", "logged_step", "loss"):
            assert getattr(probe, name) == expected[name], name
        for name in ("grad_sq_norm", "step_size"):
            assert getattr(probe, name) == pytest.approx(expected[name], rel=1e-4), name
        size = float(moved(slow, run.brute.names).norm())
        assert probe.step_residual == pytest.approx(expected["step_residual"], abs=1e-4 * size)


def test_columns_that_depend_on_x_p_are_not_known_yet(run):
    for probe in run.probes:
        assert not probe.evaluated
        columns = ("reference_loss", "inner_product", "sq_distance", "initial_loss")
        assert [getattr(probe, name) for name in columns] == [None] * 4


def test_records_hold_the_step_and_the_iterate_that_follows(run):
    for one, slow in zip(run.records, run.slow, strict=True):
        assert one.step == slow.step
        assert len(one.moments) == len(slow.micro_batches)
        names = run.brute.names
        assert torch.equal(flat(one.x), flat({n: slow.before[n] for n in names}))
        assert torch.equal(flat(one.following), flat({n: slow.after[n] for n in names}))


def test_the_following_iterate_is_recorded_on_demand_alone():
    assert all(one.following is None for one in record(Plain, batches=2).records)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_steps_between_probes_are_not_watched(stride):
    steps = Steps(stride)
    fit(Plain, [steps], batches=9)
    assert [probe.step for probe in steps.probes] == list(range(0, 9, stride))


def test_the_code_is_called_as_often_as_training_calls_it():
    calls = []

    class Counts(Plain):
        def training_step(self, batch, batch_idx):
            calls.append(batch_idx)
            return super().training_step(batch, batch_idx)

    fit(Counts, [Steps()], batches=4)
    assert calls == [0, 1, 2, 3]


# -------------------------------------------------------------------------- what a run shows


def test_learning_rates_and_steps_off_schedule(run):
    found = run.steps.recorder.found
    rate = run.training.optimizer.param_groups[0]["initial_lr"]
    assert found.learning_rates == (rate, rate)
    rows = [run.brute.row(slow, run.slow[0]) for slow in run.slow]
    shares = [len(slow.micro_batches) / slow.divisor for slow in run.slow]
    off = [
        # a step with a part that is not along the gradient may have any size along it
        abs(row["step_size"] - rate * share)
        > 1e-3 * rate * share + row["step_residual"] / row["grad_sq_norm"] ** 0.5 + 1e-6
        for row, share in zip(rows, shares, strict=True)
    ]
    assert found.off_schedule == sum(off)


def test_steps_of_another_size_than_the_learning_rate_are_off_schedule():
    steps = Steps()
    fit(Plain, [steps], batches=3, gradient_clip_val=0.05)
    assert steps.recorder.found.off_schedule == 3  # g is the gradient before it is clipped

    class Halves(torch.optim.SGD):
        def step(self, closure=None):
            parameters = self.param_groups[0]["params"]
            before = [parameter.detach().clone() for parameter in parameters]
            found = super().step(closure)
            for parameter, there in zip(parameters, before, strict=True):
                parameter.data.lerp_(there, 0.5)
            return found

    class Half(Plain):
        optimizer_class = Halves

    steps = Steps()
    fit(Half, [steps], batches=3)
    assert steps.recorder.found.off_schedule == 3


def test_found_keeps_the_smallest_and_the_largest_learning_rate():
    found = Found()
    for rate in (0.1, 0.3, 0.2):
        found.note_step(rate, rate, rate, 0.0)
    assert found.learning_rates == (0.1, 0.3)
    assert found.off_schedule == 0
    found.note_step(0.1, 0.1, 0.05, 0.0)
    assert found.off_schedule == 1
    found.note_step(0.1, 0.1, 0.05, 0.06)  # as far off as rounding may be
    assert found.off_schedule == 1
    found.note_step(math.nan, math.nan, 0.1, 0.0)
    assert all(map(math.isnan, found.learning_rates))
    found.note_step(0.1, 0.1, 0.1, 0.0)
    assert all(map(math.isnan, found.learning_rates))


def test_movement_between_steps_is_counted():
    class Nudges(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx in (2, 3):
                pl_module.net[0].weight.data += 1e-3

    steps = Steps()
    fit(Plain, [Nudges(), steps], batches=5)
    assert steps.recorder.found.moved_between == 2


def test_a_gradient_that_is_not_finite_is_missed():
    class Explodes(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * math.inf if batch_idx == 2 else loss

    steps = Steps()
    fit(Explodes, [steps], batches=3)
    assert steps.finished[-1] == Missed(2, "non_finite")
    assert [probe.step for probe in steps.probes] == [0, 1]


def test_a_loss_below_its_infimum_is_refused_at_the_first_probe():
    with pytest.raises(MisconfigurationException, match="below loss_infimum=100; .* smaller"):
        fit(Plain, [Steps(loss_infimum=100.0)], batches=2)


def test_a_noted_problem_is_raised_at_the_next_probe():
    def note(steps):
        steps.recorder.note(ValueError("first"))
        steps.recorder.note(ValueError("second"))

    steps = Steps(at_step={1: note})
    with pytest.raises(ValueError, match="first"):
        fit(Plain, [steps], batches=4)
    assert [probe.step for probe in steps.probes] == [0]


# -------------------------------------------------------------------------- every step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sums_over_every_step_equal_those_by_brute_force(accumulate):
    steps = Steps(3, every_step=True)
    run = record(Plain, steps, batches=8, accumulate_grad_batches=accumulate)
    rows = [run.brute.row(slow, run.slow[0]) for slow in run.slow]
    sums = run.steps.recorder.sums.sums
    assert (sums.first_step, sums.steps) == (0, 8 // accumulate)
    expected = {
        "step_size": sum(row["step_size"] for row in rows),
        "sq_step": sum(row["step_size"] ** 2 * row["grad_sq_norm"] for row in rows),
    }
    for name, value in expected.items():
        assert getattr(sums, name) == pytest.approx(value, rel=1e-4), name
    assert sums.residual == pytest.approx(sum(r["step_residual"] for r in rows), abs=1e-5)


def test_it_goes_on_from_a_checkpoint():
    one, two = Steps(every_step=True), Steps(every_step=True)
    fit(Plain, [one], batches=3)
    fit(Plain, [two], batches=1)
    two.recorder.adopt(one.recorder.state())
    assert two.recorder.state() == one.recorder.state()
    assert two.recorder.found == one.recorder.found
