r"""The restricted secant inequality ``<∇f, x − x_p> ≥ μ‖x − x_p‖²``, per probe."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns
from lightning_landscape.functional._ratio import largest_factor


def restricted_secant_ratio(*, inner_product: Tensor, sq_distance: Tensor) -> Tensor:
    r"""Largest μ with which the inequality holds at each probe.

    .. math:: \mu_k = p_k / D_k^2

    Args:
        inner_product: ``p_k``, shape ``(n,)``.
        sq_distance: ``D_k²``, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; ``nan`` where ``D_k = 0``, where every μ holds.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Zhang and Yin 2013; Karimi, Nutini, Schmidt 2016.

    Example:
        >>> import torch
        >>> restricted_secant_ratio(
        ...     inner_product=torch.tensor([1.0, -1.0]), sq_distance=torch.tensor([2.0, 4.0])
        ... )
        tensor([ 0.5000, -0.2500], dtype=torch.float64)
    """
    check_columns(inner_product=inner_product, sq_distance=sq_distance)
    return largest_factor(inner_product, sq_distance)
