"""`WeakStrongConvexity`: weak strong convexity as a torchmetrics metric."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class WeakStrongConvexity(WorstCase):
    r"""Largest μ with which weak strong convexity holds at every probe.

    .. math:: b_k \ge a_k - p_k + (\mu/2)\,D_k^2

    ``update`` takes ``loss``, ``reference_loss``, ``inner_product`` and ``sq_distance``.
    ``compute`` returns the dict documented in `WorstCase`.

    Source:
        Necoara, Nesterov, Glineur 2019.

    Example:
        >>> import torch
        >>> metric = WeakStrongConvexity()
        >>> metric.update(loss=3.0, reference_loss=1.0, inner_product=4.0, sq_distance=8.0)
        >>> result = metric.compute()
        >>> result["value"].item(), result["row"]
        (0.5, 0)
    """

    columns = ("loss", "reference_loss", "inner_product", "sq_distance")
    constant = "mu"

    def update(
        self, loss: Column, reference_loss: Column, inner_product: Column, sq_distance: Column
    ) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(
            loss=loss,
            reference_loss=reference_loss,
            inner_product=inner_product,
            sq_distance=sq_distance,
        )

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the μ of each probe."""
        return F.weak_strong_convexity_ratio(**columns)
