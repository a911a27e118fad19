r"""The upper error bound ``‖∇f‖ ≤ L‖x − x_p‖`` (Guille-Escuret et al. 2024), per probe."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns
from lightning_landscape.functional._ratio import smallest_factor


def upper_error_bound_ratio(*, grad_sq_norm: Tensor, sq_distance: Tensor) -> Tensor:
    r"""Smallest L with which the inequality holds at each probe.

    .. math:: L_k = G_k / D_k

    With the μ of the restricted secant inequality, μ/L is an inverse condition number along the
    run. It determines how fast gradient descent approaches x_p.

    Args:
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        sq_distance: ``D_k²``, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``. Where ``D_k = 0``: 0 if the gradient is 0, else ``inf``, since no L
        holds.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Guille-Escuret, Naganuma, Fatras, Mitliagkas 2024.

    Example:
        >>> import torch
        >>> upper_error_bound_ratio(
        ...     grad_sq_norm=torch.tensor([4.0, 1.0]), sq_distance=torch.tensor([1.0, 0.0])
        ... )
        tensor([2., inf], dtype=torch.float64)
    """
    check_columns(grad_sq_norm=grad_sq_norm, sq_distance=sq_distance)
    return smallest_factor(grad_sq_norm.double().sqrt(), sq_distance.double().sqrt())
