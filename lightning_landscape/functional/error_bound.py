r"""The error bound ``‖∇f‖ ≥ μ‖x − x_p‖`` (Luo and Tseng 1993), per probe."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns
from lightning_landscape.functional._ratio import largest_factor


def error_bound_ratio(*, grad_sq_norm: Tensor, sq_distance: Tensor) -> Tensor:
    r"""Largest μ with which the inequality holds at each probe.

    .. math:: \mu_k = G_k / D_k

    Args:
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        sq_distance: ``D_k²``, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; ``nan`` where ``D_k = 0``, where every μ holds.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Luo and Tseng 1993; Karimi, Nutini, Schmidt 2016.

    Example:
        >>> import torch
        >>> error_bound_ratio(grad_sq_norm=torch.tensor([4.0, 0.0]), sq_distance=torch.ones(2))
        tensor([2., 0.], dtype=torch.float64)
    """
    check_columns(grad_sq_norm=grad_sq_norm, sq_distance=sq_distance)
    return largest_factor(grad_sq_norm.double().sqrt(), sq_distance.double().sqrt())
