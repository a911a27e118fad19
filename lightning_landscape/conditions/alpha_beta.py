"""`AlphaBeta`: the α-β-condition as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_landscape import functional as F


class AlphaBeta(Metric):
    r"""Exact feasible set of the α-β-condition over all added probes, and its best pair.

    .. math:: p_k \ge \alpha(a_k - b_k) - \beta(a_k - l_k) \text{ for all } k, \qquad
        \min (\beta/\delta)\,\sigma^2

    ``update`` takes ``loss``, ``reference_loss``, ``inner_product`` and ``loss_infimum`` (default
    0), each a column of shape ``(n,)`` or a number. ``compute`` returns a dict of float64 tensors,
    of shape ``()`` unless noted, ``nan`` if there is no value:

    - ``alpha``, ``beta``, ``rate`` (δ = α − β): the pair that minimizes β/δ;
    - ``attained``: whether such a pair exists, bool;
    - ``neighbourhood``: inf (β/δ)σ²;
    - ``interpolation_error``, ``interpolation_error_se``: σ² and its standard error;
    - ``vertices``: corners (δ, β) of β_min, shape ``(m, 2)``; for the curve between them call
      `lightning_landscape.functional.beta_min`;
    - ``margin``: T_k of each probe for the pair, shape ``(n,)``;
    - ``violated``: number of probes that violate the pair beyond rounding or exclude every pair;
    - ``degenerate_rows``: number of probes with ``b_k = l_k``;
    - ``coverage``: for each share in ``shares``, the best pair that holds at that share of probes.

    For a single probe torchmetrics squeezes the shape ``(1,)`` to ``()``.

    Args:
        shares: shares of probes for ``coverage``, each in (0, 1].

    Raises:
        ValueError: in ``compute``, if a column is malformed or ``loss_infimum`` exceeds a loss.

    Source:
        Islamov, Ajroldi, Orvieto, Lucchi, NeurIPS 2024, Definition 1.

    Example:
        >>> import torch
        >>> metric = AlphaBeta()
        >>> metric.update(
        ...     loss=torch.tensor([2.0, 3.0]),
        ...     reference_loss=torch.ones(2),
        ...     inner_product=torch.tensor([-0.5, 1.0]),
        ... )
        >>> result = metric.compute()
        >>> result["alpha"].item(), result["beta"].item(), round(result["neighbourhood"].item(), 4)
        (3.5, 2.0, 1.3333)
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    loss: list[Tensor]
    reference_loss: list[Tensor]
    inner_product: list[Tensor]
    loss_infimum: list[Tensor]

    def __init__(self, shares: tuple[float, ...] = (0.99, 0.95), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shares = shares
        for column in ("loss", "reference_loss", "inner_product", "loss_infimum"):
            self.add_state(column, default=[], dist_reduce_fx="cat")

    def update(
        self,
        loss: Tensor | float,
        reference_loss: Tensor | float,
        inner_product: Tensor | float,
        loss_infimum: Tensor | float = 0.0,
    ) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers for a single one."""
        columns = (loss, reference_loss, inner_product, loss_infimum)
        one_dimensional = [
            torch.as_tensor(column, dtype=torch.float64).reshape(-1) for column in columns
        ]
        length = len(one_dimensional[0])
        if len(one_dimensional[3]) == 1:
            one_dimensional[3] = one_dimensional[3].expand(length)
        states = (self.loss, self.reference_loss, self.inner_product, self.loss_infimum)
        for state, column in zip(states, one_dimensional, strict=True):
            state.append(column)

    def compute(self) -> dict[str, Any]:
        """Return the dict that the class documents, over all added probes."""
        return self.over(
            loss=dim_zero_cat(self.loss),
            reference_loss=dim_zero_cat(self.reference_loss),
            inner_product=dim_zero_cat(self.inner_product),
            loss_infimum=dim_zero_cat(self.loss_infimum),
        )

    def over(self, **given: Tensor) -> dict[str, Any]:
        """Return the same dict as `compute`, over the given probes only; they are not added.

        Args:
            given: the arguments of ``update``, float64, shape ``(n,)``.
        """
        columns: dict[str, Any] = given
        pair = F.best_alpha_beta(**columns)
        error, standard_error = F.interpolation_error(
            reference_loss=columns["reference_loss"], loss_infimum=columns["loss_infimum"]
        )
        violated = F.alpha_beta_impossible(**columns) | F.alpha_beta_violations(
            pair.alpha, pair.beta, **columns
        )
        return {
            **_as_dict(pair, error),
            "interpolation_error": error,
            "interpolation_error_se": standard_error,
            "vertices": F.alpha_beta_vertices(**columns),
            "margin": F.alpha_beta_margin(pair.alpha, pair.beta, **columns),
            "violated": violated.sum(),
            "degenerate_rows": (columns["reference_loss"] == columns["loss_infimum"]).sum(),
            "coverage": {
                str(share): _as_dict(F.best_alpha_beta(**columns, share=share), error)
                for share in self.shares
            },
        }


def _as_dict(pair: F.AlphaBetaPair, interpolation_error: Tensor) -> dict[str, Any]:
    return {
        "alpha": pair.alpha,
        "beta": pair.beta,
        "rate": pair.rate,
        "neighbourhood": pair.ratio * interpolation_error,
        "attained": pair.attained,
    }
