r"""Smoothness of mini-batch losses: self-bounding ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``, and by secants."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns, like
from lightning_landscape.functional._ratio import smallest_factor


def smoothness_ratio(
    *, grad_sq_norm: Tensor, loss: Tensor, loss_infimum: Tensor | float = 0.0
) -> Tensor:
    r"""Smallest L with which the self-bounding inequality holds at each probe.

    .. math:: L_k = G_k^2 / (2(a_k - l_k))

    The inequality holds for every L-smooth f_i, so each ``L_k`` is a lower bound of the true L.

    Args:
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        loss: ``a_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; 0 where both sides are 0. ``inf`` where ``a_k = l_k`` and
        ``G_k > 0``: no L holds, because a step along −gradient would take the loss below l.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Islamov et al. 2024, the assumption of L-smoothness, in the form used in the proofs.

    Example:
        >>> import torch
        >>> smoothness_ratio(grad_sq_norm=torch.tensor([4.0, 0]), loss=torch.tensor([1.0, 0]))
        tensor([2., 0.], dtype=torch.float64)
    """
    infimum = like(loss_infimum, loss)
    check_columns(grad_sq_norm=grad_sq_norm, loss=loss, loss_infimum=infimum)
    return smallest_factor(grad_sq_norm, 2 * (loss.double() - infimum))


def secant_smoothness_ratio(*, grad_sq_change: Tensor, sq_step: Tensor) -> Tensor:
    r"""Smallest Lipschitz constant of a mini-batch gradient between consecutive iterates.

    .. math:: L_k = \|\nabla f_{i_k}(x_{k+1}) - \nabla f_{i_k}(x_k)\| / \|x_{k+1} - x_k\|

    Like the self-bounding ratio, it is a lower bound of the true L.

    Args:
        grad_sq_change: ``‖∇f_{i_k}(x_{k+1}) − ∇f_{i_k}(x_k)‖²``, shape ``(n,)``.
        sq_step: ``‖x_{k+1} − x_k‖²``, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; 0 where the gradient did not change.

    Raises:
        ValueError: if a column is malformed.

    Example:
        >>> import torch
        >>> secant_smoothness_ratio(
        ...     grad_sq_change=torch.tensor([4.0, 0.0]), sq_step=torch.tensor([1.0, 0.0])
        ... )
        tensor([2., 0.], dtype=torch.float64)
    """
    check_columns(grad_sq_change=grad_sq_change, sq_step=sq_step)
    return smallest_factor(grad_sq_change.double().sqrt(), sq_step.double().sqrt())
