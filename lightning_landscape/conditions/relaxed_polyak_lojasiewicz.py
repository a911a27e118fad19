"""`RelaxedPolyakLojasiewicz`: the relaxed Polyak-Łojasiewicz inequality as a metric."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.conditions._worst_case import Column, WorstCase


class RelaxedPolyakLojasiewicz(WorstCase):
    r"""Largest μ with which the relaxed Polyak-Łojasiewicz inequality holds at every probe.

    .. math:: G_k^{\delta'} \ge (2\mu)^{\delta'/2}(a_k - b_k)

    ``update`` takes ``loss``, ``reference_loss`` and ``grad_sq_norm``. ``compute`` returns the dict
    documented in `WorstCase`.

    Args:
        exponent: δ' in [1, 2]; 2 is the Polyak-Łojasiewicz inequality with f(x_p) for f*.

    Source:
        Islamov et al. 2024, Appendix A.

    Example:
        >>> import torch
        >>> metric = RelaxedPolyakLojasiewicz(exponent=1.0)
        >>> metric.update(loss=3.0, reference_loss=1.0, grad_sq_norm=8.0)
        >>> metric.compute()["value"]
        tensor(1., dtype=torch.float64)
    """

    columns = ("loss", "reference_loss", "grad_sq_norm")
    constant = "mu"

    def __init__(self, exponent: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exponent = exponent

    def update(self, loss: Column, reference_loss: Column, grad_sq_norm: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers."""
        self.add(loss=loss, reference_loss=reference_loss, grad_sq_norm=grad_sq_norm)

    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the μ of each probe."""
        return F.relaxed_polyak_lojasiewicz_ratio(**columns, exponent=self.exponent)
