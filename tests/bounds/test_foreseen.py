"""What theorems foresee before training."""

import pytest

from lightning_landscape.bounds import NGNBound, SPSMaxBound


def run(optimizer, loss_infimum):
    """Return a run whose optimizer and monitor have the same infimum."""
    return {
        "optimizer": {
            "class": optimizer,
            "module": "lightning_landscape.optim",
            "defaults": {"lr": 0.5, "c": 1.0, "loss_infimum": loss_infimum},
        },
        "loss": {"infimum": loss_infimum},
        "accumulate_grad_batches": 1,
        "precision": "32-true",
        "sampling": "reshuffled",
    }


@pytest.mark.parametrize("loss_infimum", [0.0, 0.1, -0.2])  # float32 rounds the last two
@pytest.mark.parametrize("theorem", [SPSMaxBound(), NGNBound()])
def test_the_same_infimum_of_optimizer_and_monitor_is_no_obstacle(theorem, loss_infimum):
    assert theorem.foreseen(run(theorem.optimizer, loss_infimum)) is None
