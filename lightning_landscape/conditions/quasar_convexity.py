"""`QuasarConvexity`: quasar convexity as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class QuasarConvexity(WorstCase):
    r"""All θ > 0 with which quasar convexity holds at every probe: an interval, of which ``value`` is the upper end.

    .. math:: p_k \ge \theta\,(a_k - b_k)

    ``update`` takes ``loss``, ``reference_loss``, ``inner_product``; ``compute`` answers what `WorstCase` says and ``lower``,
    the lower end, which mini-batches below their loss at the reference ask for. Both ends are ``nan`` where no θ > 0 holds
    at all probes; ``value`` is ``inf``, and ``row`` None, where no probe is above the reference. ``violated`` is ``p_k < 0``
    where ``a_k ≥ b_k``.

    Source:
        Hardt, Ma, Recht 2018.

    Example:
        >>> import torch
        >>> metric = QuasarConvexity()
        >>> metric.update(
        ...     loss=torch.tensor([3.0, 0.5]), reference_loss=torch.ones(2), inner_product=torch.tensor([1.0, -0.125])
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
        """Return the interval over given probes."""
        lower, upper = F.quasar_convexity_interval(**columns)
        return {**super().over(**columns), "value": upper, "lower": lower}

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the θ up to which each probe's inequality holds; ``nan`` where it holds from some θ on."""
        ratio = F.quasar_convexity_ratio(**columns)
        return ratio.masked_fill(columns["loss"] < columns["reference_loss"], torch.nan)
