"""Which of many probes can be on the envelope that is the feasible set of the α-β-condition: exact work is for those alone."""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 1e-9
"""Relative: far above the rounding of float64, so that nothing on the exact envelope is left out"""


def near_envelope(
    *, loss: Tensor, reference_loss: Tensor, inner_product: Tensor, loss_infimum: Tensor
) -> Tensor:
    r"""Which probes are on the upper envelope of the lines, or so near to it that float64 cannot tell.

    .. math:: \beta_{\min}(\delta) = \max_k \frac{\delta(a_k - b_k) - p_k}{b_k - l_k}

    A line that is below a mean of two others, one steeper and one flatter, is below one of them for every δ: in the plane of
    slopes and intercepts only the upper hull matters.

    Args:
        loss: ``a_k``, float64, shape ``(n,)``.
        reference_loss: ``b_k``, float64, shape ``(n,)``.
        inner_product: ``p_k``, float64, shape ``(n,)``.
        loss_infimum: ``l_k``, float64, shape ``(n,)``.

    Returns:
        bool, shape ``(n,)``; the feasible set of these rows is that of all.

    Source:
        ``docs/theory.md``, section 2.

    Example:
        >>> column = lambda *values: torch.tensor(values, dtype=torch.float64)
        >>> ones, zeros = torch.ones(3).double(), torch.zeros(3).double()
        >>> near_envelope(loss=column(2, 3, 2.5), reference_loss=ones, inner_product=column(0, 0, 5), loss_infimum=zeros)
        tensor([ True,  True, False])
    """
    below = reference_loss - loss_infimum
    slope, height = (loss - reference_loss) / below, -inner_product / below
    # what cancellation or overflow may have spoilt, degenerate rows among it, is kept
    unsure = below <= 1e-6 * (reference_loss.abs() + loss_infimum.abs()) * (loss_infimum != 0)
    unsure |= (
        (below <= 0)
        | ~slope.isfinite()
        | ~height.isfinite()
        | ~(slope.abs() < 1e100)
        | ~(height.abs() < 1e100)
    )
    kept = unsure.clone()
    (sure,) = (~unsure).nonzero(as_tuple=True)
    if not len(sure):
        return kept
    x, y = slope[sure], height[sure]
    hull = _upper_hull(x, y)
    xs, ys = hull[:, 0].contiguous(), hull[:, 1]
    right = torch.searchsorted(xs, x).clamp(1 if len(xs) > 1 else 0, len(xs) - 1)
    left = (right - 1).clamp(min=0)
    width = xs[right] - xs[left]
    share = torch.where(width > 0, (x - xs[left]) / width.where(width > 0, 1.0), 0.0)
    top = ys[left] + share * (ys[right] - ys[left])
    kept[sure] = y >= top - _SLACK * (y.abs() + ys[left].abs() + ys[right].abs())
    return kept


def _upper_hull(x: Tensor, y: Tensor) -> Tensor:
    """Return the corners of the upper hull of points, by ascending x, of shape ``(m, 2)``."""
    hull: list[tuple[float, float]] = []
    for point in sorted(zip(x.tolist(), y.tolist(), strict=True)):
        if hull and hull[-1][0] == point[0]:
            hull.pop()
        while len(hull) > 1 and _is_below(hull[-1], hull[-2], point):
            hull.pop()
        hull.append(point)
    return torch.tensor(hull, dtype=torch.float64)


def _is_below(
    middle: tuple[float, float], left: tuple[float, float], right: tuple[float, float]
) -> bool:
    share = (middle[0] - left[0]) / (right[0] - left[0])
    return middle[1] <= left[1] + share * (right[1] - left[1])
