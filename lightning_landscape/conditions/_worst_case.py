"""Base classes of the conditions: probe columns as state, and the constant over all probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_landscape.functional.constants import Constant, largest_constant, smallest_constant

Column = Tensor | float


class WorstCase(Metric, ABC):
    r"""A condition with one constant, over all added probes.

    A subclass names its ``columns`` and its ``constant``, computes the constant of each probe, and
    defines a violation. ``compute`` returns a dict of float64 tensors, of shape ``()`` unless
    noted:

    - ``value``: the constant with which the inequality holds at every probe; ``nan`` if every
      constant holds, infinite if none does;
    - ``row``: the first probe that attains it, an int, or None if ``value`` is ``nan``;
    - ``violated``: whether each probe violates the inequality with the constant 0 (for upper
      bounds: with every constant), bool, shape ``(n,)``;
    - ``violated_share``: the mean of ``violated``;
    - ``quantiles``: quantiles of ``ratio`` at the shares
      `lightning_landscape.functional.QUANTILES`, shape ``(7,)``;
    - ``ratio``: the constant of each probe, shape ``(n,)``; ``nan`` where every constant holds.

    For a single probe torchmetrics squeezes the shape ``(1,)`` to ``()``.

    Raises:
        ValueError: in ``compute``, if a column is malformed.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    columns: ClassVar[tuple[str, ...]]
    """Names of the arguments of ``update``"""
    constant: ClassVar[str]
    """Name of the constant in files and tags"""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Worst case and quantiles need all probes, so the state grows with them.
        for column in self.columns:
            self.add_state(column, default=[], dist_reduce_fx="cat")

    def add(self, **columns: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers.

        A number given together with columns applies to every probe.
        """
        tensors = [
            torch.as_tensor(columns[name], dtype=torch.float64).reshape(-1) for name in self.columns
        ]
        length = max(map(len, tensors))
        for name, tensor in zip(self.columns, tensors, strict=True):
            getattr(self, name).append(tensor.expand(length) if len(tensor) == 1 else tensor)

    def compute(self) -> dict[str, Any]:
        """Return the dict that the class documents, over all added probes."""
        return self.over(**{name: dim_zero_cat(getattr(self, name)) for name in self.columns})

    def over(self, **columns: Tensor) -> dict[str, Any]:
        """Return the same dict as `compute`, over the given probes only; they are not added.

        Args:
            columns: the arguments of ``update``, float64, shape ``(n,)``.
        """
        ratio = self.ratio(**columns)
        constant, violated = self.worst(ratio), self.violates(ratio)
        return {
            "value": constant.value,
            "row": constant.row,
            "violated": violated,
            "violated_share": violated.double().mean(),
            "quantiles": constant.quantiles,
            "ratio": ratio,
        }

    @abstractmethod
    def ratio(self, **columns: Tensor) -> Tensor:
        """Return the constant of each probe."""

    def worst(self, ratio: Tensor) -> Constant:
        """Return the largest constant that holds at every probe."""
        return largest_constant(ratio)

    def violates(self, ratio: Tensor) -> Tensor:
        """Return whether each probe violates the inequality with the constant 0."""
        return ratio < 0


class UpperConstant(WorstCase):
    """A condition that bounds from above: a smaller constant is better."""

    constant = "L"

    def worst(self, ratio: Tensor) -> Constant:
        """Return the smallest constant that holds at every probe."""
        return smallest_constant(ratio)

    def violates(self, ratio: Tensor) -> Tensor:
        """Return whether each probe violates the inequality with every constant."""
        return ratio.isposinf()
