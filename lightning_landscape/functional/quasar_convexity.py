r"""Quasar convexity ``<∇f, x − x*> ≥ θ(f − f*)`` (Hardt, Ma, Recht 2018)."""

import torch
from torch import Tensor

from lightning_landscape.functional._columns import check_columns


def quasar_convexity_ratio(
    *, loss: Tensor, reference_loss: Tensor, inner_product: Tensor
) -> Tensor:
    r"""The θ with which the inequality is an equality at each probe.

    .. math:: \theta_k = p_k / (a_k - b_k)

    Where ``a_k > b_k`` the inequality holds for ``θ ≤ θ_k``. A mini-batch loss can also be smaller
    at x_k than at x_p: where ``a_k < b_k`` the inequality holds for ``θ ≥ θ_k``.

    Args:
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``. Where ``a_k = b_k``: ``nan`` if every θ holds (``p_k ≥ 0``),
        ``−inf`` if none does.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Hardt, Ma, Recht 2018 (weak quasi-convexity); Hinder, Sidford, Sohoni 2020.

    Example:
        >>> import torch
        >>> quasar_convexity_ratio(
        ...     loss=torch.tensor([3.0, 0.5, 1.0]),
        ...     reference_loss=torch.ones(3),
        ...     inner_product=torch.tensor([1.0, -0.25, 0.0]),
        ... )
        tensor([0.5000, 0.5000,    nan], dtype=torch.float64)
    """
    check_columns(loss=loss, reference_loss=reference_loss, inner_product=inner_product)
    gap, product = loss.double() - reference_loss.double(), inner_product.double()
    ratio = torch.where(product >= 0, torch.nan, -torch.inf).double()
    return torch.where(gap == 0, ratio, product / gap)


def quasar_convexity_interval(
    *, loss: Tensor, reference_loss: Tensor, inner_product: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The interval of all θ > 0 with which quasar convexity holds at every probe.

    .. math:: \max\bigl(0, \max_{a_k < b_k} \theta_k\bigr) \le \theta \le \min_{a_k > b_k} \theta_k

    Args:
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.

    Returns:
        Lower and upper end, float64, shape ``()``. Both are ``nan`` if no θ > 0 holds. The upper
        end is ``inf`` if ``a_k ≤ b_k`` at every probe. A lower end of 0 is not in the interval.

    Raises:
        ValueError: if a column is malformed.

    Example:
        >>> import torch
        >>> lower, upper = quasar_convexity_interval(
        ...     loss=torch.tensor([3.0, 0.5]),
        ...     reference_loss=torch.ones(2),
        ...     inner_product=torch.tensor([1.0, -0.125]),
        ... )
        >>> lower.item(), upper.item()
        (0.25, 0.5)
    """
    ratio = quasar_convexity_ratio(
        loss=loss, reference_loss=reference_loss, inner_product=inner_product
    )
    gap = loss.double() - reference_loss.double()
    # 0 and ∞ are the ends if no probe bounds θ from that side.
    lower = torch.cat([ratio.new_zeros(1), ratio[gap < 0]]).max()
    upper = torch.cat([ratio.new_tensor([torch.inf]), ratio[gap > 0]]).min()
    impossible = bool(ratio.isneginf().any()) or bool(upper <= 0) or bool(lower > upper)
    nothing = ratio.new_tensor(torch.nan)
    return (nothing, nothing) if impossible else (lower, upper)
