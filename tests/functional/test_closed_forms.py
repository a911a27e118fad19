"""Closed-form cases of the theory, f = (f_1 + f_2)/2 on the plane, sampled on grids of points."""

import pytest
import torch

from demos.closed_forms import EXAMPLES, square
from lightning_landscape.functional import alpha_beta_violations, best_alpha_beta, beta_min


def worst(name, points, keep=400):
    """Return the rows that matter for β_min; exact arithmetic on a million rows would be slow."""
    full = EXAMPLES[name].table(points)
    columns, chosen = dict(full.items()), set()
    excess = columns["reference_loss"] - columns["loss_infimum"]
    for rate in (0.25, 0.5, 1.0, 8.0):
        needed = (
            rate * (columns["loss"] - columns["reference_loss"]) - columns["inner_product"]
        ) / excess
        chosen |= set(needed.topk(min(keep, len(needed))).indices.tolist())
    rows = torch.tensor(sorted(chosen))
    return {key: column[rows] for key, column in columns.items()}


@pytest.mark.parametrize(
    ("name", "rate", "supremum", "points"),
    [
        ("1", 0.25, 1.0, square((-400, 400), 801)),
        ("1", 0.5, 2.0, square((-400, 400), 801)),
        ("1", 1.0, 4.0, square((-400, 400), 801)),
        ("2", 8.0, 8.797e6, square((-5, 7), 801)),
        pytest.param("3", 1.0, 625.2, square((-60, 60), 1201), marks=pytest.mark.slow),
        pytest.param("6", 1.0, 19.685, square((-60, 60), 1201), marks=pytest.mark.slow),
    ],
)
def test_closed_forms_stay_below_their_supremum_and_come_near(name, rate, supremum, points):
    value = beta_min(rate, **worst(name, points)).item()
    rounding = 1 + 5e-5  # the suprema are stated with five digits
    assert 0.999 * supremum <= value <= supremum * rounding


def test_minimisers_are_those_stated():
    assert EXAMPLES["2"].minimisers[0, 0].item() == pytest.approx(0.000674, abs=1e-6)
    assert EXAMPLES["2"].minimisers[1, 0].item() == pytest.approx(1.999326, abs=1e-6)
    assert EXAMPLES["3"].minimisers[0, 0].item() == pytest.approx(2.4717, abs=1e-4)
    assert EXAMPLES["6"].minimisers[:, 0].tolist() == pytest.approx([0.159375, 0.840625], abs=1e-6)


def test_least_squares_has_alpha_one_and_beta_zero():
    """f_i = ½(a_iᵀx − y_i)²: β_min(1) = 0, and β_min(δ) ≤ (1 − δ)²/(2 − δ) for 0 < δ < 2."""
    generator = torch.Generator().manual_seed(0)
    a, y = (
        torch.randn(40, 3, generator=generator).double(),
        torch.randn(40, generator=generator).double(),
    )
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
    # 2,000 random rows come near the supremum over the whole space.
    assert bool((values >= 0.9 * bound - 1e-3).all())
    assert best_alpha_beta(**columns).ratio.item() <= 1e-12


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_pairs_that_are_drawn_hold_on_random_points_near_and_far(name):
    example, generator = EXAMPLES[name], torch.Generator().manual_seed(0)
    spread = 10 ** (3 * torch.rand(20_000, 1, generator=generator, dtype=torch.float64) - 1)
    points = torch.randn(20_000, 2, generator=generator, dtype=torch.float64) * spread
    columns = example.table(points)
    pair = example.rate + example.beta, example.beta
    assert not bool(alpha_beta_violations(*pair, **columns).any())
    smaller = example.rate + 0.97 * example.beta, 0.97 * example.beta
    assert (
        bool(alpha_beta_violations(*smaller, **example.table(square((-60, 60), 601))).any())
        or name == "1"
    )
