"""`Aiming`: the aiming condition as a torchmetrics metric."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class Aiming(WorstCase):
    r"""Largest θ with which the aiming condition holds at every probe.

    .. math:: p_k \ge \theta\,(a_k - l_k)

    ``update`` takes ``loss``, ``inner_product`` and ``loss_infimum`` (default 0). ``compute``
    returns the dict documented in `WorstCase`.

    Source:
        Liu, Drusvyatskiy, Belkin, Davis, Ma 2023.

    Example:
        >>> import torch
        >>> metric = Aiming()
        >>> metric.update(loss=torch.tensor([2.0, 1.0]), inner_product=torch.tensor([1.0, -1.0]))
        >>> result = metric.compute()
        >>> result["value"].item(), result["row"], result["violated_share"].item()
        (-1.0, 1, 0.5)
    """

    columns = ("loss", "inner_product", "loss_infimum")
    constant = "theta"

    def update(self, loss: Column, inner_product: Column, loss_infimum: Column = 0.0) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(loss=loss, inner_product=inner_product, loss_infimum=loss_infimum)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the θ of each probe."""
        return F.aiming_ratio(**columns)
