r"""Quadratic growth ``f − f* ≥ (μ/2)‖x − x_p‖²``, per probe."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns
from lightning_landscape.functional._ratio import largest_factor


def quadratic_growth_ratio(*, loss: Tensor, reference_loss: Tensor, sq_distance: Tensor) -> Tensor:
    r"""Largest μ with which the inequality holds at each probe.

    .. math:: \mu_k = 2(a_k - b_k) / D_k^2

    Args:
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        sq_distance: ``D_k²``, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``; negative where ``a_k < b_k``. Where ``D_k = 0``: ``nan`` if every μ
        holds (``a_k ≥ b_k``), ``−inf`` if none does.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Anitescu 2000; Karimi, Nutini, Schmidt 2016.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> quadratic_growth_ratio(loss=3 * one, reference_loss=one, sq_distance=8 * one)
        tensor([0.5000], dtype=torch.float64)
    """
    check_columns(loss=loss, reference_loss=reference_loss, sq_distance=sq_distance)
    return largest_factor(2 * (loss.double() - reference_loss.double()), sq_distance)
