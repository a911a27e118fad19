"""`Evaluator`: a recorded step at other parameters, against a copy of the module called by hand."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten

from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.vectors.gradients import Gradient
from tests.helpers.modules import Annealed, OwnGenerators, Plain, TargetInParameters, plain_loss
from tests.helpers.steps import assert_close, elsewhere, flat, record

SLOW = pytest.param(Annealed, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[Plain, OwnGenerators, SLOW, TargetInParameters])
def run(request):
    """Six steps of a module whose loss depends on more than its parameters."""
    return record(request.param)


@pytest.fixture(scope="module")
def plain():
    return record(Plain)


def whole_state(run):
    """Return all that an evaluation could move."""
    module = run.module
    return copy.deepcopy(
        {
            "state": module.state_dict(),
            "gradients": {name: p.grad for name, p in module.named_parameters()},
            "modes": [part.training for part in module.modules()],
            "attributes": [module.losses, module.counts, vars(module.meter), module.running],
            "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1]),
            "counters": (run.trainer.global_step, run.trainer.current_epoch),
        }
    )


def assert_same(one, two):
    left, shape = tree_flatten(one)
    right, other = tree_flatten(two)
    assert shape == other
    for a, b in zip(left, right, strict=True):
        if isinstance(a, (torch.Tensor, np.ndarray)):
            assert a.shape == b.shape
            assert bool((a == b).all())
        else:
            assert a == b


# ------------------------------------------------------------------------------------------ losses


def test_a_loss_elsewhere_is_that_of_a_copy_called_by_hand(run):
    evaluator = Evaluator(run.training)
    x = elsewhere(run)
    with evaluator.session():
        for one, slow in zip(run.records, run.slow, strict=True):
            assert evaluator.loss(one, x) == run.brute.window(slow, x)[0]


def test_the_loss_at_the_iterate_is_the_recorded_one(run):
    evaluator = Evaluator(run.training)
    with evaluator.session():
        for one in run.records:
            assert evaluator.loss(one) == one.loss


def test_losses_do_not_depend_on_the_order_in_which_they_are_evaluated(run):
    evaluator, x = Evaluator(run.training), elsewhere(run)
    with evaluator.session():
        forth = [evaluator.loss(one, x) for one in run.records]
        back = [evaluator.loss(one, x) for one in reversed(run.records)]
    assert forth == back[::-1]


def test_a_loss_of_the_users_own(plain):
    evaluator, x = Evaluator(plain.training, plain_loss), elsewhere(plain)
    brute = copy.copy(plain.brute)
    brute.loss = plain_loss
    with evaluator.session():
        for one, slow in zip(plain.records, plain.slow, strict=True):
            assert evaluator.loss(one, x) == brute.window(slow, x)[0]


def test_another_batch_in_the_state_of_the_step(plain):
    """The recorded batch of one step, in the state of another: the copy is given that batch."""
    evaluator, x = Evaluator(plain.training), elsewhere(plain)
    here, there = plain.slow[1], plain.slow[4]
    swapped = copy.copy(here)
    micro = copy.copy(here.micro_batches[0])
    micro.args = (there.micro_batches[0].args[0], micro.args[1])
    swapped.micro_batches = [micro]
    with evaluator.session():
        other = evaluator.with_batch(plain.records[1], there.micro_batches[0].args[0])
        assert evaluator.loss(other, x) == plain.brute.window(swapped, x)[0]
        assert evaluator.loss(plain.records[1], x) == plain.brute.window(here, x)[0]


# --------------------------------------------------------------------------------------- gradients


def test_a_gradient_elsewhere_is_that_of_a_copy(run):
    evaluator, x = Evaluator(run.training), elsewhere(run)
    with evaluator.session():
        for one, slow in zip(run.records, run.slow, strict=True):
            loss, gradient = evaluator.gradient(one, x)
            expected, by_hand = run.brute.window(slow, x, gradient=True)
            by_hand = {n: g for n, g in by_hand.items() if n in gradient.raw}
            assert loss == expected
            found = {name: gradient.factor * part for name, part in gradient.raw.items()}
            assert_close(found, by_hand)


def test_the_gradient_at_the_iterate_is_the_recorded_one(run):
    evaluator = Evaluator(run.training)
    with evaluator.session():
        for one in run.records:
            _, again = evaluator.gradient(one)
            assert again.factor == one.gradient.factor
            assert all(torch.equal(again.raw[name], g) for name, g in one.gradient.raw.items())


def test_products_are_dot_products_of_flat_vectors(run):
    evaluator, x_p = Evaluator(run.training), elsewhere(run)
    for one in run.records:
        names = list(x_p)
        away = flat({n: one.x[n] for n in names}) - flat({n: x_p[n] for n in names})
        g = one.gradient.factor * flat(
            {n: one.gradient.raw.get(n, torch.zeros_like(one.x[n])) for n in names}
        )
        found = evaluator.products(one, x_p)
        assert found.inner_product == pytest.approx(float(torch.dot(g, away)), rel=1e-5)
        assert found.sq_distance == pytest.approx(float(torch.dot(away, away)), rel=1e-6)
        assert evaluator.sq_norm(one.gradient) == pytest.approx(float(torch.dot(g, g)), rel=1e-6)


def test_products_of_another_gradient(plain):
    evaluator, x_p, one = Evaluator(plain.training), elsewhere(plain), plain.records[2]
    twice = Gradient(one.gradient.raw, 2 * one.gradient.factor)
    found = evaluator.products_of(one, twice, x_p)
    expected = evaluator.products(one, x_p)
    assert found.inner_product == 2 * expected.inner_product
    assert found.sq_distance == expected.sq_distance


# -------------------------------------------------------------------------------------- parameters


def test_inside_of_at_the_parameters_are_x(plain):
    evaluator, x = Evaluator(plain.training), elsewhere(plain)
    before = plain.training.present()
    with evaluator.session():
        with evaluator.at(plain.records[0], x):
            assert torch.equal(flat(plain.training.present()), flat(x))
        with evaluator.at(plain.records[3]):
            assert torch.equal(flat(plain.training.present()), flat(plain.records[3].x))
    assert torch.equal(flat(plain.training.present()), flat(before))


def test_at_gives_parameters_back_after_an_exception(plain):
    evaluator, x = Evaluator(plain.training), elsewhere(plain)
    before = plain.training.present()
    with pytest.raises(ValueError, match="no idea"), evaluator.at(plain.records[0], x):
        raise ValueError("no idea")
    assert torch.equal(flat(plain.training.present()), flat(before))
    session, at = evaluator.session(), evaluator.at(plain.records[0], x)
    with pytest.raises(ValueError, match="no idea"), session, at:
        raise ValueError("no idea")
    assert torch.equal(flat(plain.training.present()), flat(before))


def test_parameters_that_are_not_x_are_those_of_the_step():
    run = record(TargetInParameters)
    evaluator = Evaluator(run.training)
    with evaluator.session(), evaluator.at(run.records[2], elsewhere(run)):
        target = run.module.target.weight.clone()
    assert torch.equal(target, run.slow[2].before["target.weight"])
    assert torch.equal(evaluator.iterate(run.records[2])["target.weight"], target)


@pytest.mark.parametrize("fails", [False, True])
def test_a_session_leaves_everything_as_it_was(run, fails):
    evaluator, x = Evaluator(run.training), elsewhere(run)
    before, held = whole_state(run), run.module.losses
    try:
        with evaluator.session():
            for one in run.records:
                evaluator.gradient(one, x)
                run.module.counts["steps"] += 100
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert_same(before, whole_state(run))
    assert run.module.losses is held


def test_an_interrupt_while_parameters_are_put_back_is_mended(plain, monkeypatch):
    from lightning_landscape.vectors import parameters

    evaluator, x, before = Evaluator(plain.training), elsewhere(plain), plain.training.present()
    assign, calls = parameters.assign, []

    def interrupted(targets, values):
        calls.append(1)
        if len(calls) == 2:  # the first one puts x in place, the second one puts it back
            raise KeyboardInterrupt
        assign(targets, values)

    monkeypatch.setattr(parameters, "assign", interrupted)
    with pytest.raises(KeyboardInterrupt), evaluator.at(plain.records[0], x):
        pass
    evaluator.recover()
    assert torch.equal(flat(plain.training.present()), flat(before))


# ------------------------------------------------------------------------------- what is not there


def test_what_a_record_lacks_is_said(plain):
    evaluator, x, one = Evaluator(plain.training), elsewhere(plain), plain.records[1]
    with pytest.raises(NotMeasurable, match="the parameters of step 1 are not recorded"):
        evaluator.iterate(replace(one, x=None))
    with pytest.raises(NotMeasurable, match="the gradient of step 1 is not recorded"):
        evaluator.products(replace(one, gradient=None), x)
    part = {name: value for name, value in one.x.items() if name != "net.4.bias"}
    with pytest.raises(NotMeasurable, match=r"\['net.4.bias'\] at step 1"):
        evaluator.products(replace(one, x=part), x)


def test_the_present_parameters_are_evaluated_outside_of_a_session(plain):
    evaluator, before = Evaluator(plain.training, plain_loss), whole_state(plain)
    loss, gradient = evaluator.at_present(plain.records[0].moments)
    assert_same(before, whole_state(plain))
    brute = copy.copy(plain.brute)
    brute.loss = plain_loss
    expected, by_hand = brute.window(plain.slow[0], plain.training.present(), gradient=True)
    assert loss == expected
    assert_close({name: gradient.factor * part for name, part in gradient.raw.items()}, by_hand)
