r"""Self-bounding smoothness ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``, per probe."""

from torch import Tensor


def smoothness_ratio(*, grad_sq_norm: Tensor, loss: Tensor, loss_infimum: Tensor | float = 0.0) -> Tensor:
    r"""Smallest L with which the self-bounding inequality holds at each probe: a lower bound of the true L.

    .. math:: L_k = G_k^2 / (2(a_k - l_k))

    Args:
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        loss: ``a_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; 0 where both sides are 0, ``inf`` where the loss is at its infimum and ``G_k > 0``: no L
        holds, ``loss_infimum`` is no lower bound.

    Source:
        Islamov et al. 2024, Assumption on L-smoothness, in the form that the proofs use.

    Example:
        >>> import torch
        >>> smoothness_ratio(grad_sq_norm=torch.tensor([4.0, 0.0]), loss=torch.tensor([1.0, 0.0]))
        tensor([2., 0.], dtype=torch.float64)
    """
    gap, squares = loss.double() - loss_infimum, grad_sq_norm.double()
    ratio = (squares / (2 * gap)).masked_fill(gap <= 0, float("inf"))
    return ratio.masked_fill((gap <= 0) & (squares == 0), 0.0)
