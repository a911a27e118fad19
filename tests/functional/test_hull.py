"""The rows near the envelope have the feasible set of all rows, exactly."""

from fractions import Fraction
from math import inf

import pytest
import torch

from lightning_landscape import functional as F
from lightning_landscape.functional._envelope import FeasibleSet, Row, as_float
from lightning_landscape.functional._hull import near_envelope
from lightning_landscape.functional.alpha_beta import feasible_set


def table(kind, count, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b, p = (torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(3))
    low = torch.zeros(count, dtype=torch.float64)
    if kind == "signs":
        p = p - 0.5
    elif kind == "scales":  # losses near 0, like those of learned samples
        a, b, p = (10 ** (30 * v - 25) for v in (a, b, p))
    elif kind == "degenerate":
        b = b.where(b > 0.2, 0.0)
        p = p - 0.2 * (b > 0)
    elif kind == "infimum":
        low = b - 10 ** (-15 * a)
        a = a + 1
    elif kind == "equal":
        a, b, p = (v.mul(3).round().div(3) for v in (a, b, p))
    return {"loss": a, "reference_loss": b, "inner_product": p, "loss_infimum": low}


def rows_of(columns):
    exact = ([Fraction(value) for value in column.tolist()] for column in columns.values())
    return [Row(a - b, b - low, p) for a, b, p, low in zip(*exact, strict=True)]


@pytest.mark.parametrize("kind", ["plain", "signs", "scales", "degenerate", "infimum", "equal"])
@pytest.mark.parametrize("count", [1, 2, 300])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_matters_is_left_out(kind, count, seed):
    columns = table(kind, count, seed)
    kept = near_envelope(**columns)
    few = {name: column[kept] for name, column in columns.items()}
    whole = FeasibleSet.of(rows_of(columns))  # of every row
    assert FeasibleSet.of(rows_of(few)) == whole
    assert feasible_set(**columns) == whole
    for rate in (1e-3, 0.1, 1.0, 30.0):
        beta = whole.beta_min(Fraction(rate))
        assert float(F.beta_min(rate, **columns)) == (inf if beta is None else as_float(beta))
    pair, best = F.best_alpha_beta(**columns), whole.best()
    assert pair.attained == (best.pair is not None)
    if best.pair is not None:
        assert (float(pair.rate), float(pair.beta)) == tuple(map(as_float, best.pair))


def test_most_rows_are_left_out():
    assert int(near_envelope(**table("signs", 3000, 0)).sum()) < 60
