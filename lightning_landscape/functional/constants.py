"""The constant over all probes from the constants of single probes: worst case and quantiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Shares at which the quantiles of the probes' constants are reported"""


@dataclass(frozen=True, slots=True)
class Constant:
    """The constant with which an inequality holds at every probe."""

    value: Tensor
    """float64, shape ``()``; ``nan`` if every constant holds, infinite if none does"""
    row: int | None
    """The first probe that attains the constant; None if the constant is ``nan``"""
    quantiles: Tensor
    """float64, shape ``(7,)``: quantiles at the shares of `QUANTILES`, without interpolation.

    Probes at which every constant holds are left out; all ``nan`` if no other probe exists.
    """


def largest_constant(ratio: Tensor) -> Constant:
    r"""Largest c with which ``left ≥ c · right`` holds at every probe.

    .. math:: c = \min_k c_k

    Args:
        ratio: ``c_k``, the largest c of each probe, shape ``(n,)``; ``nan`` where every c holds,
            ``−inf`` where none does.

    Returns:
        The constant, the probe that attains it, and quantiles of ``c_k``.

    Example:
        >>> import torch
        >>> constant = largest_constant(torch.tensor([3.0, float("nan"), 0.5, 0.5]))
        >>> constant.value.item(), constant.row
        (0.5, 2)
    """
    return _extreme(ratio, Tensor.argmin)


def smallest_constant(ratio: Tensor) -> Constant:
    r"""Smallest c with which ``left ≤ c · right`` holds at every probe.

    .. math:: c = \max_k c_k

    Args:
        ratio: ``c_k``, the smallest c of each probe, shape ``(n,)``; ``nan`` where every c holds,
            ``inf`` where none does.

    Returns:
        The constant, the probe that attains it, and quantiles of ``c_k``.

    Example:
        >>> import torch
        >>> constant = smallest_constant(torch.tensor([3.0, 4.0, 0.5]))
        >>> constant.value.item(), constant.row
        (4.0, 1)
    """
    return _extreme(ratio, Tensor.argmax)


def _extreme(ratio: Tensor, choose: Callable[[Tensor], Tensor]) -> Constant:
    values = ratio.double()
    asking = (~values.isnan()).nonzero().flatten()
    nothing = values.new_tensor(torch.nan)
    if not len(asking):
        return Constant(nothing, None, nothing.expand(len(QUANTILES)).clone())
    asked = values[asking]
    row = int(asking[choose(asked)])
    # torch.quantile interpolates, which gives nan next to infinite values.
    ordered = asked.sort().values
    places = (values.new_tensor(QUANTILES) * (len(ordered) - 1)).round().long()
    return Constant(values[row], row, ordered[places])
