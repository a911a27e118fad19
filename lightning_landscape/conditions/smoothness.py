"""`Smoothness` and `SecantSmoothness`: lower bounds of L as torchmetrics metrics."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, UpperConstant


class Smoothness(UpperConstant):
    r"""Smallest L with which the self-bounding inequality holds at every probe.

    .. math:: G_k^2 \le 2L\,(a_k - l_k)

    It is a lower bound of the true L. ``update`` takes ``loss``, ``grad_sq_norm`` and
    ``loss_infimum`` (default 0). ``compute`` returns the dict documented in `WorstCase`.

    Source:
        Islamov et al. 2024, the assumption of L-smoothness.

    Example:
        >>> import torch
        >>> metric = Smoothness()
        >>> metric.update(loss=torch.tensor([2.0, 1.0]), grad_sq_norm=torch.tensor([1.0, 4.0]))
        >>> result = metric.compute()
        >>> result["value"].item(), result["row"]
        (2.0, 1)
    """

    columns = ("loss", "grad_sq_norm", "loss_infimum")

    def update(self, loss: Column, grad_sq_norm: Column, loss_infimum: Column = 0.0) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(loss=loss, grad_sq_norm=grad_sq_norm, loss_infimum=loss_infimum)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the L of each probe."""
        return F.smoothness_ratio(**columns)


class SecantSmoothness(UpperConstant):
    r"""Smallest Lipschitz constant of the mini-batch gradients between consecutive iterates.

    .. math:: \|\nabla f_{i_k}(x_{k+1}) - \nabla f_{i_k}(x_k)\| \le L\,\|x_{k+1} - x_k\|

    It is a lower bound of the true L. ``update`` takes the squares of both norms,
    ``grad_sq_change`` and ``sq_step``. ``compute`` returns the dict documented in `WorstCase`.

    Example:
        >>> import torch
        >>> metric = SecantSmoothness()
        >>> metric.update(grad_sq_change=torch.tensor([4.0, 1.0]), sq_step=torch.ones(2))
        >>> metric.compute()["value"].item()
        2.0
    """

    columns = ("grad_sq_change", "sq_step")

    def update(self, grad_sq_change: Column, sq_step: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(grad_sq_change=grad_sq_change, sq_step=sq_step)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the L of each probe."""
        return F.secant_smoothness_ratio(**columns)
