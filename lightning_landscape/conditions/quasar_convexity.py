"""`QuasarConvexity`: quasar convexity as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class QuasarConvexity(WorstCase):
    r"""The interval of all θ > 0 with which quasar convexity holds at every probe.

    .. math:: p_k \ge \theta\,(a_k - b_k)

    ``update`` takes ``loss``, ``reference_loss`` and ``inner_product``. ``compute`` returns the
    dict documented in `WorstCase`, with these differences:

    - ``value`` is the upper end of the interval; it is ``inf``, and ``row`` None, if ``a_k ≤ b_k``
      at every probe;
    - ``lower`` is the lower end; it is positive only if ``a_k < b_k`` at some probe;
    - both ends are ``nan`` if no θ > 0 holds at every probe;
    - ``violated`` is True where ``a_k ≥ b_k`` and ``p_k < 0``.

    Source:
        Hardt, Ma, Recht 2018.

    Example:
        >>> import torch
        >>> metric = QuasarConvexity()
        >>> metric.update(
        ...     loss=torch.tensor([3.0, 0.5]),
        ...     reference_loss=torch.ones(2),
        ...     inner_product=torch.tensor([1.0, -0.125]),
        ... )
        >>> result = metric.compute()
        >>> result["lower"].item(), result["value"].item(), result["row"]
        (0.25, 0.5, 0)
    """

    columns = ("loss", "reference_loss", "inner_product")
    constant = "theta"

    def update(self, loss: Column, reference_loss: Column, inner_product: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(loss=loss, reference_loss=reference_loss, inner_product=inner_product)

    def over(self, **columns: Tensor) -> dict[str, Any]:
        """Return the same dict as `compute`, over the given probes only."""
        lower, upper = F.quasar_convexity_interval(**columns)
        return {**super().over(**columns), "value": upper, "lower": lower}

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the largest θ of each probe; ``nan`` where the inequality bounds θ from below."""
        ratio = F.quasar_convexity_ratio(**columns)
        # These probes bound θ from below. They enter `lower`, not the largest θ.
        return ratio.masked_fill(columns["loss"] < columns["reference_loss"], torch.nan)
