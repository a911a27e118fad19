"""Bounds on the step sizes from the papers, for random L-smooth losses bounded below by l."""

from math import sqrt

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.optim import NGN, AdaGradNormMax, DecSPS, SPSMax

K = 12
ROUNDING = 1e-7


class Quadratics:
    """f_i(x) = ‖B_i(x − z_i)‖²/2 + s_i with infimum s_i."""

    def __init__(self, random, infimum, scale):
        count, size = 3, int(random.integers(1, 4))
        self.b = torch.tensor(random.normal(size=(count, size, size)) * scale)
        self.z = torch.tensor(random.normal(size=(count, size)))
        self.s = torch.tensor(
            infimum + random.exponential(size=count) * (random.random(count) < 0.7)
        )
        self.smoothness = max(float(torch.linalg.matrix_norm(b, 2)) ** 2 for b in self.b)
        self.start = torch.tensor(random.normal(size=size))

    def __call__(self, x, i):
        return 0.5 * (self.b[i] @ (x - self.z[i])).square().sum() + self.s[i]


class Logistics:
    """Mean logistic loss of a few points, shifted to have its lower bound at l."""

    def __init__(self, random, infimum, scale):
        size = int(random.integers(1, 4))
        self.points = torch.tensor(random.normal(size=(3, 2, size)) * scale)
        self.infimum = infimum
        self.smoothness = float(self.points.square().sum(-1).mean(-1).max()) / 4
        self.start = torch.tensor(random.normal(size=size))

    def __call__(self, x, i):
        return -torch.nn.functional.logsigmoid(self.points[i] @ x).mean() + self.infimum


@st.composite
def problems(draw, infimum=True):
    """Draw a problem and its l."""
    low = draw(st.sampled_from([0.0, -1.0, 2.5])) if infimum else 0.0
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return draw(st.sampled_from([Quadratics, Logistics]))(
        random, low, 10.0 ** draw(st.integers(-2, 2))
    ), low


constants = st.floats(-3, 3).map(lambda power: 10.0**power)


def run(problem, low, make):
    """Yield (optimizer, loss, G²) after each step while a − l has enough correct digits."""
    x = torch.nn.Parameter(problem.start.clone())
    optimizer = make([x])
    for k in range(K):
        optimizer.zero_grad()
        loss = problem(x, k % 3)
        loss.backward()
        if low and loss.item() - low < 1e-6:
            return
        sq_norm = x.grad.square().sum().item()
        optimizer.step(loss=loss.detach())
        yield optimizer, loss.item(), sq_norm


def at_most(small, large):
    return small <= large * (1 + ROUNDING)


@given(problems(), constants, constants)
def test_sps_max(problem_and_infimum, lr, c):
    problem, low = problem_and_infimum
    for optimizer, *_ in run(
        problem, low, lambda params: SPSMax(params, lr=lr, c=c, loss_infimum=low)
    ):
        assert at_most(min(1 / (2 * c * problem.smoothness), lr), optimizer.step_size)
        assert optimizer.step_size <= lr


@given(problems(), constants)
def test_ngn(problem_and_infimum, lr):
    problem, low = problem_and_infimum
    for optimizer, *_ in run(problem, low, lambda params: NGN(params, lr=lr, loss_infimum=low)):
        assert at_most(lr / (1 + lr * problem.smoothness), optimizer.step_size)
        assert optimizer.step_size <= lr


@given(problems(), constants, constants)
def test_dec_sps(problem_and_infimum, lr, c_init):
    problem, low = problem_and_infimum
    before = lr
    for k, (optimizer, loss, sq_norm) in enumerate(
        run(problem, low, lambda params: DecSPS(params, lr=lr, c_init=c_init, loss_infimum=low))
    ):
        weighted = c_init * sqrt(k + 1) * optimizer.step_size
        assert optimizer.step_size <= before * (1 + 1e-15)
        assert at_most(min(1 / (2 * problem.smoothness), c_init * lr), weighted)
        assert sq_norm == 0 or at_most(weighted, (loss - low) / sq_norm)
        before = optimizer.step_size


@given(problems(infimum=False), constants, constants)
def test_adagrad_norm_max(problem_and_infimum, lr, b_init):
    problem, low = problem_and_infimum
    sq_norms, before = [], b_init**2
    for k, (optimizer, _, sq_norm) in enumerate(
        run(problem, low, lambda params: AdaGradNormMax(params, lr=lr, b_init=b_init))
    ):
        sq_norms.append(sq_norm)
        b_sq = optimizer.param_groups[0]["b_sq"]
        assert b_sq >= before
        assert at_most(optimizer.step_size, lr / sqrt(b_init**2 + sq_norms[0] * (k + 1)))
        assert at_most(b_sq, b_init**2 + max(sq_norms) * (k + 1))
        before = b_sq


@given(constants, constants, constants, st.floats(0, 1), st.floats(0, 1))
def test_the_lemma_of_ngn(lr, smoothness, loss, infimum_share, steepness):
    infimum = infimum_share * loss
    sq_norm = steepness * 2 * smoothness * (loss - infimum)
    x = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    x.grad = torch.tensor([sqrt(sq_norm)], dtype=torch.float64)
    optimizer = NGN([x], lr=lr)
    optimizer.step(loss=loss)
    step, scaled = optimizer.step_size, lr * smoothness
    slack = 4 * scaled / (1 + 2 * scaled) * step * (loss - infimum)
    noise = 2 * lr * scaled / (1 + scaled) * max((2 * scaled - 1) / (2 * scaled + 1), 0) * infimum
    assert at_most(step**2 * sq_norm, slack + noise)


def test_the_ends_of_the_intervals_are_reached():
    """A sphere has G² = 2L(a − l), so every step is the shortest that smoothness allows."""
    for smoothness in (0.1, 4.0):
        for make, expected in [
            (lambda params: SPSMax(params, lr=100.0, c=0.7), 1 / (1.4 * smoothness)),
            (lambda params: NGN(params, lr=100.0), 100 / (1 + 100 * smoothness)),
            (lambda params: DecSPS(params, lr=100.0, c_init=2.0), 1 / (4 * smoothness)),
        ]:
            x = torch.nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
            optimizer = make([x])
            loss = 0.5 * smoothness * x.square().sum()
            loss.backward()
            optimizer.step(loss=loss.item())
            assert abs(optimizer.step_size / expected - 1) < 1e-12
