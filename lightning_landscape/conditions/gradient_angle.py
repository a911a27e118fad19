"""`GradientAngle`: the angle between gradient and direction from x_p, as a torchmetrics metric."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class GradientAngle(WorstCase):
    r"""Smallest cosine between ``∇f_k(x_k)`` and ``x_k − x_p`` over all probes.

    .. math:: \cos_k = p_k / (G_k D_k)

    The condition is ``cos_k ≥ 0``. Where the cosine is positive, a small step along the negative
    gradient decreases the distance to x_p.

    ``update`` takes ``inner_product``, ``grad_sq_norm`` and ``sq_distance``. ``compute`` returns
    the dict documented in `WorstCase`.

    Example:
        >>> import torch
        >>> metric = GradientAngle()
        >>> metric.update(
        ...     inner_product=torch.tensor([1.0, -1.0]),
        ...     grad_sq_norm=torch.ones(2),
        ...     sq_distance=4 * torch.ones(2),
        ... )
        >>> result = metric.compute()
        >>> result["value"].item(), result["violated_share"].item()
        (-0.5, 0.5)
    """

    columns = ("inner_product", "grad_sq_norm", "sq_distance")
    constant = "cosine"

    def update(self, inner_product: Column, grad_sq_norm: Column, sq_distance: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(inner_product=inner_product, grad_sq_norm=grad_sq_norm, sq_distance=sq_distance)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the cosine of each probe."""
        return F.cosine(**columns)
