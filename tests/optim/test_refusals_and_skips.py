"""Refusals with their messages, and skipped steps."""

import copy
from math import inf, nan

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from lightning_landscape.optim import NGN, AdaGradNormMax, DecSPS, SPSMax
from tests.optim.problems import METHODS, OF_THE_LOSS


def parameter(*values, gradient=None):
    p = torch.nn.Parameter(torch.tensor(values))
    p.grad = None if gradient is None else torch.tensor(gradient)
    return p


def snapshot(optimizer):
    return copy.deepcopy(
        (
            optimizer.state_dict(),
            [p.detach().tolist() for g in optimizer.param_groups for p in g["params"]],
        )
    )


@pytest.fixture(params=METHODS)
def started(request):
    """Return an optimizer after one step, with gradients."""
    p = parameter(1.0, 2.0, gradient=[1.0, 1.0])
    optimizer = METHODS[request.param]([p])
    optimizer.step(loss=0.5)
    assert optimizer.step_size > 0
    return optimizer


@pytest.mark.parametrize(
    ("optimizer_class", "constants", "message"),
    [
        *[
            (METHODS[name], {"lr": lr}, f"`lr` is {float(lr)}")
            for name in METHODS
            for lr in (0, -1.0, nan, inf)
        ],
        *[(SPSMax, {"c": c}, f"`c` is {float(c)}") for c in (0, -1.0, nan, inf)],
        *[(DecSPS, {"c_init": c}, f"`c_init` is {float(c)}") for c in (0, -1.0, nan, inf)],
        *[(AdaGradNormMax, {"b_init": b}, f"`b_init` is {float(b)}") for b in (0, -1.0, nan, inf)],
        *[
            (METHODS[name], {"loss_infimum": low}, "`loss_infimum` is")
            for name in OF_THE_LOSS
            for low in (nan, -inf)
        ],
        (
            DecSPS,
            {"c_init": 1e200, "lr": 1e200},
            "`c_init · lr` is inf; supported are positive finite numbers",
        ),
        (AdaGradNormMax, {"b_init": 1e-200}, "`b_init²` is 0.0"),
    ],
)
def test_constants_out_of_range(optimizer_class, constants, message):
    with pytest.raises(ValueError, match=message):
        optimizer_class([parameter(1.0)], **constants)
    with pytest.raises(ValueError, match=message):
        optimizer_class([{"params": [parameter(1.0)], **constants}])


@pytest.mark.parametrize("name", METHODS)
def test_groups_that_disagree_are_refused_when_they_are_added(name):
    for constant in METHODS[name].constants:
        with pytest.raises(
            ValueError,
            match=rf"{name} found `{constant}` \[.*, 0.25\] .* share one scalar step size",
        ):
            METHODS[name](
                [{"params": [parameter(1.0)]}, {"params": [parameter(1.0)], constant: 0.25}]
            )
    optimizer = METHODS[name]([parameter(1.0)])
    with pytest.raises(ValueError, match="share one scalar step size"):
        optimizer.add_param_group({"params": [parameter(1.0)], "lr": 0.5})
    assert len(optimizer.param_groups) == 1


def test_groups_that_agree_with_each_other_need_not_agree_with_the_constructor():
    optimizer = SPSMax([{"params": [p], "c": 0.5} for p in (parameter(1.0), parameter(1.0))])
    assert [group["c"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_a_late_group_takes_the_constants_as_they_are_now():
    optimizer = NGN([parameter(1.0, gradient=[1.0])], lr=0.8)
    optimizer.param_groups[0]["lr"] = 0.4  # as a scheduler does
    late = parameter(1.0, gradient=[1.0])
    optimizer.add_param_group({"params": late})
    optimizer.step(loss=1.0)
    assert optimizer.step_size == pytest.approx(0.4 / (1 + 0.4 * 2 / 2))
    assert late.item() == pytest.approx(1 - optimizer.step_size)


@pytest.mark.parametrize("name", METHODS)
def test_a_scheduler_with_different_lambdas_is_refused_at_the_step(name):
    optimizer = METHODS[name](
        [{"params": [parameter(1.0, gradient=[1.0])]}, {"params": [parameter(1.0)]}]
    )
    LambdaLR(optimizer, [lambda k: 1.0, lambda k: 0.5])
    before = snapshot(optimizer)
    with pytest.raises(
        ValueError, match=rf"{name} found `lr` \[1.0, 0.5\] .* a scheduler one lambda for all"
    ):
        optimizer.step(loss=1.0)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("lr", [-0.5, nan, inf])
def test_a_schedule_that_leaves_its_range_is_refused(lr, started):
    started.param_groups[0]["lr"] = lr
    with pytest.raises(ValueError, match="lr"):
        started.step(loss=1.0)


def test_dec_sps_refuses_a_warm_up_from_zero():
    optimizer = DecSPS([parameter(1.0, gradient=[1.0])])
    LambdaLR(optimizer, lambda k: k / 10)
    with pytest.raises(ValueError, match="`lr at the first step` is 0.0"):
        optimizer.step(loss=1.0)
    assert optimizer.step_size is None


@pytest.mark.parametrize("gradient", [[1.0], None])
@pytest.mark.parametrize("name", OF_THE_LOSS)
def test_without_closure_and_loss(name, gradient):
    optimizer = METHODS[name]([parameter(1.0, gradient=gradient)])
    before = snapshot(optimizer)
    message = (
        rf"{name} computes its step from the loss .* found neither a closure .* GradScaler .* "
        rf"{name}.step\(loss="
    )
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("name", OF_THE_LOSS)
def test_a_closure_that_keeps_its_loss_to_itself(name):
    optimizer = METHODS[name]([parameter(1.0, gradient=[1.0])])
    before = snapshot(optimizer)
    with pytest.raises(
        RuntimeError, match=f"{name} .* found a closure that returned None, and gradients"
    ):
        optimizer.step(lambda: None)
    assert snapshot(optimizer) == before


def test_adagrad_norm_max_needs_no_loss():
    p = parameter(1.0, gradient=[3.0])
    optimizer = AdaGradNormMax([p], lr=2.0, b_init=4.0)
    assert optimizer.step() is None
    assert optimizer.step_size == 2.0 / 5.0
    assert optimizer.step(lambda: None) is None
    assert optimizer.step_size == 2.0 / 34**0.5
    assert optimizer.step(lambda: 0.5) == 0.5
    assert optimizer.step(loss=-3.0) == -3.0
    assert p.item() == pytest.approx(1 - 3 * sum(2.0 / (16 + 9 * k) ** 0.5 for k in (1, 2, 3, 4)))


def test_two_losses_are_refused(started):
    before = snapshot(started)
    with pytest.raises(
        ValueError,
        match="found loss=1.0 and a closure that returned 2.0; supported is one of the two",
    ):
        started.step(lambda: 2.0, loss=1.0)
    assert snapshot(started) == before


def test_a_closure_that_returns_nothing_may_come_with_a_loss(started):
    twin = copy.deepcopy(started)
    twin.param_groups[0]["params"][0].grad = started.param_groups[0]["params"][0].grad.clone()
    assert started.step(lambda: None, loss=0.25) == 0.25
    twin.step(loss=0.25)
    assert snapshot(started) == snapshot(twin)


def test_a_closure_that_returns_none_without_gradients_is_nothing_to_do(started):
    started.zero_grad()
    before = snapshot(started)
    assert started.step(lambda: None) is None
    assert snapshot(started) == before


def test_the_closure_runs_once_and_with_gradients_enabled(started):
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        return 1.0

    with torch.no_grad():
        assert started.step(closure) == 1.0
    assert calls == [True]


@pytest.mark.parametrize("loss", [nan, inf, -inf])
def test_a_loss_that_is_not_finite_skips_the_step(started, loss):
    before = snapshot(started)
    tensor = torch.tensor(loss)
    assert started.step(loss=tensor) is tensor
    assert snapshot(started) == before
    started.step(lambda: loss)
    assert snapshot(started) == before


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_gradient_that_is_not_finite_skips_the_step(started, value):
    p = started.param_groups[0]["params"][0]
    p.grad = torch.tensor([1.0, value])
    before = snapshot(started)
    started.step(loss=1.0)
    assert snapshot(started) == before
    p.grad = torch.tensor([1.0, 1.0])
    started.step(loss=0.5)
    assert snapshot(started) != before


@pytest.mark.parametrize("name", OF_THE_LOSS)
def test_a_loss_below_its_infimum_is_refused(name):
    optimizer = METHODS[name]([parameter(1.0, gradient=[1.0])], loss_infimum=0.25)
    before = snapshot(optimizer)
    with pytest.raises(
        ValueError,
        match=rf"{name} found a loss of 0.125, below loss_infimum=0.25; .* a smaller loss_infimum=",
    ):
        optimizer.step(loss=0.125)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize(
    ("loss", "message"),
    [(torch.ones(2), r"shape \(2,\)"), ({"loss": 1.0}, "type dict"), ("a", "type str")],
)
def test_what_is_no_loss(started, loss, message):
    with pytest.raises(ValueError, match=message):
        started.step(loss=loss)


@pytest.mark.parametrize(
    ("optimizer_class", "low"),
    [(c, low) for c in (SPSMax, NGN, DecSPS) for low in (0.0, -2.0, 3.5)],
)
def test_a_loss_at_its_infimum(optimizer_class, low):
    flat = parameter(1.0, gradient=[0.0])
    optimizer = optimizer_class([flat], lr=0.75, loss_infimum=low)
    optimizer.step(loss=low)  # 0/0 in every formula
    assert optimizer.step_size == 0.75
    assert flat.item() == 1.0
    steep = parameter(1.0, gradient=[2.0])
    optimizer = optimizer_class([steep], lr=0.75, loss_infimum=low)
    optimizer.step(loss=low)
    assert optimizer.step_size == 0.0
    assert steep.item() == 1.0


def test_a_loss_at_its_infimum_when_a_scheduler_has_taken_lr_to_zero():
    p = parameter(1.0, gradient=[2.0])
    optimizer = NGN([p])
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(loss=0.0)  # 0 · ∞ in the formula
    assert (optimizer.step_size, p.item()) == (0.0, 1.0)


@pytest.mark.parametrize("name", OF_THE_LOSS)
def test_a_gradient_of_zero_moves_nothing_however_long_the_step(name):
    p = parameter(1.0, gradient=[0.0])
    optimizer = METHODS[name]([p], lr=1e300)  # beyond the range of the parameter's float32
    optimizer.step(loss=1.0)
    assert (optimizer.step_size, p.item()) == (1e300, 1.0)


def test_a_gradient_of_zero_counts_for_adagrad_norm_max():
    p = parameter(1.0, gradient=[0.0])
    optimizer = AdaGradNormMax([p], b_init=2.0)
    optimizer.step()
    assert (optimizer.step_size, p.item()) == (0.5, 1.0)


@pytest.mark.parametrize("lr", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("gradient", [0.0, 5e-324, 1e-160, 1.0, 1e150])
@pytest.mark.parametrize("loss", [0.0, 5e-324, 1.0, 1e308])
def test_no_nan_at_the_ends_of_float64(lr, gradient, loss):
    for optimizer_class in METHODS.values():
        p = torch.nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
        p.grad = torch.tensor([gradient, 0.0], dtype=torch.float64)
        optimizer = optimizer_class([p], lr=lr)
        for _ in range(2):
            optimizer.step(loss=loss)
            assert 0 <= optimizer.step_size <= lr
            assert not p.isnan().any()
