r"""Weak strong convexity ``f* ≥ f + <∇f, x_p − x> + (μ/2)‖x_p − x‖²``, per probe."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns
from lightning_landscape.functional._ratio import largest_factor


def weak_strong_convexity_ratio(
    *, loss: Tensor, reference_loss: Tensor, inner_product: Tensor, sq_distance: Tensor
) -> Tensor:
    r"""Largest μ with which the inequality holds at each probe; μ = 0 is star convexity.

    .. math:: \mu_k = 2(p_k - (a_k - b_k)) / D_k^2

    Args:
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.
        sq_distance: ``D_k²``, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``. Where ``D_k = 0``: ``nan`` if every μ holds (``a_k ≤ b_k``),
        ``−inf`` if none does.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Necoara, Nesterov, Glineur 2019 (quasi-strong convexity); Karimi, Nutini, Schmidt 2016.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> weak_strong_convexity_ratio(
        ...     loss=3 * one, reference_loss=one, inner_product=4 * one, sq_distance=8 * one
        ... )
        tensor([0.5000], dtype=torch.float64)
    """
    check_columns(
        loss=loss,
        reference_loss=reference_loss,
        inner_product=inner_product,
        sq_distance=sq_distance,
    )
    return largest_factor(
        2 * (inner_product.double() - (loss.double() - reference_loss.double())), sq_distance
    )
