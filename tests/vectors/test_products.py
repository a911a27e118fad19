"""Inner products against exactly rounded references, steps against their definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_landscape.vectors.products import Products

inner_product_and_distance, measure_step = Products().inner_product_and_distance, Products().step


def vectors(seed, sizes=((3,), (40, 60), (1 << 20, 1), (5000,)), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        str(i): torch.randn(size, generator=generator).to(dtype) for i, size in enumerate(sizes)
    }


def exact_dot(a, b):
    return math.fsum((a.double().flatten() * b.double().flatten()).tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_inner_product_and_distance(dtype):
    x, reference, g = vectors(1, dtype=dtype), vectors(2, dtype=dtype), vectors(3, dtype=dtype)
    product, distance = inner_product_and_distance(x, reference, g, 0.5)
    away = {n: x[n].double() - reference[n].double() for n in x}
    size = math.sqrt(
        sum(exact_dot(d, d) for d in away.values()) * sum(exact_dot(v, v) for v in g.values())
    )
    assert product == pytest.approx(0.5 * sum(exact_dot(away[n], g[n]) for n in x), abs=1e-6 * size)
    assert distance == pytest.approx(sum(exact_dot(d, d) for d in away.values()), rel=1e-6)


def test_inner_product_close_to_the_reference_does_not_cancel():
    x, noise, g = vectors(1), vectors(2), vectors(3)
    reference = {n: x[n] + 1e-4 * noise[n] for n in x}
    away = {n: x[n].double() - reference[n].double() for n in x}
    size = math.sqrt(
        sum(exact_dot(d, d) for d in away.values()) * sum(exact_dot(v, v) for v in g.values())
    )
    product, _ = inner_product_and_distance(x, reference, g, 1.0)
    assert product == pytest.approx(sum(exact_dot(away[n], g[n]) for n in x), abs=1e-6 * size)


def test_ten_million_equal_terms_do_not_drift():
    ones = {"x": torch.full((10_000_019,), 0.1)}
    _, sq_distance = inner_product_and_distance(ones, {"x": torch.zeros(10_000_019)}, {}, 1.0)
    assert sq_distance == pytest.approx(10_000_019 * float(torch.tensor(0.1)) ** 2, rel=1e-7)


@given(st.integers(0, 10**6), st.floats(1e-4, 1.0), st.floats(0.0, 0.1))
@settings(max_examples=25, deadline=None)
def test_a_step_by_its_definition(seed, step_size, noise):
    sizes = ((3,), (40, 60), (5000,))
    x, g, e = vectors(seed, sizes), vectors(seed + 1, sizes), vectors(seed + 2, sizes)
    after = {n: x[n] - step_size * g[n] - noise * e[n] for n in x}
    measured = measure_step(x, after, {n: 4 * v for n, v in g.items()}, 0.25)
    moved = {n: x[n].double() - after[n].double() for n in x}
    squares = sum(exact_dot(v, v) for v in g.values())
    eta = sum(exact_dot(moved[n], g[n]) for n in x) / squares
    rest = sum(exact_dot(r, r) for r in (moved[n] - eta * g[n].double() for n in x)) ** 0.5
    length = sum(exact_dot(m, m) for m in moved.values()) ** 0.5
    assert measured.grad_sq_norm == pytest.approx(squares, rel=1e-6)
    assert measured.step_size == pytest.approx(eta, abs=1e-6 * length / squares**0.5)
    assert measured.residual == pytest.approx(rest, abs=2e-6 * length)


@pytest.mark.parametrize("expected", [0.0, 0.05, 0.05000001, 0.049, -3.0, 1e6, math.nan, math.inf])
def test_what_was_expected_of_a_step_changes_nothing(expected):
    x, g, e = vectors(1), vectors(2), vectors(3)
    exactly = {n: x[n] - 0.05 * g[n] for n in x}
    apart = {n: exactly[n] - 0.01 * e[n] for n in x}
    raw = {n: 4 * v for n, v in g.items()}
    for after in (exactly, apart):
        plain, measured = (
            measure_step(x, after, raw, 0.25),
            measure_step(x, after, raw, 0.25, expected),
        )
        length = 0.05 * plain.grad_sq_norm**0.5
        assert measured.grad_sq_norm == plain.grad_sq_norm
        assert measured.step_size == pytest.approx(plain.step_size, rel=1e-6)
        assert measured.residual == pytest.approx(plain.residual, rel=1e-4, abs=1e-6 * length)
        if after is apart:
            rest = sum(
                exact_dot(r, r)
                for r in (
                    x[n].double() - after[n].double() - plain.step_size * g[n].double() for n in x
                )
            )
            assert measured.residual == pytest.approx(rest**0.5, rel=1e-5)


def test_a_step_that_was_not_expected_without_a_gradient():
    x = {"x": torch.zeros(2), "y": torch.zeros(1)}
    after = {"x": torch.tensor([3.0, 4.0]), "y": torch.zeros(1)}
    assert measure_step(x, after, {"x": torch.zeros(2)}, 1.0, 0.5) == (0.0, 0.0, 5.0)
    assert measure_step(x, after, {}, 1.0, 0.5) == (0.0, 0.0, 5.0)
    broken = measure_step(x, after, {"x": torch.tensor([math.nan, 1.0])}, 1.0, 0.5)
    assert math.isnan(broken.grad_sq_norm)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "equal"])
def test_a_hundred_million_parameters(kind):
    count, generator = 100_000_000, torch.Generator().manual_seed(0)
    if kind == "normal":
        x, reference, g = (torch.randn(count, generator=generator) for _ in range(3))
    else:
        x, reference, g = (torch.full((count,), value) for value in (0.3, 0.1, 0.7))
    product, distance = inner_product_and_distance({"x": x}, {"x": reference}, {"x": g}, 1.0)
    exact = squares = norms = 0.0
    for a, b, c in zip(*(vector.split(1 << 22) for vector in (x, reference, g)), strict=True):
        away, along = a.double() - b.double(), c.double()
        exact, squares, norms = (
            exact + float(away @ along),
            squares + float(away @ away),
            norms + float(along @ along),
        )
    assert product == pytest.approx(exact, abs=1e-6 * math.sqrt(squares * norms))
    assert distance == pytest.approx(squares, rel=1e-6)


def test_a_step_of_sgd_has_its_learning_rate_and_a_residual_of_rounding():
    x, g = vectors(1), vectors(2)
    after = {n: x[n] - 0.05 * g[n] for n in x}
    measured = measure_step(x, after, g, 1.0)
    assert measured.step_size == pytest.approx(0.05, rel=1e-6)
    assert measured.residual < 1e-5 * 0.05 * measured.grad_sq_norm**0.5


def test_without_a_gradient_the_step_size_is_zero_and_the_residual_is_what_moved():
    x = {"x": torch.zeros(2)}
    assert measure_step(x, {"x": torch.tensor([3.0, 4.0])}, {"x": torch.zeros(2)}, 1.0) == (
        0.0,
        0.0,
        5.0,
    )
    assert measure_step(x, x, {}, 1.0) == (0.0, 0.0, 0.0)


def test_a_parameter_without_gradient_counts_in_the_residual():
    before = {"a": torch.zeros(2), "b": torch.zeros(2)}
    after = {"a": torch.tensor([-1.0, 0.0]), "b": torch.tensor([0.0, 2.0])}
    assert measure_step(before, after, {"a": torch.tensor([1.0, 0.0])}, 1.0) == (1.0, 1.0, 2.0)


def test_autocast_does_not_round():
    x, reference, g = vectors(1), vectors(2), vectors(3)
    expected = inner_product_and_distance(x, reference, g, 1.0), measure_step(x, reference, g, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            inner_product_and_distance(x, reference, g, 1.0),
            measure_step(x, reference, g, 1.0),
        ) == expected


def test_tensors_of_any_size_type_and_share_together():
    """Small tensors are joined and large ones cut; each counts with its own values and share."""
    generator = torch.Generator().manual_seed(0)
    sizes = [0, 1, 7, 300, 32_767, 32_768, 40_000, 262_144, 262_145, *[30_000] * 20]
    kinds = [torch.float32, torch.float64, torch.bfloat16]
    x, there, g = (
        {
            str(i): torch.randn(size, generator=generator).to(kinds[i % 3])
            for i, size in enumerate(sizes)
        }
        for _ in range(3)
    )
    x["t"], there["t"], g["t"] = (
        torch.randn(50, 30, generator=generator).t() for _ in range(3)
    )  # not contiguous
    del g["3"], g["7"]
    shares = dict.fromkeys(list(x)[::2], 0.5)
    product, distance = Products(shares=shares).inner_product_and_distance(x, there, g, 2.0)
    away = {n: x[n].double() - there[n].double() for n in x}
    squares = sum(shares.get(n, 1.0) * exact_dot(d, d) for n, d in away.items())
    assert product == pytest.approx(
        2 * sum(shares.get(n, 1.0) * exact_dot(away[n], g[n]) for n in g), abs=1e-6 * squares
    )
    assert distance == pytest.approx(squares, rel=1e-6)
    change = Products(shares=shares).sq_change(x, 0.5, g, -1.5)
    sums = {n: 0.5 * x[n].double() + (1.5 * g[n].double() if n in g else 0.0) for n in x}
    assert change == pytest.approx(
        sum(shares.get(n, 1.0) * exact_dot(v, v) for n, v in sums.items()), rel=1e-6
    )


def test_what_is_equal_has_not_changed_whatever_its_factor():
    g = vectors(1, sizes=((3,), (5000,), (1 << 19,)))
    assert (
        Products().sq_change(g, 1 / 3, {name: value.clone() for name, value in g.items()}, 1 / 3)
        == 0
    )


@pytest.mark.parametrize("lacking", [{}, {"a": torch.ones(3)}])
def test_a_point_that_lacks_a_parameter_is_not_taken_to_be_zero_there(lacking):
    x = {"a": torch.ones(3), "b": torch.ones(2)}
    with pytest.raises(KeyError):
        Products().inner_product_and_distance(x, lacking, x, 1.0)
    with pytest.raises(KeyError):
        Products().step(x, lacking, x, 1.0)
