r"""The Polyak-Łojasiewicz inequality ``‖∇f‖² ≥ 2μ(f − f*)`` (Polyak 1963), per probe."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns, like
from lightning_landscape.functional._ratio import largest_factor


def polyak_lojasiewicz_ratio(
    *, grad_sq_norm: Tensor, loss: Tensor, loss_infimum: Tensor | float = 0.0
) -> Tensor:
    r"""Largest μ with which the inequality holds at each probe.

    .. math:: \mu_k = G_k^2 / (2(a_k - l_k))

    On mini-batches this is the inequality for each f_i with its own infimum. If every probe is a
    full batch, pass ``reference_loss`` as ``loss_infimum``: then it is the original inequality for
    f, with f(x_p) in place of the minimum.

    Args:
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        loss: ``a_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; ``nan`` where ``a_k ≤ l_k``, where every μ holds.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Polyak 1963; Karimi, Nutini, Schmidt 2016.

    Example:
        >>> import torch
        >>> polyak_lojasiewicz_ratio(
        ...     grad_sq_norm=torch.tensor([4.0, 0.0]), loss=torch.tensor([1.0, 0.0])
        ... )
        tensor([2., nan], dtype=torch.float64)
    """
    infimum = like(loss_infimum, loss)
    check_columns(grad_sq_norm=grad_sq_norm, loss=loss, loss_infimum=infimum)
    return largest_factor(grad_sq_norm, 2 * (loss.double() - infimum))
