"""What the classes of conditions share: columns of probes as state, and the constant that holds at every probe."""

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
    r"""A condition with one constant, over all probes seen.

    A subclass names its ``columns`` and its ``constant``, gives the constant of each probe, and what a violation is.
    ``compute`` answers float64 tensors of shape ``()`` where nothing else is said:

    - ``value``: the constant with which the inequality holds at every probe; ``nan`` where no probe asks anything of it,
      infinite where no constant holds;
    - ``row``: the first probe at which it is attained, None where there is none;
    - ``violated``: the probes that violate the inequality with the constant 0 (or, where smaller constants are better, with
      every constant), bool, shape ``(n,)``; ``violated_share`` is their share;
    - ``quantiles``: the probes' own constants at the shares `lightning_landscape.functional.QUANTILES`, shape ``(7,)``;
    - ``ratio``: the constant of each probe, shape ``(n,)``; ``nan`` where every constant holds.

    With a single probe torchmetrics makes ``()`` of the shape ``(1,)``.

    Raises:
        ValueError: in ``compute``, if a column is malformed.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    columns: ClassVar[tuple[str, ...]]
    """Names of the arguments of ``update``"""
    constant: ClassVar[str]
    """The constant's name, as in files and tags"""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for column in self.columns:
            self.add_state(column, default=[], dist_reduce_fx="cat")

    def add(self, **columns: Column) -> None:
        """Add probes: columns of shape ``(n,)``, or numbers; a number beside columns stands for every probe."""
        tensors = [
            torch.as_tensor(columns[name], dtype=torch.float64).reshape(-1) for name in self.columns
        ]
        length = max(map(len, tensors))
        for name, tensor in zip(self.columns, tensors, strict=True):
            getattr(self, name).append(tensor.expand(length) if len(tensor) == 1 else tensor)

    def compute(self) -> dict[str, Any]:
        """Return the constant over all probes, as documented in the class."""
        return self.over(**{name: dim_zero_cat(getattr(self, name)) for name in self.columns})

    def over(self, **columns: Tensor) -> dict[str, Any]:
        """Return what `compute` returns, over probes that are given at once and not added.

        Args:
            columns: what ``update`` takes, float64, shape ``(n,)``.
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
        """Return the constant of all probes: the largest one that holds at each of them."""
        return largest_constant(ratio)

    def violates(self, ratio: Tensor) -> Tensor:
        """Return which probes violate the inequality with the constant 0."""
        return ratio < 0


class UpperConstant(WorstCase):
    """A condition whose constant bounds from above: smaller is better."""

    constant = "L"

    def worst(self, ratio: Tensor) -> Constant:
        """Return the constant of all probes: the smallest one that holds at each of them."""
        return smallest_constant(ratio)

    def violates(self, ratio: Tensor) -> Tensor:
        """Return which probes violate the inequality with every constant."""
        return ratio.isposinf()
