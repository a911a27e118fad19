"""`QuadraticGrowth`: the quadratic growth condition as a torchmetrics metric."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class QuadraticGrowth(WorstCase):
    r"""Largest μ with which the quadratic growth condition holds at every probe.

    .. math:: a_k - b_k \ge (\mu/2)\,D_k^2

    ``update`` takes ``loss``, ``reference_loss`` and ``sq_distance``. ``compute`` returns the dict
    documented in `WorstCase`.

    Source:
        Anitescu 2000.

    Example:
        >>> import torch
        >>> metric = QuadraticGrowth()
        >>> metric.update(
        ...     loss=torch.tensor([3.0, 1.5]),
        ...     reference_loss=torch.ones(2),
        ...     sq_distance=torch.tensor([1.0, 4.0]),
        ... )
        >>> result = metric.compute()
        >>> result["value"].item(), result["row"]
        (0.25, 1)
    """

    columns = ("loss", "reference_loss", "sq_distance")
    constant = "mu"

    def update(self, loss: Column, reference_loss: Column, sq_distance: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(loss=loss, reference_loss=reference_loss, sq_distance=sq_distance)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the μ of each probe."""
        return F.quadratic_growth_ratio(**columns)
