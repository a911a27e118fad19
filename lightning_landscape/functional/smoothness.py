r"""Smoothness of the mini-batch losses, per probe: self-bounding ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``, or by a secant."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns, like
from lightning_landscape.functional._ratio import smallest_factor


def smoothness_ratio(
    *, grad_sq_norm: Tensor, loss: Tensor, loss_infimum: Tensor | float = 0.0
) -> Tensor:
    r"""Smallest L with which the self-bounding inequality holds at each probe: a lower bound of the true L.

    .. math:: L_k = G_k^2 / (2(a_k - l_k))

    Args:
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        loss: ``a_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; 0 where both sides are 0, ``inf`` where the loss is at its infimum and ``G_k > 0``: no L
        holds, ``loss_infimum`` is no lower bound.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Islamov et al. 2024, Assumption on L-smoothness, in the form that the proofs use.

    Example:
        >>> import torch
        >>> smoothness_ratio(grad_sq_norm=torch.tensor([4.0, 0.0]), loss=torch.tensor([1.0, 0.0]))
        tensor([2., 0.], dtype=torch.float64)
    """
    infimum = like(loss_infimum, loss)
    check_columns(grad_sq_norm=grad_sq_norm, loss=loss, loss_infimum=infimum)
    return smallest_factor(grad_sq_norm, 2 * (loss.double() - infimum))


def secant_smoothness_ratio(*, grad_sq_change: Tensor, sq_step: Tensor) -> Tensor:
    r"""Smallest L of the same mini-batch's gradient between consecutive iterates: a lower bound of the true L as well.

    .. math:: L_k = \|\nabla f_{i_k}(x_{k+1}) - \nabla f_{i_k}(x_k)\| / \|x_{k+1} - x_k\|

    Args:
        grad_sq_change: squared norm of the change of the gradient, shape ``(n,)``.
        sq_step: squared length of the step, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; 0 where nothing moved.

    Raises:
        ValueError: if a column is malformed.

    Example:
        >>> import torch
        >>> secant_smoothness_ratio(grad_sq_change=torch.tensor([4.0, 0.0]), sq_step=torch.tensor([1.0, 0.0]))
        tensor([2., 0.], dtype=torch.float64)
    """
    check_columns(grad_sq_change=grad_sq_change, sq_step=sq_step)
    return smallest_factor(grad_sq_change.double().sqrt(), sq_step.double().sqrt())
