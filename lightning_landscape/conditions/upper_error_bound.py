"""`UpperErrorBound`: the upper error bound as a torchmetrics metric."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, UpperConstant


class UpperErrorBound(UpperConstant):
    r"""Smallest L with which the upper error bound holds at every probe.

    .. math:: G_k \le L\,D_k

    The μ of `RestrictedSecant` divided by L is the inverse condition number along the run.

    ``update`` takes ``grad_sq_norm`` and ``sq_distance``. ``compute`` returns the dict documented
    in `WorstCase`.

    Source:
        Guille-Escuret, Naganuma, Fatras, Mitliagkas 2024.

    Example:
        >>> import torch
        >>> metric = UpperErrorBound()
        >>> metric.update(grad_sq_norm=torch.tensor([1.0, 4]), sq_distance=torch.tensor([4.0, 1]))
        >>> metric.compute()["value"].item()
        2.0
    """

    columns = ("grad_sq_norm", "sq_distance")

    def update(self, grad_sq_norm: Column, sq_distance: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(grad_sq_norm=grad_sq_norm, sq_distance=sq_distance)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the L of each probe."""
        return F.upper_error_bound_ratio(**columns)
