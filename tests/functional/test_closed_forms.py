"""Closed-form cases of the theory, f = (f_1 + f_2)/2 on the plane, sampled on grids of points."""

import pytest
import torch
from torch.func import grad, vmap

from lightning_landscape.functional import best_alpha_beta, beta_min


def quotient(u):
    return u.square() / (u.square() + 1)


def sq(p, x, y):
    return (p[0] - x).square() + (p[1] - y).square()


EXAMPLES = {
    "1": (lambda p: quotient(p[0] + p[1]), lambda p: quotient(p[0] + p[1] + 1)),
    "2": (lambda p: 1 - torch.exp(-sq(p, 0, 0)), lambda p: 1 - torch.exp(-sq(p, 2, 2))),
    "3": (lambda p: (1 + sq(p, 0, 0)) / (4 + sq(p, 0, 0)), lambda p: sq(p, 2.5, 2.5) / (1 + sq(p, 2.5, 2.5))),
    "6": (lambda p: sq(p, 0, 0) / (1 + sq(p, 0, 0)), lambda p: sq(p, 1, 1) / (1 + sq(p, 1, 1))),
}
INFIMA = {"1": (0.0, 0.0), "2": (0.0, 0.0), "3": (0.25, 0.0), "6": (0.0, 0.0)}


def minimisers(name):
    """Return the minimisers on the diagonal to full precision, by Newton's method in float64."""
    f1, f2 = EXAMPLES[name]

    def f(t):
        point = torch.stack([t, t])
        return (f1(point) + f2(point)) / 2

    slope, starts = grad(f), {"1": [-0.25], "2": [0.0, 2.0], "3": [2.47], "6": [0.159, 0.841]}[name]
    roots = []
    for start in starts:
        t = torch.tensor(start, dtype=torch.float64)
        for _ in range(50):
            t = t - slope(t) / grad(slope)(t)
        roots.append(torch.stack([t, t]))
    return torch.stack(roots)


def table(name, points):
    """Return the columns of all points for both f_i, each point against its own projection onto the minimisers."""
    ends = minimisers(name)
    if name == "1":  # the minimisers are the line x + y = −1/2
        away = (points.sum(1, keepdim=True) + 0.5) / 2
        reference = points - away
    else:
        reference = ends[torch.cdist(points, ends).argmin(1)]
    columns = {"loss": [], "reference_loss": [], "inner_product": [], "loss_infimum": []}
    for f, low in zip(EXAMPLES[name], INFIMA[name], strict=True):
        columns["loss"].append(vmap(f)(points))
        columns["reference_loss"].append(vmap(f)(reference))
        columns["inner_product"].append((vmap(grad(f))(points) * (points - reference)).sum(1))
        columns["loss_infimum"].append(torch.full((len(points),), low, dtype=torch.float64))
    return {key: torch.cat(parts) for key, parts in columns.items()}


def worst(name, points, keep=400):
    """Return the rows that matter for β_min: the package's envelope is exact, and so slow on a million rows."""
    full = table(name, points)
    columns, chosen = dict(full.items()), set()
    excess = columns["reference_loss"] - columns["loss_infimum"]
    for rate in (0.25, 0.5, 1.0, 8.0):
        needed = (rate * (columns["loss"] - columns["reference_loss"]) - columns["inner_product"]) / excess
        chosen |= set(needed.topk(min(keep, len(needed))).indices.tolist())
    rows = torch.tensor(sorted(chosen))
    return {key: column[rows] for key, column in columns.items()}


def square(half_width, count, centre=0.0):
    line = torch.linspace(centre - half_width, centre + half_width, count, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


@pytest.mark.parametrize(
    ("name", "rate", "supremum", "points"),
    [
        ("1", 0.25, 1.0, square(400, 801)),
        ("1", 0.5, 2.0, square(400, 801)),
        ("1", 1.0, 4.0, square(400, 801)),
        ("2", 8.0, 8.797e6, square(6, 801, 1.0)),
        ("3", 1.0, 625.2, square(60, 1201)),
        ("6", 1.0, 19.685, square(60, 1201)),
    ],
)
def test_closed_forms_stay_below_their_supremum_and_come_near(name, rate, supremum, points):
    value = beta_min(rate, **worst(name, points)).item()
    rounding = 1 + 5e-5  # of the digits in which the suprema are stated
    assert 0.999 * supremum <= value <= supremum * rounding


def test_minimisers_are_those_stated():
    assert minimisers("2")[0, 0].item() == pytest.approx(0.000674, abs=1e-6)
    assert minimisers("2")[1, 0].item() == pytest.approx(1.999326, abs=1e-6)
    assert minimisers("3")[0, 0].item() == pytest.approx(2.4717, abs=1e-4)
    assert minimisers("6")[:, 0].tolist() == pytest.approx([0.159375, 0.840625], abs=1e-6)


def test_least_squares_has_alpha_one_and_beta_zero():
    """f_i = ½(a_iᵀx − y_i)²: β_min(1) = 0, and β_min(δ) ≤ (1 − δ)²/(2 − δ) for 0 < δ < 2."""
    generator = torch.Generator().manual_seed(0)
    a, y = torch.randn(40, 3, generator=generator).double(), torch.randn(40, generator=generator).double()
    reference = torch.linalg.lstsq(a, y.unsqueeze(1)).solution.squeeze(1)
    points = reference + 3 * torch.randn(50, 3, generator=generator).double()
    residual, at_reference = points @ a.T - y, (a @ reference - y).expand(50, 40)
    columns = {
        "loss": 0.5 * residual.square().flatten(),
        "reference_loss": 0.5 * at_reference.square().flatten(),
        "inner_product": (residual * ((points - reference) @ a.T)).flatten(),
    }
    assert beta_min(1.0, **columns).item() <= 1e-12
    rates = torch.linspace(0.1, 1.9, 19)
    bound = (1 - rates.double()).square() / (2 - rates.double())
    values = beta_min(rates, **columns)
    assert bool((values <= bound + 1e-9).all())
    assert bool((values >= 0.9 * bound - 1e-3).all())  # 2,000 random rows come near the supremum over the whole space
    assert best_alpha_beta(**columns).ratio.item() <= 1e-12
