"""`Replay`: micro-batches evaluated again with the parameters as they stand."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_landscape.evaluation.replay import Replay, without_hooks
from lightning_landscape.training.failures import NotMeasurable
from tests.helpers.modules import GradientPenalty, Plain, Recurrent
from tests.helpers.per_sample import Perceptron, losses
from tests.helpers.steps import assert_close, record


@pytest.fixture(scope="module")
def run():
    """Windows of two micro-batches."""
    return record(Plain, accumulate_grad_batches=2)


def test_the_loss_of_a_window_is_the_mean_over_its_micro_batches(run):
    replay, present = Replay(run.training), run.training.present()
    with replay.silence():
        for one, slow in zip(run.records, run.slow, strict=True):
            assert len(one.moments) == 2
            alone = [replay.loss([moment]) for moment in one.moments]
            found = replay.loss(one.moments)
            assert found == sum(alone) / 2 == run.brute.window(slow, present)[0]


def test_the_gradient_of_a_window_is_that_of_the_mean_loss(run):
    replay, present = Replay(run.training), run.training.present()
    with replay.silence():
        for one, slow in zip(run.records, run.slow, strict=True):
            loss, gradient = replay.loss_and_gradient(one.moments)
            expected, by_hand = run.brute.window(slow, present, gradient=True)
            assert loss == expected
            found = {name: gradient.factor * part for name, part in gradient.raw.items()}
            assert_close(found, by_hand)


@pytest.mark.parametrize("kind", [GradientPenalty, Recurrent])
def test_losses_that_need_autograd_have_it(kind):
    run = record(kind, batches=3)
    replay, present = Replay(run.training), run.training.present()
    with replay.silence():
        for one, slow in zip(run.records, run.slow, strict=True):
            with torch.enable_grad():
                expected, _ = run.brute.window(slow, present)
            assert replay.loss(one.moments) == expected
    assert replay.gradients_enabled


def test_nothing_is_logged_or_printed_inside_of_silence(tmp_path):
    run = record(Plain, batches=2, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    module, loggers = run.module, run.trainer.loggers
    replay = Replay(run.training)
    with replay.silence():
        assert all(isinstance(logger, DummyLogger) for logger in run.trainer.loggers)
        module.log("a", 1.0)
        module.log_dict({"b": 1.0})
        module.print("c")
    assert run.trainer.loggers is loggers
    assert not {"log", "log_dict", "print"} & set(vars(module))
    assert "a" not in run.trainer.callback_metrics


def test_a_step_that_returns_no_loss_any_more_is_not_measurable(run, monkeypatch):
    monkeypatch.setattr(type(run.module), "training_step", lambda *args: None)
    replay = Replay(run.training)
    with replay.silence(), pytest.raises(NotMeasurable, match="returned None in the replay"):
        replay.loss(run.records[0].moments)


def test_hooks_of_parameters_are_set_aside_and_come_back(run):
    parameter, seen = run.module.net[0].weight, []
    handle = parameter.register_hook(lambda gradient: seen.append(1))
    hooks = parameter._backward_hooks
    replay = Replay(run.training)
    with replay.silence():
        replay.loss_and_gradient(run.records[0].moments)
    assert seen == []
    assert parameter._backward_hooks is hooks
    (parameter.sum() * 2).backward()
    assert seen == [1]
    handle.remove()
    parameter.grad = None


def test_hooks_come_back_after_an_exception():
    parameter = nn.Parameter(torch.ones(2))
    parameter.register_hook(lambda gradient: None)
    hooks = parameter._backward_hooks
    with pytest.raises(ValueError, match="no idea"), without_hooks([parameter]):
        assert not parameter._backward_hooks
        raise ValueError("no idea")
    assert parameter._backward_hooks is hooks


def test_gradients_of_training_are_not_touched(run):
    for parameter in run.module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    replay = Replay(run.training)
    with replay.silence():
        replay.loss_and_gradient(run.records[0].moments)
    assert all(bool((p.grad == 7).all()) for p in run.module.parameters())
    run.module.zero_grad()


# ----------------------------------------------------------------------------- single samples


@pytest.fixture(scope="module")
def samples():
    return record(Perceptron, batches=3)


def test_losses_of_single_samples_are_those_by_hand(samples):
    replay = Replay(samples.training, losses, of_samples=True)
    moment, slow = samples.records[1].moments[0], samples.slow[1].micro_batches[0]
    with replay.silence():
        found = replay.sample_losses(moment)
        assert replay.loss([moment]) == pytest.approx(float(found.mean()), rel=1e-6)
    torch.set_rng_state(slow.rng[0])
    slow.module.load_state_dict(samples.module.state_dict())
    x, y = slow.args[0]
    with torch.no_grad():
        expected = cross_entropy(slow.module.net(x), y, reduction="none")
    assert torch.equal(found, expected.double())


@pytest.mark.parametrize("with_graph", [False, True])
def test_derivatives_of_single_samples_are_dot_products_of_their_gradients(samples, with_graph):
    replay = Replay(samples.training, losses, of_samples=True)
    moment, slow = samples.records[1].moments[0], samples.slow[1].micro_batches[0]
    generator = torch.Generator().manual_seed(2)
    direction = {
        name: torch.randn(p.shape, generator=generator)
        for name, p in samples.training.parameters().items()
    }
    with replay.silence():
        values, slopes = replay.sample_derivatives(moment, direction, with_graph=with_graph)
        assert torch.equal(values, replay.sample_losses(moment))
    slow.module.load_state_dict(samples.module.state_dict())
    torch.set_rng_state(slow.rng[0])
    each = losses(slow.module, slow.args[0])
    for loss, slope in zip(each, slopes, strict=True):
        gradients = torch.autograd.grad(loss, list(slow.module.parameters()), retain_graph=True)
        names = [name for name, _ in slow.module.named_parameters()]
        along = sum(
            float((g.double() * direction[n].double()).sum())
            for n, g in zip(names, gradients, strict=True)
        )
        assert float(slope) == pytest.approx(along, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_the_parameters(run, dtype):
    replay = Replay(run.training)
    assert replay.rounding([torch.ones(2, dtype=dtype)]) == torch.finfo(dtype).eps
