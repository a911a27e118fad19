"""Every bound against its formula in floats, as in the theory; its assumptions; its limits."""

import inspect
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_landscape.bounds import functional as B

positive = st.floats(1e-2, 1e2)
constants = st.fixed_dictionaries(
    {
        "smoothness": positive,
        "sq_distance": positive,
        "interpolation_error": st.floats(0, 10) | st.just(0.0),
    }
)
pairs = st.tuples(st.floats(1e-2, 50), st.floats(0, 50))  # δ, β
many = st.integers(1, 10_000)


def plain_sgd(K, γ, α, β, L, D, σ):
    δ = α - β
    return D / (K * γ * δ) + 2 * L * γ * σ / δ + 2 * β * σ / δ


def plain_sgd_sharp(K, γ, α, β, L, D, σ):
    return (D / (2 * γ * K) + (β + L * γ) * σ) / (α - β - L * γ)


def plain_sgd_decreasing(K, γ, α, β, L, D, σ):
    δ, root = α - β, math.sqrt(K)
    return 5 * D / (4 * δ * γ * root) + (5 * γ * L * σ / δ) * math.log(K + 1) / root + 2 * β * σ / δ


def plain_gradient_descent(K, γ, α, β, L, D, σ):
    return (D / (2 * γ * K) + β * σ) / (α - β - L * γ)


@pytest.mark.parametrize(
    ("bound", "plain", "fraction"),
    [
        (B.sgd, plain_sgd, 0.5),
        (B.sgd_sharp, plain_sgd_sharp, 0.99),
        (B.sgd_decreasing, plain_sgd_decreasing, 0.5),
        (B.gradient_descent, plain_gradient_descent, 0.99),
    ],
)
@given(K=many, pair=pairs, c=constants, share=st.floats(0.01, 1))
def test_sgd_and_gradient_descent(bound, plain, fraction, K, pair, c, share):
    δ, β = pair
    α = δ + β
    γ = share * fraction * (α - β) / c["smoothness"] * (1 - 1e-9)
    value = bound(steps=K, step_size=γ, alpha=α, beta=β, **c)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(
        plain(K, γ, α, β, c["smoothness"], c["sq_distance"], c["interpolation_error"]), rel=1e-6
    )
    with pytest.raises(ValueError, match=r"step_size . \(α − β\)/"):
        bound(steps=K, step_size=1.001 * (α - β) / c["smoothness"], alpha=α, beta=β, **c)


@given(pair=pairs, c=constants, shares=st.lists(st.floats(0, 0.98), min_size=1, max_size=20))
def test_sgd_schedule(pair, c, shares):
    assume(max(shares) > 1e-3)
    δ, β = pair
    γ = torch.tensor(shares, dtype=torch.float64) * δ / c["smoothness"]
    L, D, σ = c["smoothness"], c["sq_distance"], c["interpolation_error"]
    plain = (D / 2 + σ * float((γ * (β + L * γ)).sum())) / float((γ * (δ - L * γ)).sum())
    value = B.sgd_schedule(step_sizes=γ, alpha=δ + β, beta=β, **c)
    assert float(value) == pytest.approx(plain, rel=1e-6)
    same = B.sgd_schedule(step_sizes=torch.full((7,), float(γ.max())), alpha=δ + β, beta=β, **c)
    sharp = B.sgd_sharp(
        steps=7,
        step_size=float(torch.tensor(float(γ.max()), dtype=torch.float32)),
        alpha=δ + β,
        beta=β,
        **c,
    )
    assert float(same) == pytest.approx(float(sharp), rel=1e-9)


def plain_sps_max(K, c, γ_b, α, β, L, D, σ):
    γ_min = min(1 / (2 * c * L), γ_b)
    c_1 = c / (γ_min * (2 * (α - β) * c - 1))
    return c_1 * D / K + 2 * α * c_1 * γ_b * σ


def loizou(K, c, γ_b, L, D, σ):
    """Loizou et al. 2021 for convex functions, with their α = min{1/(2cL), γ_b}."""
    a = min(1 / (2 * c * L), γ_b)
    return c * D / (a * (2 * c - 1) * K) + 2 * c * γ_b * σ / (a * (2 * c - 1))


@given(K=many, pair=pairs, k=constants, factor=st.floats(1.01, 20), γ_b=positive)
def test_sps_max(K, pair, k, factor, γ_b):
    δ, β = pair
    α, c = δ + β, factor / (2 * δ)
    arguments = {"steps": K, "c": c, "step_size_bound": γ_b, "alpha": α, "beta": β, **k}
    plain = plain_sps_max(
        K, c, γ_b, α, β, k["smoothness"], k["sq_distance"], k["interpolation_error"]
    )
    assert float(B.sps_max(**arguments)) == pytest.approx(plain, rel=1e-6)
    assert float(B.sps_max_sharp(**arguments)) == pytest.approx(
        plain - k["interpolation_error"], rel=1e-6, abs=1e-6 * plain
    )
    with pytest.raises(ValueError, match=r"c > 1/\(2\(α − β\)\)"):
        B.sps_max(**{**arguments, "c": 0.99 / (2 * (α - β))})


@given(K=many, k=constants, c=st.floats(0.51, 5), γ_b=positive)
def test_sps_max_is_the_bound_of_loizou_et_al_for_convex_functions(K, k, c, γ_b):
    value = B.sps_max(steps=K, c=c, step_size_bound=γ_b, alpha=1.0, beta=0.0, **k)
    expected = loizou(K, c, γ_b, k["smoothness"], k["sq_distance"], k["interpolation_error"])
    assert float(value) == pytest.approx(expected, rel=1e-9)


@given(K=many, pair=pairs, k=constants, factor=st.floats(1, 20), γ_b=positive)
def test_dec_sps(K, pair, k, factor, γ_b):
    δ, β = pair
    α, c_0 = δ + β, factor / δ * (1 + 1e-9)
    L, D, σ = k["smoothness"], k["sq_distance"], k["interpolation_error"]
    inverse, last = (
        sum(1 / (c_0 * math.sqrt(j + 1)) for j in range(min(K, 50))),
        c_0 * math.sqrt(min(K, 50)),
    )
    K = min(K, 50)
    L_tilde = max(L, 1 / (2 * c_0 * γ_b))
    arguments = {
        "steps": K,
        "c_init": c_0,
        "c_last": last,
        "inverse_c_sum": inverse,
        "step_size_bound": γ_b,
    }
    arguments |= {
        "alpha": α,
        "beta": β,
        "smoothness": L,
        "max_sq_distance": D,
        "interpolation_error": σ,
    }
    plain = 2 * L_tilde * D * last / (K * δ) + 2 * β * σ / δ + σ * inverse / (K * δ)
    sharp = (2 * L_tilde * D * last + (2 * β * K + inverse) * σ) / (2 * δ * K - inverse)
    assert float(B.dec_sps(**arguments)) == pytest.approx(plain, rel=1e-6)
    assert float(B.dec_sps_sharp(**arguments)) == pytest.approx(sharp, rel=1e-6)
    assert float(B.dec_sps_sharp(**arguments)) <= plain * (1 + 1e-9)
    with pytest.raises(ValueError, match=r"c_init ≥ 1/\(α − β\)"):
        B.dec_sps(**{**arguments, "c_init": 0.99 / (α - β)})
    with pytest.raises(ValueError, match="do not decrease"):
        B.dec_sps(**{**arguments, "c_last": 0.9 * c_0})


@given(K=many, pair=pairs, k=constants, γ=positive, σ_pos=st.floats(0, 5))
def test_ngn(K, pair, k, γ, σ_pos):
    δ, β = 1 + pair[0], pair[1]
    α, L, D, σ = δ + β, k["smoothness"], k["sq_distance"], k["interpolation_error"]
    δ = α - β
    q, hinge = γ * L, max(2 * γ * L - 1, 0)
    c_2 = 2 * q * (δ - 1) + δ
    arguments = {"steps": K, "step_size": γ, "alpha": α, "beta": β, **k, "positivity_error": σ_pos}
    plain = (
        D * (1 + 2 * q) ** 2 / (2 * γ * K * c_2)
        + 3 * L * γ * α * (1 + q) * σ / c_2
        + q / c_2 * hinge * σ_pos
        + β * σ / c_2
    )
    assert float(B.ngn(**arguments)) == pytest.approx(plain, rel=1e-6)
    sharp = (
        D * (1 + q) * (1 + 2 * q) / (2 * γ * K)
        + (α * (1 + q) * (1 + 2 * q) - c_2) * σ
        + q * hinge * σ_pos
    )
    assert float(B.ngn_sharp(**arguments)) == pytest.approx(sharp / c_2, rel=1e-6)
    assert float(B.ngn_sharp(**arguments)) <= plain * (1 + 1e-9)
    C_1, C_2 = 5 * (1 + q) * (1 + 2 * q) / (8 * γ), 15 * q * (1 + q) * (1 + 2 * q) / 2
    C_3, C_4 = (1 + q) * (1 + 2 * q), 5 * (1 + q) * (1 + 2 * q) * q * hinge / 2
    slow = math.log(K + 1) / math.sqrt(K)
    decreasing = C_1 * D / math.sqrt(K) + C_2 * slow * α * σ + C_3 * β * σ + C_4 * slow * σ_pos
    assert float(B.ngn_decreasing(**arguments)) == pytest.approx(decreasing / δ, rel=1e-6)
    small = {**arguments, "alpha": β + 0.99}
    for bound in (B.ngn, B.ngn_decreasing):
        with pytest.raises(ValueError, match="α ≥ β \\+ 1"):
            bound(**small)
    with pytest.raises(ValueError, match="α − β > 2γL"):
        B.ngn_sharp(**{**arguments, "alpha": β + 0.99 * 2 * q / (1 + 2 * q)})


@given(
    K=many, pair=pairs, k=constants, b=positive, γ=positive, G=positive, share=st.floats(0.01, 1)
)
def test_adagrad_norm_max(K, pair, k, b, γ, G, share):
    δ, β = pair
    α, D_sq, σ, D = δ + β, k["sq_distance"], k["interpolation_error"], share * G
    δ = α - β
    arguments = {
        "steps": K,
        "step_size": γ,
        "b_init": b,
        "alpha": α,
        "beta": β,
        "sq_distance": D_sq,
    }
    arguments |= {"interpolation_error": σ, "grad_bound": G, "grad_min": D}
    root, low = math.sqrt(b**2 + G**2 * K), math.sqrt(b**2 + D**2 * K)
    plain = root * (D_sq / (γ * δ * K) + 4 * α * σ / (δ * (low + b)))
    assert float(B.adagrad_norm_max(**arguments)) == pytest.approx(plain, rel=1e-6)
    printed = root * (D_sq / (γ * δ * K) + 4 * α * (low - b) * σ / (δ * K * D**2))
    # the same value, but inexact for a small D, where it cancels
    assert printed == pytest.approx(plain, rel=1e-3)
    sharp = float(B.adagrad_norm_max_sharp(**arguments))
    assert sharp == pytest.approx(plain - σ, rel=1e-6, abs=1e-6 * plain)
    shape = B.AdaGradNormMaxSharp(**without_pair(arguments)).shape()
    assert float(shape.at(*exactly(α, β))) == pytest.approx(sharp, rel=1e-6, abs=1e-9 * plain)
    with pytest.raises(ValueError, match="b_init ≥ 2 smoothness"):
        B.adagrad_norm_max(**arguments, smoothness=1.01 * b * δ / (2 * γ))
    with pytest.raises(ValueError, match="`grad_min`"):
        B.adagrad_norm_max(**{**arguments, "grad_min": 1.1 * G})


def without_pair(arguments):
    return {name: value for name, value in arguments.items() if name not in ("alpha", "beta")}


def exactly(α, β):
    from fractions import Fraction

    return Fraction(α) - Fraction(β), Fraction(β)


@given(
    pair=pairs,
    steps=st.lists(st.tuples(positive, positive, positive, positive), min_size=1, max_size=8),
    ends=constants,
)
def test_trajectory(pair, steps, ends):
    δ, β = pair
    η, G, excess, R = (sum(column) for column in zip(*steps, strict=True))
    D_0, D_K = ends["sq_distance"], ends["smoothness"]
    value = B.trajectory(
        alpha=δ + β,
        beta=β,
        step_size_sum=η,
        sq_step_sum=G,
        excess_sum=excess,
        sq_distance=D_0,
        final_sq_distance=D_K,
        residual=R,
    )
    plain = ((D_0 - D_K) / 2 + G / 2 + R + β * excess) / (δ * η)
    assert float(value) == pytest.approx(plain, rel=1e-6, abs=1e-9)


SPS = {"c": 1.0, "step_size_bound": 1.0}
EVERY = {
    "sgd": (B.sgd, {"step_size": 0.1, "smoothness": 1.0, "sq_distance": 1.0}),
    "sgd_sharp": (B.sgd_sharp, {"step_size": 0.1, "smoothness": 1.0, "sq_distance": 1.0}),
    "sgd_decreasing": (B.sgd_decreasing, {"step_size": 0.1, "smoothness": 1.0, "sq_distance": 1.0}),
    "gradient_descent": (
        B.gradient_descent,
        {"step_size": 0.1, "smoothness": 1.0, "sq_distance": 1.0},
    ),
    "sps_max": (B.sps_max, {**SPS, "smoothness": 1.0, "sq_distance": 1.0}),
    "sps_max_sharp": (B.sps_max_sharp, {**SPS, "smoothness": 1.0, "sq_distance": 1.0}),
    "ngn": (
        B.ngn,
        {"step_size": 1.0, "smoothness": 1.0, "sq_distance": 1.0, "positivity_error": 0.5},
    ),
    "ngn_sharp": (
        B.ngn_sharp,
        {"step_size": 1.0, "smoothness": 1.0, "sq_distance": 1.0, "positivity_error": 0.5},
    ),
    "ngn_decreasing": (
        B.ngn_decreasing,
        {"step_size": 1.0, "smoothness": 1.0, "sq_distance": 1.0, "positivity_error": 0.5},
    ),
    "adagrad_norm_max": (
        B.adagrad_norm_max,
        {"step_size": 1.0, "b_init": 2.0, "sq_distance": 1.0, "grad_bound": 3.0, "grad_min": 1.0},
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_the_limit_is_that_of_ever_more_steps(name):
    bound, arguments = EVERY[name]
    pair = {"alpha": 1.6, "beta": 0.5, "interpolation_error": 0.3}
    limit = float(bound(steps=math.inf, **arguments, **pair))
    values = [float(bound(steps=10**k, **arguments, **pair)) for k in (8, 16, 24)]
    distances = [abs(value - limit) for value in values]
    assert distances[0] > distances[1] >= distances[2]
    assert values[2] == pytest.approx(limit, rel=1e-6)


def test_the_limit_of_dec_sps():
    arguments = {"step_size_bound": 1.0, "smoothness": 1.0, "max_sq_distance": 1.0, "c_init": 1.0}
    pair = {"alpha": 1.6, "beta": 0.5, "interpolation_error": 0.3}
    limit = B.dec_sps(steps=math.inf, c_last=math.inf, inverse_c_sum=math.inf, **arguments, **pair)
    assert float(limit) == pytest.approx(2 * 0.5 * 0.3 / 1.1)
    K = 10**12
    late = B.dec_sps(
        steps=K, c_last=math.sqrt(K), inverse_c_sum=2 * math.sqrt(K), **arguments, **pair
    )
    assert float(late) == pytest.approx(float(limit), rel=1e-4)


def test_adagrad_grows_without_end_where_the_smallest_gradient_is_unknown():
    constants = {
        "step_size": 1.0,
        "b_init": 2.0,
        "sq_distance": 1.0,
        "grad_bound": 3.0,
        "grad_min": 0.0,
    }
    value = B.adagrad_norm_max(
        steps=math.inf, alpha=1.0, beta=0.0, interpolation_error=0.1, **constants
    )
    assert math.isinf(value)
    assert (
        float(
            B.adagrad_norm_max(
                steps=math.inf, alpha=1.0, beta=0.0, interpolation_error=0.0, **constants
            )
        )
        == 0
    )


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "`steps` is 0"),
        ({"steps": math.nan}, "`steps` is nan"),
        ({"sq_distance": -1.0}, "`sq_distance` is -1.0"),
        ({"interpolation_error": math.nan}, "`interpolation_error` is nan"),
        ({"alpha": 0.4}, "α > β ≥ 0"),
        ({"beta": -0.1}, "`beta` is -0.1"),
        ({"alpha": math.inf}, "`alpha` is inf"),
    ],
)
def test_arguments_out_of_range_are_named(name, change, said):
    bound, arguments = EVERY[name]
    given_arguments = {
        **arguments,
        "steps": 10,
        "alpha": 1.6,
        "beta": 0.5,
        "interpolation_error": 0.3,
        **change,
    }
    with pytest.raises(ValueError, match=said):
        bound(**given_arguments)


def test_tensors_are_numbers_too():
    bound, arguments = EVERY["sgd"]
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in arguments.items()}
    pair = {"alpha": 1.6, "beta": 0.5, "interpolation_error": 0.3}
    assert bound(
        steps=10, **tensors, **{n: torch.tensor(v, dtype=torch.float64) for n, v in pair.items()}
    ) == bound(steps=10, **arguments, **pair)


def test_a_pair_on_a_closed_limit_is_admitted_although_alpha_was_rounded():
    rate, beta = 2 * 0.3 * 0.7, 12345.678
    assert math.isfinite(
        B.sgd(
            steps=10,
            step_size=0.7,
            alpha=rate + beta,
            beta=beta,
            smoothness=0.3,
            sq_distance=1.0,
            interpolation_error=0.0,
        )
    )


CLASSES = {name.lower(): getattr(B, name) for name in B.__all__ if name[0].isupper()}
FUNCTIONS = [name for name in B.__all__ if name.islower()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_arguments_of_its_class_and_the_pair(name):
    bound = CLASSES[name.replace("_", "")]
    arguments = set(inspect.signature(getattr(B, name)).parameters)
    assert arguments == {f.name for f in fields(bound)} - {"counts"} | {"alpha", "beta"}
