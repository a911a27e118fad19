"""The bounds for smooth convex functions against PEPit's exact worst case."""

import pytest

pytest.importorskip("PEPit")

from PEPit import PEP
from PEPit.functions import SmoothConvexFunction

from lightning_landscape.bounds import functional as B


def worst_case(step_sizes, smoothness):
    """Return the largest best-iterate gap of gradient descent.

    The maximum is over all L-smooth convex functions with D_0 ≤ 1.
    """
    problem = PEP()
    function = problem.declare_function(SmoothConvexFunction, L=smoothness)
    minimizer = function.stationary_point()
    x = problem.set_initial_point()
    problem.set_initial_condition((x - minimizer) ** 2 <= 1)
    for step_size in step_sizes:
        # PEPit takes the smallest of several metrics
        problem.set_performance_metric(function(x) - function(minimizer))
        x = x - step_size * function.gradient(x)
    return problem.solve(wrapper="cvxpy", verbose=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("smoothness", "share"), [(1.0, 0.1), (1.0, 0.5), (1.0, 0.9), (3.0, 0.5)])
def test_no_smooth_convex_function_is_above_the_bounds(smoothness, share, steps):
    γ = share / smoothness
    worst = worst_case([γ] * steps, smoothness)
    assert worst > 0.05 / steps  # the worst case is not trivial
    # f_i = f: σ² = 0, α = 1, β = 0
    k = {"steps": steps, "step_size": γ, "alpha": 1.0, "beta": 0.0, "smoothness": smoothness}
    k |= {"sq_distance": 1.0, "interpolation_error": 0.0}
    assert worst <= float(B.gradient_descent(**k)) + 1e-6
    assert worst <= float(B.sgd_sharp(**k)) + 1e-6
    if share <= 0.5:
        assert worst <= float(B.sgd(**k)) + 1e-6


@pytest.mark.filterwarnings("ignore")
def test_schedules_too():
    import torch

    steps = [0.9, 0.3, 0.6, 0.1]
    k = {
        "alpha": 1.0,
        "beta": 0.0,
        "smoothness": 1.0,
        "sq_distance": 1.0,
        "interpolation_error": 0.0,
    }
    assert (
        worst_case(steps, 1.0) <= float(B.sgd_schedule(step_sizes=torch.tensor(steps), **k)) + 1e-6
    )
    falling = [0.5 / (j + 1) ** 0.5 for j in range(4)]
    assert worst_case(falling, 1.0) <= float(B.sgd_decreasing(steps=4, step_size=0.5, **k)) + 1e-6
