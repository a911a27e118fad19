"""What a loss of single samples may return; the mini-batch that shows whether samples mix."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from lightning_landscape.evaluation.directional import along
from lightning_landscape.evaluation.sample_losses import (
    tensors_in,
    vector_loss,
    with_first_half_replaced,
)

X, Y = torch.arange(12.0).reshape(4, 3), torch.arange(4)


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize(
    "batch", [X, (X, Y), {"x": X, "more": [Y, "text"]}, Pair(X, Y), "no tensor", (X.T, X.T)]
)
def test_one_number_a_sample(batch):
    losses = torch.ones(4)
    assert vector_loss(losses, batch) is losses


@pytest.mark.parametrize(
    "output",
    [torch.tensor(1.0), torch.ones(4, 1), torch.ones(0), torch.ones(2), 1.0, [1.0] * 4, None],
)
def test_anything_else(output):
    with pytest.raises(
        TypeError, match=r"supported is a tensor of shape \(B,\), one loss a sample"
    ):
        vector_loss(output, (X, Y))


@pytest.mark.parametrize(
    "batch", [X, (X, Y), {"x": X, "more": [Y, "text"]}, Pair(X, Y), [X.T, torch.tensor(3.0)]]
)
def test_the_first_half_of_the_samples_is_replaced_by_the_last_one(batch):
    before = [tensor.clone() for tensor in tensors_in(batch)]
    changed = with_first_half_replaced(batch, 4)
    assert type(changed) is type(batch)
    for was, own, new in zip(before, tensors_in(batch), tensors_in(changed), strict=True):
        assert torch.equal(was, own)
        was, new = (t if len(t) == 4 else t.T for t in (was, new))
        assert torch.equal(new[2:], was[2:])
        assert torch.equal(new[0], was[3])
        assert torch.equal(new[1], was[3])


def test_a_direction_may_leave_parameters_out():
    layer = nn.Linear(3, 1).double()
    direction = {"bias": torch.ones(1)}
    values, slopes = along(
        layer, lambda m, x: m(x)[:, 0] ** 2, X.double(), direction, lambda out: out, with_graph=True
    )
    assert torch.allclose(slopes, 2 * layer(X.double())[:, 0])
    assert not values.requires_grad
    _, none = along(
        layer, lambda m, x: x.sum(1), X.double(), direction, lambda out: out, with_graph=False
    )
    assert torch.equal(none, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_a_loss_that_fails_leaves_nothing_behind(error):
    def failing(module, batch):
        with torch.no_grad():
            raise error("on purpose")

    layer = nn.LSTM(3, 1)
    with pytest.raises(error, match="on purpose"):
        along(layer, failing, X, {"bias_hh_l0": torch.ones(4)}, lambda out: out, with_graph=False)
    assert torch._C._is_fwd_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cuda.flash_sdp_enabled()
    assert isinstance(layer.weight_ih_l0, nn.Parameter)
