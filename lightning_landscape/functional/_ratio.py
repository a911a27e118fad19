"""The constant c of an inequality ``left ≥ c · right`` at each probe, with its special cases."""

import torch
from torch import Tensor


def largest_factor(left: Tensor, right: Tensor) -> Tensor:
    """Return the largest c with ``left ≥ c · right`` at each probe, for ``right ≥ 0``.

    Where ``right = 0``: ``nan`` if every c holds (``left ≥ 0``), ``−inf`` if none does. Where
    ``right < 0``: ``nan``, since the inequality does not apply.
    """
    ratio = left.double() / right.double()
    # The quotients of these rows, 0/0 or of the wrong sign, say nothing: set them explicitly.
    ratio = torch.where((right == 0) & (left < 0), -torch.inf, ratio)
    return ratio.masked_fill((right < 0) | ((right == 0) & (left >= 0)), torch.nan)


def smallest_factor(left: Tensor, right: Tensor) -> Tensor:
    """Return the smallest c ≥ 0 with ``left ≤ c · right`` at each probe, for ``left, right ≥ 0``.

    Where ``right ≤ 0``: 0 if ``left = 0``, else ``inf``, since no c holds.
    """
    ratio = (left.double() / right.double()).masked_fill(right <= 0, torch.inf)
    return ratio.masked_fill((right <= 0) & (left == 0), 0.0)
