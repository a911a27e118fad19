r"""The Polyak-Łojasiewicz inequality ``‖∇f‖² ≥ 2μ(f − f*)`` (Polyak 1963), per probe."""

from torch import Tensor


def polyak_lojasiewicz_ratio(*, grad_sq_norm: Tensor, loss: Tensor, loss_infimum: Tensor | float = 0.0) -> Tensor:
    r"""Largest μ with which the mini-batch inequality holds at each probe.

    .. math:: \mu_k = G_k^2 / (2(a_k - l_k))

    Args:
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        loss: ``a_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; ``nan`` where ``a_k ≤ l_k``: at the infimum every μ holds.

    Source:
        Polyak 1963; Karimi, Nutini, Schmidt 2016.

    Example:
        >>> import torch
        >>> polyak_lojasiewicz_ratio(grad_sq_norm=torch.tensor([4.0]), loss=torch.tensor([1.0]))
        tensor([2.], dtype=torch.float64)
    """
    gap = loss.double() - loss_infimum
    return (grad_sq_norm.double() / (2 * gap)).masked_fill(gap <= 0, float("nan"))
