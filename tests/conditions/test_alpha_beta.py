"""The metric over its functions."""

import math

import pytest
import torch

from lightning_landscape.conditions import AlphaBeta
from lightning_landscape.functional import alpha_beta_vertices, best_alpha_beta

TABLE = {
    "loss": torch.tensor([2.0, 3.0, 1.5, 0.9]),
    "reference_loss": torch.tensor([1.0, 1.0, 0.5, 1.0]),
    "inner_product": torch.tensor([-0.5, 1.0, 0.25, 0.3]),
    "loss_infimum": torch.tensor([0.0, 0.5, 0.5, 0.0]),
}


def test_the_metric_answers_what_the_functions_answer():
    metric = AlphaBeta(shares=(0.75,))
    metric.update(**TABLE)
    result = metric.compute()
    pair = best_alpha_beta(**TABLE)
    assert (result["alpha"], result["beta"], result["rate"]) == (pair.alpha, pair.beta, pair.rate)
    excess = TABLE["reference_loss"] - TABLE["loss_infimum"]
    assert result["interpolation_error"].item() == pytest.approx(excess.mean().item())
    assert result["neighbourhood"].item() == pytest.approx(
        (pair.ratio * excess.double().mean()).item()
    )
    assert torch.equal(result["vertices"], alpha_beta_vertices(**TABLE))
    assert result["degenerate_rows"] == 1
    assert result["violated"] == 0
    assert result["margin"].min() >= -1e-12
    covering = best_alpha_beta(**TABLE, share=0.75)
    assert result["coverage"]["0.75"]["beta"] == covering.beta


def test_batches_of_updates_and_numbers_are_one_table():
    whole, parts = AlphaBeta(), AlphaBeta()
    whole.update(**TABLE)
    parts.update(**{name: column[:1] for name, column in TABLE.items()})
    for k in range(1, 4):
        parts.update(**{name: column[k].item() for name, column in TABLE.items()})
    a, b = whole.compute(), parts.compute()
    assert torch.equal(a["margin"], b["margin"])
    assert a["alpha"] == b["alpha"]
    parts.reset()
    parts.update(
        loss=torch.tensor([2.0, 3.0]), reference_loss=torch.ones(2), inner_product=torch.ones(2)
    )
    assert parts.compute()["interpolation_error"] == 1  # the infimum is 0 by default, for every row


def test_an_empty_set_counts_the_probes_that_empty_it():
    metric = AlphaBeta()
    metric.update(
        loss=torch.tensor([1.0, 2.0]),
        reference_loss=torch.tensor([0.0, 1.0]),
        inner_product=torch.tensor([-1.0, 1.0]),
    )
    result = metric.compute()
    assert math.isnan(result["alpha"])
    assert math.isnan(result["neighbourhood"])
    assert result["violated"] == 1
    assert result["attained"] is False


def test_an_infimum_that_is_none_is_refused():
    metric = AlphaBeta()
    metric.update(loss=1.0, reference_loss=0.5, inner_product=1.0, loss_infimum=0.75)
    with pytest.raises(ValueError, match="no lower bound of `reference_loss` 0.5"):
        metric.compute()
