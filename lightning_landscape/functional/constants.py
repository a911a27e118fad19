"""From the constant of each probe to the constant of all: a worst case, where it is attained, and quantiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Shares at which the constants of single probes are given"""


@dataclass(frozen=True, slots=True)
class Constant:
    """The constant with which an inequality holds at every probe."""

    value: Tensor
    """float64, shape ``()``; ``nan`` where no probe asks anything of it, infinite where no constant holds"""
    row: int | None
    """The first probe at which it is attained; None where there is none"""
    quantiles: Tensor
    """float64, shape ``(7,)``: at each share of `QUANTILES` the constant of some probe; ``nan`` without any"""


def largest_constant(ratio: Tensor) -> Constant:
    r"""Largest c with which ``left ≥ c · right`` holds at every probe: the smallest of the probes' own.

    Args:
        ratio: the largest c of each probe, shape ``(n,)``; ``nan`` where every c holds, ``−inf`` where none does.

    Returns:
        The constant, its probe and quantiles.

    Example:
        >>> import torch
        >>> constant = largest_constant(torch.tensor([3.0, float("nan"), 0.5, 0.5]))
        >>> constant.value.item(), constant.row
        (0.5, 2)
    """
    return _extreme(ratio, Tensor.argmin)


def smallest_constant(ratio: Tensor) -> Constant:
    r"""Smallest c with which ``left ≤ c · right`` holds at every probe: the largest of the probes' own.

    Args:
        ratio: the smallest c of each probe, shape ``(n,)``; ``nan`` where every c holds, ``inf`` where none does.

    Returns:
        The constant, its probe and quantiles.

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
    ordered = asked.sort().values  # not torch.quantile, which is nan beside infinite values
    places = (values.new_tensor(QUANTILES) * (len(ordered) - 1)).round().long()
    return Constant(values[row], row, ordered[places])
