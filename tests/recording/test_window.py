"""`Window`: the micro-batches of one step; loss, x_k and g_k before it."""

import math
import random

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_landscape.recording.recorder import Missed
from lightning_landscape.recording.window import Window
from tests.helpers.modules import Plain, SkipsMicroBatch, TargetInParameters
from tests.helpers.steps import Steps, assert_close, fit, flat, record


class Takes(Steps):
    """Keeps what each window takes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.taken = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self.taken.append(self.recorder._taken)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_what_is_taken_equals_a_recording_of_everything(accumulate):
    run = record(Plain, Takes(), batches=7, accumulate_grad_batches=accumulate)
    assert len(run.steps.taken) == len(run.slow) == math.ceil(7 / accumulate)
    for taken, slow in zip(run.steps.taken, run.slow, strict=True):
        losses = [micro.losses[0] for micro in slow.micro_batches]
        assert taken.loss == taken.local_loss == taken.training_loss == sum(losses) / len(losses)
        assert len(taken.moments) == len(losses)
        assert (taken.epoch, taken.logged_step) == (slow.epoch, slow.logged_step)
        assert torch.equal(flat(taken.x), flat({n: slow.before[n] for n in taken.x}))
        x = {name: slow.before[name] for name in run.brute.names}
        _, by_hand = run.brute.window(slow, x, gradient=True)
        g = {name: taken.gradient.factor * part for name, part in taken.gradient.raw.items()}
        assert_close(g, by_hand)
        assert taken.lr == 0.1
        assert taken.share == len(losses) / accumulate


def test_what_is_taken_does_not_change_with_training():
    run = record(Plain, Takes(), batches=3)
    first = run.steps.taken[0]
    assert torch.equal(flat(first.x), flat({n: run.slow[0].before[n] for n in first.x}))
    assert not torch.equal(flat(first.x), flat(run.training.present()))


def test_a_micro_batch_without_a_loss_is_left_out():
    run = record(SkipsMicroBatch, Takes(), batches=6, accumulate_grad_batches=2)
    counts = [0 if taken is None else len(taken.moments) for taken in run.steps.taken]
    assert counts == [len(slow.micro_batches) for slow in run.slow]
    assert counts == [1, 2, 0]


def test_others_are_those_at_the_door_of_the_first_micro_batch():
    run = record(TargetInParameters, Takes(), batches=4)
    for taken, slow in zip(run.steps.taken, run.slow, strict=True):
        assert set(taken.others) == {"target.weight", "target.bias"}
        assert torch.equal(taken.others["target.weight"], slow.before["target.weight"])


def test_others_that_have_not_changed_are_not_taken():
    run = record(TargetInParameters, Takes(others_changed=lambda others: False), batches=3)
    assert [taken.others for taken in run.steps.taken] == [{}, {}, {}]


@pytest.mark.parametrize("rates", [[0.1, 0.1], [0.1, 0.2]])
def test_one_learning_rate_or_none(rates):
    class Groups(Plain):
        def configure_optimizers(self):
            first, *rest = self.parameters()
            groups = [{"params": [first], "lr": rates[0]}, {"params": rest, "lr": rates[1]}]
            return torch.optim.SGD(groups, lr=0.1)

    run = record(Groups, Takes(), batches=2)
    assert run.steps.taken[0].lr == (0.1 if len(set(rates)) == 1 else None)


# ---------------------------------------------------------------------------------- failures


def test_a_failure_inside_of_training_step_is_raised_at_the_step(monkeypatch):
    """The user's ``training_step`` runs as if nothing had happened."""
    reached = []

    class Notes(Plain):
        def training_step(self, batch, batch_idx):
            reached.append(batch_idx)
            return super().training_step(batch, batch_idx)

    def fails(self, args, kwargs):
        raise RuntimeError("no idea")

    monkeypatch.setattr(Window, "_enter", fails)
    with pytest.raises(RuntimeError, match="no idea"):
        fit(Notes, [Steps()], batches=3)
    assert reached == [0]


@pytest.mark.parametrize("loss", [torch.ones(2), 1.0])
def test_a_loss_that_is_no_number_is_refused(loss):
    class Wrong(Plain):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            return loss

    with pytest.raises(MisconfigurationException, match="step 0: found a"):
        fit(Wrong, [Steps()], batches=2)


def test_an_iterator_among_the_attributes_is_refused():
    class Draws(Plain):
        def __init__(self):
            super().__init__()
            self.source = iter([1, 2, 3])

    with pytest.raises(MisconfigurationException, match=r"iterators .*'source'"):
        fit(Draws, [Steps()], batches=2)


def test_a_generator_without_a_state_is_left_alone():
    class System(Plain):
        def __init__(self):
            super().__init__()
            self.source = random.SystemRandom()

    steps = Steps()
    fit(System, [steps], batches=2)
    assert len(steps.records) == 2


def test_a_batch_that_cannot_be_kept_is_refused():
    class Locked(Plain):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return (*batch, (number for number in range(3)))

        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    with pytest.raises(MisconfigurationException, match="cannot keep this batch"):
        fit(Locked, [Steps()], batches=2)


def test_a_window_that_is_not_stepped_is_missed():
    class Nothing(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    run = record(Nothing, Steps(), batches=3)
    found = [
        found if isinstance(found, Missed) else found.probe.step for found in run.steps.finished
    ]
    assert found == [0, Missed(1, "no_loss"), 2]


def test_the_door_is_gone_after_each_step():
    class Looks(Steps):
        def on_train_batch_end(self, trainer, *args):
            super().on_train_batch_end(trainer, *args)
            self.there = "training_step" in vars(trainer.strategy)

    looks = Looks()
    fit(Plain, [looks], batches=2)
    assert not looks.there
