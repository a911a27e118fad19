"""`RestrictedSecant`: the restricted secant inequality as a torchmetrics metric."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class RestrictedSecant(WorstCase):
    r"""Largest μ with which the restricted secant inequality holds at every probe.

    .. math:: p_k \ge \mu\,D_k^2

    ``update`` takes ``inner_product`` and ``sq_distance``. ``compute`` returns the dict documented
    in `WorstCase`.

    Source:
        Zhang and Yin 2013.

    Example:
        >>> import torch
        >>> metric = RestrictedSecant()
        >>> metric.update(inner_product=torch.tensor([2.0, 1]), sq_distance=torch.tensor([1.0, 4]))
        >>> result = metric.compute()
        >>> result["value"].item(), result["row"]
        (0.25, 1)
    """

    columns = ("inner_product", "sq_distance")
    constant = "mu"

    def update(self, inner_product: Column, sq_distance: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(inner_product=inner_product, sq_distance=sq_distance)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the μ of each probe."""
        return F.restricted_secant_ratio(**columns)
