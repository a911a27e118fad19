"""`PolyakLojasiewicz`: the Polyak-Łojasiewicz inequality as a torchmetrics metric."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class PolyakLojasiewicz(WorstCase):
    r"""Largest μ with which the Polyak-Łojasiewicz inequality holds at every probe.

    .. math:: G_k^2 \ge 2\mu\,(a_k - l_k)

    ``update`` takes ``loss``, ``grad_sq_norm`` and ``loss_infimum`` (default 0). ``compute``
    returns the dict documented in `WorstCase`.

    Source:
        Polyak 1963.

    Example:
        >>> import torch
        >>> metric = PolyakLojasiewicz()
        >>> metric.update(loss=torch.tensor([2.0, 1.0]), grad_sq_norm=torch.tensor([1.0, 4.0]))
        >>> result = metric.compute()
        >>> result["value"].item(), result["row"]
        (0.25, 0)
    """

    columns = ("loss", "grad_sq_norm", "loss_infimum")
    constant = "mu"

    def update(self, loss: Column, grad_sq_norm: Column, loss_infimum: Column = 0.0) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(loss=loss, grad_sq_norm=grad_sq_norm, loss_infimum=loss_infimum)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the μ of each probe."""
        return F.polyak_lojasiewicz_ratio(**columns)
