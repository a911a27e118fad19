"""`StarConvexity`: star convexity as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class StarConvexity(WorstCase):
    r"""Share of the probes at which star convexity holds.

    .. math:: p_k \ge a_k - b_k

    ``update`` takes ``loss``, ``reference_loss`` and ``inner_product``. ``compute`` returns the
    dict documented in `WorstCase`, with these differences:

    - ``value`` is the share of the probes at which the inequality holds;
    - ``ratio`` is 1 where it holds, else 0;
    - ``row`` is the first probe that violates it, or None.

    Source:
        Nesterov and Polyak 2006.

    Example:
        >>> import torch
        >>> metric = StarConvexity()
        >>> metric.update(
        ...     loss=torch.tensor([3.0, 3.0]),
        ...     reference_loss=torch.ones(2),
        ...     inner_product=torch.tensor([2.0, 1.0]),
        ... )
        >>> result = metric.compute()
        >>> result["value"].item(), result["row"]
        (0.5, 1)
    """

    columns = ("loss", "reference_loss", "inner_product")
    constant = "share"

    def update(self, loss: Column, reference_loss: Column, inner_product: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(loss=loss, reference_loss=reference_loss, inner_product=inner_product)

    def over(self, **columns: Tensor) -> dict[str, Any]:
        """Return the same dict as `compute`, over the given probes only."""
        result = super().over(**columns)
        # The smallest ratio is at the first violation only if there is one.
        holds_everywhere = not bool(result["violated"].any())
        return {
            **result,
            "value": result["ratio"].mean(),
            "row": None if holds_everywhere else result["row"],
        }

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return 1 where the inequality holds, else 0."""
        return F.star_convexity_holds(**columns).double()

    def violates(self, ratio: Tensor) -> Tensor:
        """Return whether each probe violates the inequality."""
        return ratio == 0
