"""`ErrorBound`: the error bound as a torchmetrics metric."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class ErrorBound(WorstCase):
    r"""Largest μ with which the error bound holds at every probe.

    .. math:: G_k \ge \mu\,D_k

    ``update`` takes ``grad_sq_norm`` and ``sq_distance``. ``compute`` returns the dict documented
    in `WorstCase`.

    Source:
        Luo and Tseng 1993.

    Example:
        >>> import torch
        >>> metric = ErrorBound()
        >>> metric.update(grad_sq_norm=torch.tensor([1.0, 4.0]), sq_distance=4 * torch.ones(2))
        >>> result = metric.compute()
        >>> result["value"].item(), result["row"]
        (0.5, 0)
    """

    columns = ("grad_sq_norm", "sq_distance")
    constant = "mu"

    def update(self, grad_sq_norm: Column, sq_distance: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(grad_sq_norm=grad_sq_norm, sq_distance=sq_distance)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the μ of each probe."""
        return F.error_bound_ratio(**columns)
