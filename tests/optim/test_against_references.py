"""Each optimizer step by step against the formula of the paper, with gradients by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, StepLR

from lightning_landscape.optim import NGN, DecSPS, SPSMax
from tests.optim.problems import METHODS, Logistic, Perceptron, closure_of, leaves, reference_along

STEPS = 60
CAPPED_AT_TIMES = {"lr": 4.0, "c": 2.0, "loss_infimum": -0.25}
FALLING_AT_TIMES = {"lr": 20.0, "c_init": 0.3, "loss_infimum": -0.25}
CASES = [
    ("SPSMax", {}),
    ("SPSMax", CAPPED_AT_TIMES),
    ("DecSPS", {}),
    ("DecSPS", FALLING_AT_TIMES),
    ("NGN", {}),
    ("NGN", {"lr": 4.0, "loss_infimum": -0.25}),
    ("AdaGradNormMax", {}),
    ("AdaGradNormMax", {"lr": 0.4, "b_init": 0.05}),
]


def run(name, problem, batches, by_loss=False, scheduler=None, **constants):
    """Return step sizes and all points of a run with one group per parameter."""
    parameters = leaves(problem)
    optimizer = METHODS[name]([{"params": [p]} for p in parameters], **constants)
    schedule = scheduler(optimizer) if scheduler else None
    steps, path = [], [problem.start]
    for batch in batches:
        closure = closure_of(optimizer, problem, parameters, batch)
        if by_loss:
            loss = closure().item()
            assert optimizer.step(loss=loss) == loss
        else:
            assert isinstance(optimizer.step(closure), torch.Tensor)
        if schedule:
            schedule.step()
        steps.append(optimizer.step_size)
        path.append([p.detach().numpy().copy() for p in parameters])
    return steps, path


def assert_follows_the_formula(
    name, problem, batches, schedule=lambda k: 1.0, by_loss=False, scheduler=None, **constants
):
    """Compare every step with the formula's."""
    steps, path = run(name, problem, batches, by_loss, scheduler, **constants)
    expected, reached = reference_along(name, problem, path[:-1], batches, schedule, **constants)
    np.testing.assert_allclose(steps, expected, rtol=1e-10)
    for mine, reference in zip(path[1:], reached, strict=True):
        for p, q in zip(mine, reference, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("by_loss", [False, True], ids=["closure", "loss"])
@pytest.mark.parametrize("problem_class", [Logistic, Perceptron])
@pytest.mark.parametrize(("name", "constants"), CASES)
def test_steps_and_parameters_are_those_of_the_formula(name, constants, problem_class, by_loss):
    problem = problem_class()
    batches = [problem.draw() for _ in range(STEPS)]
    assert_follows_the_formula(name, problem, batches, by_loss=by_loss, **constants)


def test_both_branches_of_every_minimum_are_taken_above():
    problem = Logistic()
    batches = [problem.draw() for _ in range(STEPS)]
    capped = [step == 4.0 for step in run("SPSMax", problem, batches, **CAPPED_AT_TIMES)[0]]
    assert 5 < sum(capped) < STEPS - 5
    steps, _ = run("DecSPS", problem, batches, **FALLING_AT_TIMES)
    weighted = [step * (k + 1) ** 0.5 for k, step in enumerate(steps)]
    fell = [after < before * 0.999 for before, after in pairwise(weighted)]
    assert 1 <= sum(fell) < STEPS - 5


@pytest.mark.parametrize("name", METHODS)
def test_a_scheduler_scales_lr(name):
    problem = Perceptron()
    batches = [problem.draw() for _ in range(STEPS)]

    def decay(k):
        return (k + 1) ** -0.5

    # the formula of DecSPS has lr at the first step only
    assert_follows_the_formula(
        name,
        problem,
        batches,
        decay,
        scheduler=lambda optimizer: LambdaLR(optimizer, decay),
        lr=2.0,
    )


def test_chainable_schedulers_move_all_groups_alike():
    problem = Logistic()
    batches = [problem.draw() for _ in range(STEPS)]
    assert_follows_the_formula(
        "NGN",
        problem,
        batches,
        lambda k: 0.5 ** (k // 10),
        scheduler=lambda optimizer: StepLR(optimizer, 10, 0.5),
    )


@pytest.mark.parametrize(
    ("name", "last"), [("SPSMax", 0), ("NGN", 0), ("AdaGradNormMax", 0), ("DecSPS", 0.5 / 3**0.5)]
)
def test_a_scheduler_may_take_lr_to_zero(name, last):
    x = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = METHODS[name]([x])
    schedule = LambdaLR(optimizer, lambda k: float(k == 0))
    path = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (0.5 * x**2).sum()
        loss.backward()
        optimizer.step(loss=loss)
        schedule.step()
        path.append(x.item())
    assert optimizer.step_size == pytest.approx(last)
    assert path[0] < 2.0
    assert (path[1] == path[2]) == (last == 0)


def test_the_norm_is_that_of_all_groups_dtypes_and_layouts():
    half = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    single = torch.nn.Parameter(torch.ones(2))
    double = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    table = torch.nn.Embedding(4, 2, sparse=True)
    complex_one = torch.nn.Parameter(torch.ones(1, dtype=torch.complex64))
    optimizer = SPSMax(
        [{"params": [half, table.weight]}, {"params": [single, complex_one]}, {"params": [double]}],
        lr=1e6,
    )
    half.grad, single.grad = torch.full_like(half, 2.0), torch.full_like(single, 0.1)
    double.grad, complex_one.grad = (
        torch.full_like(double, -1.0),
        torch.full_like(complex_one, 3 + 4j),
    )
    table(torch.tensor([1, 1, 2])).sum().backward()
    before = table.weight.detach().clone()
    # rows 1 and 2 of the table have gradients 2 and 1: the repeated index counts as the sum
    sq_norm = 3 * 4 + 2 * float(torch.tensor(0.1)) ** 2 + 4 * 1 + 25 + 2 * (4 + 1)
    optimizer.step(loss=7.0)
    assert optimizer.step_size == pytest.approx(7.0 / sq_norm, rel=1e-15)
    gamma = optimizer.step_size
    assert torch.equal(double.detach(), torch.full_like(double, 1.0 + gamma))
    assert complex_one.item() == pytest.approx(1 - gamma * (3 + 4j), rel=1e-6)
    moved = (before - table.weight.detach()) / gamma
    torch.testing.assert_close(
        moved, torch.tensor([0.0, 2, 1, 0])[:, None].expand(4, 2), rtol=1e-5, atol=1e-5
    )
    assert half.dtype == torch.bfloat16
    assert half[0].item() == torch.tensor(1 - 2 * gamma).bfloat16().item()


def test_squares_below_the_parameters_precision_count():
    x = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    x.grad = torch.full_like(x, 2.0**-14)  # the square is 0 in float16
    optimizer = NGN([x], lr=2.0**20)  # and such a step size is infinite in float16
    optimizer.step(loss=1.0)
    assert optimizer.step_size == 2.0**20 / (1 + 2.0**20 * 2.0**-27 / 2)
    assert x.tolist() == [torch.tensor(-optimizer.step_size * 2.0**-14).half().item()] * 2


def test_sparse_gradients_train_as_dense_ones():
    ends = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(6, 3, sparse=sparse, dtype=torch.float64)
        optimizer = DecSPS(table.parameters())
        for k in range(10):
            optimizer.zero_grad()
            loss = table(torch.tensor([k % 6, k % 6, (2 * k) % 6])).square().sum()
            loss.backward()
            optimizer.step(loss=loss)
        ends.append(table.weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-13, atol=0)
