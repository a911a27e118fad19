"""The exact envelope against definitions in rationals, linear programming and closed forms."""

from fractions import Fraction
from itertools import combinations
from math import ceil, inf, isnan

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from lightning_landscape.functional import (
    RunningBestAlphaBeta,
    alpha_beta_impossible,
    alpha_beta_margin,
    alpha_beta_vertices,
    alpha_beta_violations,
    best_alpha_beta,
    beta_min,
    interpolation_error,
)

anything = st.floats(allow_nan=False, allow_infinity=False)
# Few distinct values make parallel lines, lines through one point, zeros and degenerate rows
# common.
coarse = st.integers(-3, 3).map(float)


@st.composite
def tables(draw, values=anything, max_rows=8):
    """Draw columns with l ≤ a, b, as any finite floats."""
    rows = []
    for _ in range(draw(st.integers(1, max_rows))):
        low, *above = sorted(draw(st.tuples(values, values, values)))
        loss, reference_loss = draw(st.permutations(above))
        if draw(st.integers(0, 3)) == 0:
            reference_loss = low
        rows.append((loss, reference_loss, draw(values), low))
    return columns(*zip(*rows, strict=True))


def columns(loss, reference_loss, inner_product, loss_infimum=None):
    table = {"loss": loss, "reference_loss": reference_loss, "inner_product": inner_product}
    if loss_infimum is not None:
        table["loss_infimum"] = loss_infimum
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in table.items()}


def rational_rows(table):
    """Return (a − b, b − l, p) of every probe as rationals."""
    lists = [
        [Fraction(v) for v in table[name].tolist()]
        for name in ("loss", "reference_loss", "inner_product")
    ]
    lows = [Fraction(v) for v in table["loss_infimum"].tolist()]
    return [(a - b, b - low, p) for a, b, p, low in zip(*lists, lows, strict=True)]


def naive_beta_min(rows, rate):
    """Return the smallest β ≥ 0 with p ≥ δ(a − b) − β(b − l) at every row, or None."""
    smallest = Fraction(0)
    for rise, excess, p in rows:
        missing = rate * rise - p
        if excess > 0:
            smallest = max(smallest, missing / excess)
        elif missing > 0:
            return None
    return smallest


def naive_infimum(rows, count):
    """Return inf β/δ such that `count` rows hold: try the crossings of all pairs of lines."""
    lines = [(r / e, -p / e) for r, e, p in rows if e > 0] + [(Fraction(0), Fraction(0))]
    inverse_rates = {p and Fraction(r) / p for r, e, p in rows if e == 0 and p > 0 and r > 0}
    inverse_rates |= {
        (s2 - s1) / (t1 - t2) for (s1, t1), (s2, t2) in combinations(lines, 2) if t1 != t2
    }
    inverse_rates = {u for u in inverse_rates if u > 0}
    # Also try one u on each side of all crossings, where only the order of the lines matters.
    inverse_rates |= {
        max(inverse_rates, default=Fraction(1)) * 2,
        min(inverse_rates, default=Fraction(1)) / 2,
    }
    values = []
    for u in inverse_rates:
        needs = [
            Fraction(0) if e == 0 else max(Fraction(0), r / e - p / e * u)
            for r, e, p in rows
            if e > 0 or r - p * u <= 0
        ]
        if len(needs) >= count:
            values.append(sorted(needs)[count - 1])
    limit = [max(Fraction(0), r / e) for r, e, p in rows if e > 0]
    limit += [Fraction(0) for r, e, p in rows if e == 0 and r == 0 and p >= 0]
    if len(limit) >= count:
        values.append(sorted(limit)[count - 1])
    return min(values, default=None)


def rounded(value):
    """Round a rational to float64 as IEEE does; a value beyond its range becomes infinite."""
    try:
        return float(value)
    except OverflowError:
        return inf


@given(tables(), st.floats(min_value=5e-324, allow_infinity=False))
@example(columns([1.0], [1.0], [5e-324], [0.0]), 5e-324)
@example(columns([1.7e308], [1.7e308], [-1.7e308], [-1.7e308]), 1.7e308)
def test_beta_min_is_the_rational_result_rounded_once(table, rate):
    expected = naive_beta_min(rational_rows(table), Fraction(rate))
    assert beta_min(rate, **table).item() == (inf if expected is None else rounded(expected))


@given(tables(coarse), st.lists(st.integers(1, 12).map(lambda k: k / 4), min_size=1, max_size=5))
def test_beta_min_takes_a_column_of_rates(table, rates):
    result = beta_min(torch.tensor(rates), **table)
    assert result.tolist() == [beta_min(rate, **table).item() for rate in rates]


@given(tables(coarse))
def test_vertices_are_corners_of_beta_min(table):
    rows = rational_rows(table)
    corners = alpha_beta_vertices(**table).tolist()
    assert corners == sorted(corners)
    # Coarse values have corners with small denominators: search all of these for changes of slope.
    lines = {(r / e, -p / e) for r, e, p in rows if e > 0} | {(Fraction(0), Fraction(0))}
    ends = [Fraction(p) / r for r, e, p in rows if e == 0 and r > 0]
    crossings = {(t1 - t2) / (s2 - s1) for (s1, t1), (s2, t2) in combinations(lines, 2) if s1 != s2}
    expected = []
    for rate in sorted({c for c in crossings if c > 0} | {e for e in ends if e > 0}):
        here, tiny = naive_beta_min(rows, rate), Fraction(1, 10**6)
        before, after = (
            naive_beta_min(rows, rate * (1 - tiny)),
            naive_beta_min(rows, rate * (1 + tiny)),
        )
        if here is not None and (after is None or before + after > 2 * here):
            expected.append([float(rate), float(here)])
    assert corners == (expected if naive_beta_min(rows, Fraction(1, 10**9)) is not None else [])


@given(tables(coarse))
@settings(max_examples=300)
def test_best_pair_is_the_infimum_and_attained_if_said(table):
    rows = rational_rows(table)
    pair = best_alpha_beta(**table)
    expected = naive_infimum(rows, len(rows))
    if expected is None:
        assert isnan(pair.ratio)
        assert bool(alpha_beta_impossible(**table).any())
    else:
        assert pair.ratio.item() == pytest.approx(float(expected), rel=1e-15, abs=0)
        assert not bool(alpha_beta_impossible(**table).any())
    if pair.attained:
        assert (pair.beta / pair.rate).item() == pytest.approx(float(expected), rel=1e-14)
        assert pair.alpha.item() == pytest.approx((pair.beta + pair.rate).item(), rel=1e-15)
        assert not bool(alpha_beta_violations(pair.alpha, pair.beta, **table).any())
    else:
        assert isnan(pair.alpha)
        assert isnan(pair.beta)


@given(tables(coarse))
def test_ties_take_the_largest_rate_of_a_bounded_tie_else_its_left_end(table):
    rows, pair = rational_rows(table), best_alpha_beta(**table)
    assume(pair.attained)
    rate, ratio = (
        Fraction(pair.rate.item()).limit_denominator(10**6),
        Fraction(pair.ratio.item()).limit_denominator(10**6),
    )

    def ties(other):
        beta = naive_beta_min(rows, other)
        return beta is not None and beta == ratio * other

    assert ties(rate)
    # If δ a little larger ties too, the tie is unbounded and `rate` has to be its left end.
    if ties(rate * (1 + Fraction(1, 10**9))):
        assert ties(rate * 10**9)
        assert not ties(rate * (1 - Fraction(1, 10**9)))


@given(tables(coarse), st.sampled_from([0.3, 0.5, 0.75, 0.9]))
@settings(max_examples=300)
def test_coverage_is_the_best_over_all_subsets(table, share):
    rows = rational_rows(table)
    count = ceil(Fraction(share) * len(rows))
    pair = best_alpha_beta(share=share, **table)
    expected = naive_infimum(rows, count)
    if expected is None:
        assert isnan(pair.ratio)
    else:
        assert pair.ratio.item() == pytest.approx(float(expected), rel=1e-12, abs=1e-300)
    if pair.attained:
        held = int((~alpha_beta_violations(pair.alpha, pair.beta, **table)).sum())
        assert held >= count


@pytest.mark.slow
@given(tables(st.floats(-1e3, 1e3)), st.sampled_from([0.5, 0.75]))
def test_coverage_by_subsets_one_by_one(table, share):
    # The search for a share works on floats, where 1/δ of a denormal δ is infinite: avoid these.
    assume(
        all(v == 0 or 1e-100 < abs(v) < 1e100 for column in table.values() for v in column.tolist())
    )
    n = len(table["loss"])
    count = ceil(Fraction(share) * n)
    subsets = (list(rows) for rows in combinations(range(n), count))
    ratios = [
        best_alpha_beta(**{k: v[rows] for k, v in table.items()}).ratio.item() for rows in subsets
    ]
    best = min((ratio for ratio in ratios if not isnan(ratio)), default=float("nan"))
    assert best_alpha_beta(share=share, **table).ratio.item() == pytest.approx(
        best, rel=1e-9, abs=1e-12, nan_ok=True
    )


@given(tables(coarse))
def test_running_pairs_are_the_pairs_of_the_prefixes(table):
    running = RunningBestAlphaBeta()
    for k in range(len(table["loss"])):
        pair = running.add(**{name: column[k].item() for name, column in table.items()})
        alone = best_alpha_beta(**{name: column[: k + 1] for name, column in table.items()})
        for field in ("alpha", "beta", "rate", "ratio"):
            assert getattr(pair, field).item() == pytest.approx(
                getattr(alone, field).item(), nan_ok=True, abs=0, rel=0
            )
    assert len(running) == len(table["loss"])


@given(tables(st.floats(-100, 100)), st.floats(0.01, 100))
@settings(max_examples=150)
def test_beta_min_is_the_optimum_of_the_linear_program(table, rate):
    rows = [(float(r), float(e), float(p)) for r, e, p in rational_rows(table)]
    # HiGHS drops coefficients below 1e-9 and has a tolerance of 1e-7: draw larger values.
    assume(all(excess == 0 or excess >= 1e-6 for _, excess, _ in rows))
    assume(all(excess > 0 or abs(rate * rise - p) > 1e-3 for rise, excess, p in rows))
    program = linprog(
        [1.0],
        A_ub=[[-excess] for _, excess, _ in rows],
        b_ub=[p - rate * rise for rise, _, p in rows],
        bounds=[(0, None)],
    )
    result = beta_min(rate, **table).item()
    if program.status == 2:
        assert result == inf
    else:
        assert result == pytest.approx(program.fun, rel=1e-6, abs=1e-5)


# HiGHS would take a very small p for zero.
@given(tables(st.integers(-6400, 6400).map(lambda k: k / 64)))
@settings(max_examples=150)
def test_best_ratio_is_the_optimum_of_the_linear_program_in_inverse_rate(table):
    rows = [(float(r), float(e), float(p)) for r, e, p in rational_rows(table)]
    assume(all(excess >= 1e-6 for _, excess, _ in rows))
    # v = β/δ, u = 1/δ: minimize v subject to v(b − l) + u p ≥ a − b
    program = linprog(
        [1.0, 0.0],
        A_ub=[[-e, -p] for _, e, p in rows],
        b_ub=[-r for r, _, _ in rows],
        bounds=[(0, None), (0, None)],
    )
    assert best_alpha_beta(**table).ratio.item() == pytest.approx(program.fun, rel=1e-5, abs=1e-5)


def test_never_above_the_reference_gives_no_pair_and_ratio_zero():
    pair = best_alpha_beta(**columns([1.0, 0.5], [2.0, 1.0], [0.1, 0.2]))
    assert pair.ratio.item() == 0
    assert not pair.attained


def test_infimum_at_infinity_is_the_largest_slope_and_not_attained():
    table = columns([3.0, 2.0], [1.0, 1.0], [-1.0, -1.0])
    pair = best_alpha_beta(**table)
    assert pair.ratio.item() == 2.0
    assert not pair.attained
    # the lower bound of theory.md: at infinity the neighbourhood is no smaller than the mean gap
    assert 2.0 * interpolation_error(reference_loss=table["reference_loss"])[0].item() >= 1.5


def test_margin_is_the_inequality():
    table = columns([2.0, 3.0], [1.0, 1.5], [0.5, -2.0], [0.25, 0.5])
    assert alpha_beta_margin(2.0, 0.5, **table).tolist() == [
        0.5 - 2 * 1.0 + 0.5 * 1.75,
        -2.0 - 2 * 1.5 + 0.5 * 2.5,
    ]


def test_interpolation_error_is_the_mean_with_its_standard_error():
    value, error = interpolation_error(
        reference_loss=torch.tensor([1.0, 2.0, 4.0]), loss_infimum=0.5
    )
    excess = np.array([0.5, 1.5, 3.5])
    assert value.item() == pytest.approx(excess.mean())
    assert error.item() == pytest.approx(excess.std(ddof=1) / 3**0.5)
    assert isnan(interpolation_error(reference_loss=torch.tensor([1.0]))[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loss_infimum": torch.tensor([1.5, 0.0])},
            r"`loss_infimum` 1.5 is no lower bound of `reference_loss` 1.0 in row 0",
        ),
        ({"loss": torch.tensor([-1.0, 0.0])}, r"no lower bound of `loss` -1.0 in row 0"),
        ({"loss": torch.tensor([1.0, float("nan")])}, r"`loss` is nan in row 1"),
        ({"loss": torch.tensor([1.0])}, r"1-D tensors of one length"),
        ({"loss": torch.ones(2, 1)}, r"1-D tensors of one length"),
    ],
)
def test_bad_columns_are_refused_with_the_row(change, message):
    table = columns([2.0, 3.0], [1.0, 1.0], [0.5, 1.0]) | change
    with pytest.raises(ValueError, match=message):
        beta_min(1.0, **table)


@pytest.mark.parametrize("rate", [0.0, -1.0, inf, torch.ones(1, 1)])
def test_bad_rates_are_refused(rate):
    with pytest.raises(ValueError, match="positive finite"):
        beta_min(rate, **columns([2.0], [1.0], [0.5]))


@pytest.mark.parametrize("share", [0.0, 1.01])
def test_bad_shares_are_refused(share):
    with pytest.raises(ValueError, match="share"):
        best_alpha_beta(share=share, **columns([2.0], [1.0], [0.5]))
