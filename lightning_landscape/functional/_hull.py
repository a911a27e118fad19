"""A float64 filter of the probes that can bound the feasible set of the α-β-condition.

Exact arithmetic is slow, so it is applied only to the probes that pass this filter.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 1e-9
"""Relative tolerance far above the rounding of float64: no line of the exact envelope is lost"""


def near_envelope(
    *, loss: Tensor, reference_loss: Tensor, inner_product: Tensor, loss_infimum: Tensor
) -> Tensor:
    r"""Whether each probe is on the upper envelope of the lines, or too near to it for float64.

    .. math:: \beta_{\min}(\delta) = \max_k \frac{\delta(a_k - b_k) - p_k}{b_k - l_k}

    A line below a mean of a steeper and a flatter line is, for every δ, below one of the two. So
    only the upper hull of the points (slope, intercept) matters.

    Args:
        loss: ``a_k``, float64, shape ``(n,)``.
        reference_loss: ``b_k``, float64, shape ``(n,)``.
        inner_product: ``p_k``, float64, shape ``(n,)``.
        loss_infimum: ``l_k``, float64, shape ``(n,)``.

    Returns:
        bool, shape ``(n,)``; the selected rows have the same feasible set as all rows.

    Source:
        ``docs/theory.md``, section 2.

    Example:
        >>> column = lambda *values: torch.tensor(values, dtype=torch.float64)
        >>> ones, zeros = torch.ones(3).double(), torch.zeros(3).double()
        >>> near_envelope(
        ...     loss=column(2, 3, 2.5),
        ...     reference_loss=ones,
        ...     inner_product=column(0, 0, 5),
        ...     loss_infimum=zeros,
        ... )
        tensor([ True,  True, False])
    """
    below = reference_loss - loss_infimum
    slope, height = (loss - reference_loss) / below, -inner_product / below
    # Keep degenerate rows, and rows whose line is spoiled by cancellation or overflow.
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
    # Compare each point with the hull's height above it, interpolated between two corners.
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
    """Return the corners of the upper hull by ascending x, shape ``(m, 2)``."""
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
