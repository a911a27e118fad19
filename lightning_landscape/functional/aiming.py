r"""The aiming condition ``<∇f, x − x_p> ≥ θ f`` (Liu et al. 2023), per probe."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns, like
from lightning_landscape.functional._ratio import largest_factor


def aiming_ratio(
    *, loss: Tensor, inner_product: Tensor, loss_infimum: Tensor | float = 0.0
) -> Tensor:
    r"""Largest θ with which the inequality holds at each probe.

    .. math:: \theta_k = p_k / (a_k - l_k)

    The condition is stated for losses with minimum 0. With another infimum l it is applied to f −
    l.

    Args:
        loss: ``a_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; negative where the negative gradient points away from x_p.
        Where ``a_k = l_k``: ``nan`` if every θ holds (``p_k ≥ 0``), ``−inf`` if none does.
        Where ``a_k < l_k``: ``nan``, since l is no lower bound there.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Liu, Drusvyatskiy, Belkin, Davis, Ma, *Aiming towards the minimizers*, 2023.

    Example:
        >>> import torch
        >>> aiming_ratio(loss=torch.tensor([2.0, 0.0]), inner_product=torch.tensor([1.0, -1.0]))
        tensor([0.5000,   -inf], dtype=torch.float64)
    """
    infimum = like(loss_infimum, loss)
    check_columns(loss=loss, inner_product=inner_product, loss_infimum=infimum)
    return largest_factor(inner_product, loss.double() - infimum)
