r"""The cosine of the angle between a mini-batch gradient and the direction away from x_p."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns


def cosine(*, inner_product: Tensor, grad_sq_norm: Tensor, sq_distance: Tensor) -> Tensor:
    r"""Cosine between ``∇f_k(x_k)`` and ``x_k − x_p``.

    .. math:: \cos_k = p_k / (G_k D_k)

    Args:
        inner_product: ``p_k``, shape ``(n,)``.
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        sq_distance: ``D_k²``, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; ``nan`` where the gradient or the distance is 0.

    Raises:
        ValueError: if a column is malformed.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> cosine(inner_product=one, grad_sq_norm=4 * one, sq_distance=one)
        tensor([0.5000], dtype=torch.float64)
    """
    check_columns(inner_product=inner_product, grad_sq_norm=grad_sq_norm, sq_distance=sq_distance)
    norms = grad_sq_norm.double().sqrt() * sq_distance.double().sqrt()
    return (inner_product.double() / norms).masked_fill(norms == 0, float("nan"))
