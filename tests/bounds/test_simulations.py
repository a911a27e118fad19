"""Simulated runs of every method stay below its theorem's bound.

They use many seeds, exact constants, and batches that are drawn independently.
"""

import math
from functools import cache

import pytest
import torch

from lightning_landscape.bounds import functional as B
from tests.bounds.problems import PROBLEMS, D
from tests.helpers.slow import some

SEEDS, STEPS = 200, 60


@cache
def problem(name):
    return PROBLEMS[name]()


class Recorded:
    """Results of one method over many seeds."""

    def __init__(self, gap, max_sq_distance, grad_bound, steps):
        self.gap = gap
        """Mean over seeds of f(x_k) − f*, shape (K,)"""
        self.max_sq_distance, self.grad_bound, self.steps = max_sq_distance, grad_bound, steps


def simulate(p, rule, steps=STEPS, seeds=SEEDS):
    """Run a method for many seeds at once.

    ``rule`` returns the step sizes from k, loss − infimum, loss and squared gradient norm.
    """
    generator = torch.Generator().manual_seed(0)
    x = p.start.expand(seeds, -1).clone()
    gaps, largest, grad_bound = [], torch.zeros(seeds, dtype=D), 0.0
    for k in range(steps):
        gaps.append((p.full(x) - p.f_star).mean())
        largest = largest.maximum(p.sq_distance(x))
        i = torch.randint(p.count, (seeds,), generator=generator)
        loss, g = p.losses(x, i), p.gradients(x, i)
        squares = g.square().sum(1)
        grad_bound = max(grad_bound, float(squares.max().sqrt()))
        x = x - rule(k, loss - p.infima[i], loss, squares).unsqueeze(1) * g
    return Recorded(torch.stack(gaps), float(largest.mean()), grad_bound, steps)


def assert_stays_below(record, bound):
    """Assert that the best of the first K iterates is below the bound of K steps, for every K."""
    compared = 0
    for steps in (1, 2, 5, 20, record.steps):
        value = bound(steps)
        if value is not None:
            assert float(record.gap[:steps].min()) <= float(value) * (1 + 1e-9)
            compared += 1
    assert compared


def constants(p):
    sq_distance = float(p.sq_distance(p.start.unsqueeze(0)))
    return {
        "smoothness": p.smoothness,
        "sq_distance": sq_distance,
        "interpolation_error": p.sigma_sq,
    }


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", PROBLEMS)
def test_sgd(name, share):
    p = problem(name)
    for α, β in p.pairs:
        γ = share * (α - β) / p.smoothness
        record = simulate(p, lambda *_, γ=γ: torch.full((SEEDS,), γ, dtype=D))
        pair = {"alpha": α, "beta": β, **constants(p)}
        assert_stays_below(
            record, lambda K, γ=γ, pair=pair: B.sgd_sharp(steps=K, step_size=γ, **pair)
        )
        if share <= 0.5:
            assert_stays_below(
                record, lambda K, γ=γ, pair=pair: B.sgd(steps=K, step_size=γ, **pair)
            )


@pytest.mark.parametrize("name", PROBLEMS)
def test_sgd_decreasing_and_any_schedule(name):
    p = problem(name)
    for α, β in p.pairs:
        γ_0 = 0.5 * (α - β) / p.smoothness * (1 - 1e-9)
        record = simulate(
            p, lambda k, *_, γ=γ_0: torch.full((SEEDS,), γ / math.sqrt(k + 1), dtype=D)
        )
        pair = {"alpha": α, "beta": β, **constants(p)}
        assert_stays_below(
            record, lambda K, γ=γ_0, pair=pair: B.sgd_decreasing(steps=K, step_size=γ, **pair)
        )
        steps = γ_0 * 1.9 * (0.55 + 0.45 * torch.cos(torch.arange(STEPS, dtype=D)))
        record = simulate(p, lambda k, *_, steps=steps: steps[k].expand(SEEDS))
        assert_stays_below(
            record, lambda K, steps=steps, pair=pair: B.sgd_schedule(step_sizes=steps[:K], **pair)
        )


@pytest.mark.parametrize("γ_b", [0.1, 10.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_sps_max(name, γ_b):
    p = problem(name)
    for α, β in p.pairs:
        c = 1.01 / (2 * (α - β)) if γ_b < 1 else 1 / (α - β)
        record = simulate(
            p, lambda k, above, loss, squares, c=c: (above / (c * squares)).clamp(max=γ_b)
        )
        arguments = {"c": c, "step_size_bound": γ_b, "alpha": α, "beta": β, **constants(p)}
        assert_stays_below(record, lambda K, a=arguments: B.sps_max(steps=K, **a))
        assert_stays_below(record, lambda K, a=arguments: B.sps_max_sharp(steps=K, **a))


@pytest.mark.parametrize("γ_b", some([0.1, 10.0], every=2))
@pytest.mark.parametrize("name", PROBLEMS)
def test_dec_sps(name, γ_b):
    p = problem(name)
    for α, β in p.pairs:
        for c_0, bounds in (
            (1 / (α - β), (B.dec_sps, B.dec_sps_sharp)),
            (0.51 / (α - β), (B.dec_sps_sharp,)),
        ):
            scaled = {"last": torch.full((SEEDS,), c_0 * γ_b, dtype=D)}

            def rule(k, above, loss, squares, c_0=c_0, scaled=scaled):
                scaled["last"] = torch.minimum(above / squares, scaled["last"])
                return scaled["last"] / (c_0 * math.sqrt(k + 1))

            record = simulate(p, rule)
            k = constants(p)
            del k["sq_distance"]
            for bound in bounds:
                assert_stays_below(
                    record,
                    lambda K, bound=bound, c_0=c_0, k=k, a=α, b=β, r=record: bound(
                        steps=K,
                        c_init=c_0 * (1 + 1e-12),
                        c_last=c_0 * math.sqrt(K) * (1 + 1e-12),
                        inverse_c_sum=sum(1 / (c_0 * math.sqrt(j + 1)) for j in range(K)),
                        step_size_bound=γ_b,
                        alpha=a,
                        beta=b,
                        max_sq_distance=r.max_sq_distance,
                        **k,
                    ),
                )


@pytest.mark.parametrize("γ", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_ngn(name, γ):
    p = problem(name)
    for α, β in p.pairs:
        k = {
            **constants(p),
            "positivity_error": p.positivity,
            "step_size": γ,
            "alpha": α,
            "beta": β,
        }
        record = simulate(p, lambda _, above, loss, squares: γ / (1 + γ * squares / (2 * loss)))
        if α - β > 2 * γ * p.smoothness / (1 + 2 * γ * p.smoothness):
            assert_stays_below(record, lambda K, k=k: B.ngn_sharp(steps=K, **k))
        if α - β >= 1:
            assert_stays_below(record, lambda K, k=k: B.ngn(steps=K, **k))
            record = simulate(p, lambda j, above, loss, squares: decreasing(γ, j, loss, squares))
            assert_stays_below(record, lambda K, k=k: B.ngn_decreasing(steps=K, **k))


def decreasing(γ, k, loss, squares):
    now = γ / math.sqrt(k + 1)
    return now / (1 + now * squares / (2 * loss))


@pytest.mark.parametrize("start", some([1.0, 30.0], every=2))
@pytest.mark.parametrize("name", PROBLEMS)
def test_adagrad_norm_max(name, start):
    p = problem(name)
    first = torch.stack(
        [p.gradients(p.start.unsqueeze(0), torch.tensor([i]))[0].norm() for i in range(p.count)]
    )
    for α, β in p.pairs:
        γ = start * (α - β) / (2 * p.smoothness)
        state = {"c": torch.zeros(SEEDS, dtype=D), "b": torch.full((SEEDS,), start**2, dtype=D)}

        def rule(k, above, loss, squares, γ=γ, state=state):
            state["c"] = state["c"].maximum(squares)
            state["b"] = state["b"] + state["c"]
            return γ / state["b"].sqrt()

        record = simulate(p, rule)
        k = constants(p)
        arguments = {
            **k,
            "step_size": γ,
            "b_init": start * (1 + 1e-12),
            "alpha": α,
            "beta": β,
            "grad_bound": record.grad_bound,
        }
        for smallest in (0.0, float(first.min())):
            for bound in (B.adagrad_norm_max, B.adagrad_norm_max_sharp):
                assert_stays_below(
                    record, lambda K, f=bound, a=arguments, s=smallest: f(steps=K, grad_min=s, **a)
                )


@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_descent(name, share):
    """L is that of the theorem, ‖∇f‖² ≤ 2L(f − f(x_p)), measured along the run."""
    p = problem(name)
    for α, β in p.pairs:
        x = p.start.unsqueeze(0)
        γ = share * (α - β) / p.smoothness
        gaps, ratios = [], []
        for _ in range(STEPS):
            g = sum(p.gradients(x, torch.tensor([i])) for i in range(p.count)) / p.count
            gaps.append(float(p.full(x)) - p.f_star)
            if gaps[-1] > 1e-12:
                ratios.append(float(g.square().sum()) / (2 * gaps[-1]))
            x = x - γ * g
        smoothness = max(ratios)
        if γ >= (α - β) / smoothness:
            continue
        k = {**constants(p), "smoothness": smoothness}
        for steps in (1, 5, STEPS):
            assert min(gaps[:steps]) <= float(
                B.gradient_descent(steps=steps, step_size=γ, alpha=α, beta=β, **k)
            ) * (1 + 1e-9)


def test_gradient_descent_needs_the_loss_above_the_reference():
    """With the L of a − l the formula gives 0.0132, and the run has 0.0750.

    f = x²/2 + 100, l = 0, γ = 1.9, x_0 = 1, K = 10.
    """
    x, gaps, γ = 1.0, [], 1.9
    for _ in range(10):
        gaps.append(x * x / 2)
        x -= γ * x
    wrong = max(x_sq / (2 * (x_sq / 2 + 100)) for x_sq in (2 * g for g in gaps))
    k = {"steps": 10, "step_size": γ, "sq_distance": 1.0}
    # β = 0, α = δ = 2: <f', x> = x² ≥ 2(f − f*)
    formula = float(
        B.gradient_descent(alpha=2.0, beta=0.0, smoothness=wrong, interpolation_error=100.0, **k)
    )
    assert formula == pytest.approx(0.0132, abs=1e-4)
    assert min(gaps) == pytest.approx(0.0750, abs=1e-4)
    right = float(
        B.gradient_descent(alpha=2.0, beta=0.0, smoothness=1.0, interpolation_error=100.0, **k)
    )
    assert min(gaps) <= right
    sharper = float(
        B.sgd_sharp(alpha=2.0, beta=0.0, smoothness=wrong, interpolation_error=100.0, **k)
    )
    assert min(gaps) <= sharper


def test_a_fixed_order_of_the_batches_can_break_every_bound():
    """f_i = ½(x ∓ 1)², sorted: SGD stays at one end, with a gap of 0.50 and a bound of 0.30."""
    γ, half = 0.1, 100
    x, gaps = 1.0, []
    for k in range(2 * half):
        gaps.append(x * x / 2)
        x -= γ * (x - (1.0 if k < half else -1.0))
    k = {
        "steps": half,
        "step_size": γ,
        "alpha": 1.0,
        "beta": 0.0,
        "smoothness": 1.0,
        "sq_distance": 1.0,
    }
    assert min(gaps[:half]) > float(B.sgd_sharp(interpolation_error=0.5, **k))
