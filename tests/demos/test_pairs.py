"""Pairs over seeds, rows of tables and the picture of several groups of runs."""

import pytest
import torch

from demos import pairs
from lightning_landscape import Probe, ProbeTable
from lightning_landscape.reporting.compare import Group


class Of:
    """A run with probes of given inner products."""

    def __init__(self, *products):
        self.table = ProbeTable(
            [
                Probe(k, 0, 2.0, 1.0, 0.0, product, 1.0, 1.0, 0.1, 0.0, 2.0, k)
                for k, product in enumerate(products)
            ]
        )


def test_pairs_over_seeds_are_those_that_hold_in_each():
    rates = torch.tensor([1.0, 3.0])
    assert pairs.over_seeds([Of(0.5), Of(-1.0)], rates).tolist() == [2.0, 4.0]


def test_a_pair_says_something_where_its_neighbourhood_is_below_the_drop():
    rates, betas = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0.0, 0.5, 30.0])
    group = Group("some", ("seed-0",), 4, interpolation_error=2.0, drop=1.5)
    good = pairs.informative(rates, betas, group)
    assert good.tolist() == [True, True, False]  # (β/δ) σ² is 0, 1 and 6
    assert pairs.span(rates, good) == "0.1 to 1"
    nothing = pairs.informative(rates, betas, Group("none", ("seed-0",), 4))
    assert not nothing.any()
    assert pairs.span(rates, nothing) == "none"


def test_a_row_has_the_share_of_the_rates_at_which_pairs_say_something():
    group = Group("some", ("seed-0",), 4, interpolation_error=1.0, beta_min=(0.25, 2.0), drop=1.0)
    row = pairs.row_of("some", group, torch.where(pairs.RATES < 0.0999, 0.0, 2 * pairs.RATES))
    assert (row["beta_min_0.1"], row["beta_min_1"]) == (0.25, 2.0)
    assert row["informative_rates"] == "0.01 to 0.0891"
    assert row["informative_share"] == pytest.approx(20 / 61)


def test_losses_are_drawn_on_one_scale(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pairs.Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    runs = {"a": [Of(0.5)], "b": [Of(0.5, 1.0)]}
    betas = {name: pairs.over_seeds(own) for name, own in runs.items()}
    groups = {name: Group(name, ("seed-0",), 1, interpolation_error=1.0, drop=1.0) for name in runs}
    pairs.draw(tmp_path / "p.png", betas, groups, runs, "as a share", {"a": 1.0, "b": 4.0})
    left, _, right = drawn[0].axes
    assert [line.get_ydata().tolist() for line in left.lines] == [
        [2.0],
        [1.0],
        [0.5, 0.5],
        [0.25, 0.25],
    ]
    assert left.get_ylabel() == "mini-batch loss, as a share"
    assert len(right.lines) == 3
