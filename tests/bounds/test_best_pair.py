"""The best pair against a dense numerical minimization over δ, on random tables."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lightning_landscape.bounds import functional as B
from lightning_landscape.functional._envelope import FeasibleSet, Row
from lightning_landscape.functional._fractional import RATIO, LinearFractional

value = st.floats(-3, 3).map(lambda x: Fraction(round(x, 3)))
positive = st.floats(0.05, 5)
row = st.tuples(
    value, st.floats(0.01, 3).map(lambda x: Fraction(round(x, 3))) | st.just(Fraction(0)), value
).filter(
    lambda r: r[0] >= -r[1]  # a ≥ l
)
tables = st.lists(row.map(lambda r: Row(*r)), min_size=1, max_size=8)
common = st.fixed_dictionaries(
    {"smoothness": positive, "sq_distance": positive, "interpolation_error": st.floats(0, 3)}
)


def shapes(k, gamma, other, steps):
    """Return the shape of every theorem for some constants."""
    sgd = {"steps": steps, "step_size": gamma, **k}
    ngn = {**sgd, "positivity_error": other}
    sps = {"steps": steps, "c": other, "step_size_bound": gamma, **k}
    dec = {"steps": steps, "c_init": other, "c_last": 3 * other, "step_size_bound": gamma}
    dec |= {"inverse_c_sum": 0.9 * steps / other, "max_sq_distance": k["sq_distance"]}
    dec |= {"smoothness": k["smoothness"], "interpolation_error": k["interpolation_error"]}
    ada = {**sgd, "b_init": other, "grad_bound": 2.0, "grad_min": 0.0}
    sums = {"step_size_sum": gamma, "sq_step_sum": other, "excess_sum": 1.0}
    sums |= {"sq_distance": k["sq_distance"], "final_sq_distance": 0.0}
    bounds = {
        "sgd": B.SGD(**sgd),
        "sgd_sharp": B.SGDSharp(**sgd),
        "sgd_decreasing": B.SGDDecreasing(**sgd),
        "sgd_schedule": B.SGDSchedule(step_sizes=torch.tensor([gamma, gamma / 2, gamma / 7]), **k),
        "gradient_descent": B.GradientDescent(**sgd),
        "sps_max": B.SPSMax(**sps),
        "sps_max_sharp": B.SPSMaxSharp(**sps),
        "dec_sps": B.DecSPS(**dec),
        "dec_sps_sharp": B.DecSPSSharp(**dec),
        "ngn": B.NGN(**ngn),
        "ngn_sharp": B.NGNSharp(**ngn),
        "ngn_decreasing": B.NGNDecreasing(**ngn),
        "adagrad_norm_max": B.AdaGradNormMax(**ada),
        "adagrad_norm_max_sharp": B.AdaGradNormMaxSharp(**ada),
        "trajectory": B.Trajectory(**sums),
    }
    return {"ratio": RATIO, **{name: bound.shape() for name, bound in bounds.items()}}


def on_the_boundary(rows, shape, deltas):
    """Evaluate a bound at each δ with the smallest admissible β, in floats."""
    deltas = np.asarray(deltas, dtype=float)
    beta, possible = np.zeros_like(deltas), np.ones_like(deltas, dtype=bool)
    for rise, excess, product in ((float(a), float(b), float(p)) for a, b, p in rows):
        if excess > 0:
            beta = np.maximum(beta, (deltas * rise - product) / excess)
        else:
            possible &= product >= rise * deltas
    below = float(shape.slope) * deltas - float(shape.offset)
    possible &= (
        deltas >= float(shape.least_rate) if shape.closed else deltas > float(shape.least_rate)
    ) & (below > 0)
    above = (
        float(shape.distance + shape.noise)
        + float(shape.noise_rate) * deltas
        + float(shape.spread) * beta
    )
    return np.where(possible, above / np.where(possible, below, 1.0), np.inf)


def densely(rows, shape):
    """Minimize over δ on a dense grid, and refine around its best point."""
    low = float(shape.least_rate)
    grid = np.concatenate([low + np.geomspace(1e-9, 1e12, 20_000), [low] if low else []])
    ends = [float(p / a) for a, b, p in rows if b == 0 and a > 0 and p > 0]
    # rounding may put an end outside the feasible set: take a point just inside as well
    grid = np.sort(np.concatenate([grid, ends, np.multiply(ends, 1 - 1e-12)]))
    values = on_the_boundary(rows, shape, grid)
    if not np.isfinite(values).any():
        return np.inf
    best = int(values.argmin())
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(
        lambda d: min(float(on_the_boundary(rows, shape, [d])[0]), 1e300),
        bounds=around,
        method="bounded",
    )
    return min(values[best], found.fun)


NAMES = list(
    shapes({"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 1.0}, 1.0, 1.0, 10)
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(rows=tables, k=common, gamma=positive, other=positive, steps=st.integers(1, 1000))
def test_no_pair_on_a_dense_grid_is_better_and_the_reported_one_is_as_good(
    name, rows, k, gamma, other, steps
):
    shape = shapes(k, gamma, other, steps)[name]
    region = FeasibleSet.of(rows)
    if region.rate_max is not None:  # floats cannot tell two ends of δ that nearly coincide
        assume(not 0 < abs(region.rate_max - shape.least_rate) < 1e-9 * region.rate_max)
    best, dense = region.minimise(shape), densely(rows, shape)
    if best.value is None:
        assert not np.isfinite(dense)
        return
    assert float(best.value) <= dense * (1 + 1e-9) + 1e-12
    assert dense <= float(best.value) * (1 + 1e-4) + 1e-4
    if best.pair is not None:
        rate, beta = best.pair
        assert region.beta_min(rate) == beta
        assert shape.allows(rate)
        assert shape.at(rate, beta) == best.value
        assert sum(shape.parts(rate, beta)) == best.value


def region(*rows):
    return FeasibleSet.of([Row(*map(Fraction, row)) for row in rows])


def test_ties_take_the_largest_rate_of_a_bounded_one_else_its_left_end():
    flat = LinearFractional(
        distance=Fraction(0), spread=Fraction(1), least_rate=Fraction(1, 2), closed=True
    )
    # β_min = max(0, δ − 1): β = 0 ties on (0, 1]
    assert region((1, 1, 1)).minimise(flat).pair == (1, 0)
    # β_min = max(2 − δ, δ): β/δ = 1 ties on [1, ∞)
    assert region((-1, 1, -2), (1, 1, 0)).minimise(flat).pair == (1, 1)
    # a probe with b = l ends the tie
    assert region((-1, 1, -2), (1, 1, 0), (1, 0, 3)).minimise(flat).pair == (3, 3)


def sgd(bound, *, step_size, sq_distance=1.0):
    """Return the shape of a bound of SGD after ten steps with L = σ² = 1."""
    constants = {"smoothness": 1.0, "interpolation_error": 1.0, "sq_distance": sq_distance}
    return bound(steps=10, step_size=step_size, **constants).shape()


def test_a_closed_limit_is_taken_and_an_open_one_is_not():
    rows = region((1, 1, -1))  # β_min = δ + 1: every bound with an initial distance falls in δ
    closed = sgd(B.SGD, step_size=1.0)
    assert rows.minimise(closed).pair is None
    assert rows.minimise(closed).value == 2  # spread · slope
    # β_min = max(0, 5δ − 9): 0 up to 9/5, which is below the step-size condition δ ≥ 2
    steep = region((5, 1, 9))
    assert steep.minimise(closed).pair == (2, 1)
    pair = steep.minimise(sgd(B.SGDSharp, step_size=2.0, sq_distance=0.0)).pair
    assert pair is None or pair[0] > 2


def test_no_pair_meets_the_condition():
    rows = region((1, 0, 1))  # δ ≤ 1
    assert rows.minimise(sgd(B.SGD, step_size=1.0)) == (None, None, None)
    assert rows.minimise(sgd(B.SGD, step_size=0.5)).pair == (1, 0)


def test_an_open_end_is_named_with_what_the_bound_tends_to_there():
    rows = region((1, 1, 1))
    line = rows.lines[-1]
    bound = LinearFractional(spread=Fraction(1), least_rate=Fraction(2))
    assert line.intercept < 0  # β/δ rises along it: the best δ is the smallest, and is excluded
    assert rows.minimise(bound) == (
        None,
        line.at(Fraction(2)) / 2,
        (Fraction(2), line.at(Fraction(2))),
    )
