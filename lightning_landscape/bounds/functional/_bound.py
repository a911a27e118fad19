"""Every bound: numbers in, exact arithmetic, one rounding, a 0-dim tensor out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import torch
from torch import Tensor

from lightning_landscape.functional._envelope import as_float
from lightning_landscape.functional._fractional import LinearFractional

Number = Tensor | float


def positive(name: str, value: Number) -> Fraction:
    """Return a finite number above 0 exactly, or raise a `ValueError` that names the argument."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` is {float(value)}; supported are finite numbers above 0")
    return Fraction(float(value))


def non_negative(name: str, value: Number) -> Fraction:
    """Return a finite number ≥ 0 exactly, or raise a `ValueError` that names the argument."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` is {float(value)}; supported are finite numbers of 0 or more")
    return Fraction(float(value))


Positive = Annotated[Number, positive]
NonNegative = Annotated[Number, non_negative]


class Bound(ABC):
    """A theorem's bound with its constants: a function of the pair (α, β), with δ = α − β.

    A subclass is a frozen dataclass. A field of type `Positive` or `NonNegative` is checked when
    it is read, by `exact`.
    """

    __slots__ = ()

    condition: ClassVar[str]
    """The step-size condition, in the names of the arguments"""

    @abstractmethod
    def shape(self) -> LinearFractional:
        """Return the bound as a function of the pair, over which the best pair is exact."""

    def at(self, alpha: Number, beta: Number) -> Tensor:
        """Return the bound at a pair, float64, shape ``()``, in units of the loss.

        Args:
            alpha: α of the α-β-condition.
            beta: β ≥ 0, below α.

        Raises:
            ValueError: naming the argument that is out of its range, or the step-size condition.
        """
        shape = self.shape()
        if not math.isfinite(alpha):
            raise ValueError(f"`alpha` is {float(alpha)}; supported are finite numbers")
        a, b = Fraction(float(alpha)), non_negative("beta", beta)
        if a <= b:
            raise ValueError(
                f"`alpha` is {float(alpha)} and `beta` {float(beta)}; supported are pairs with "
                "α > β ≥ 0"
            )
        rate = a - b
        if shape.closed and 0 < shape.least_rate - rate <= Fraction(2) ** -51 * (a + b):
            rate = shape.least_rate  # α = δ + β was rounded
        if not shape.allows(rate):
            raise ValueError(
                f"α − β is {float(rate):.6g}, but the theorem needs {self.condition}, here "
                f"{least_rate(shape, 6)}: take a smaller step size, or a pair with a larger α − β"
            )
        return torch.tensor(as_float(shape.at(rate, b)), dtype=torch.float64)

    @classmethod
    def value(cls, *, alpha: Number, beta: Number, **constants: Any) -> Tensor:
        """Return the bound at a pair; a function with the same arguments passes ``locals()``."""
        return cls(**constants).at(alpha, beta)

    def exact(self) -> tuple[Fraction, ...]:
        """Return the fields of type `Positive` and `NonNegative` exactly, in their order."""
        return tuple(
            check(name, getattr(self, name)) for name, check in _checks(type(self)).items()
        )


@cache
def _checks(bound: type[Bound]) -> Mapping[str, Any]:
    hints = get_type_hints(bound, include_extras=True)
    return {n: t.__metadata__[0] for n, t in hints.items() if get_origin(t) is Annotated}


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundOfOneStepSize(Bound):
    """A bound on ``min_{k<K} E[f(x_k) − f*]`` with one step size γ; arguments as in `SGD`."""

    steps: float
    step_size: Positive
    smoothness: NonNegative
    sq_distance: NonNegative
    interpolation_error: NonNegative


def least_rate(shape: LinearFractional, digits: int) -> str:
    """Return the step-size condition as a condition on δ, for a message."""
    return f"α − β {'≥' if shape.closed else '>'} {as_float(shape.least_rate):.{digits}g}"


def minus(shape: LinearFractional, number: Fraction) -> LinearFractional:
    """Return the bound minus a number, as a function of the pair."""
    return replace(
        shape,
        noise=shape.noise + number * shape.offset,
        noise_rate=shape.noise_rate - number * shape.slope,
    )


def inverse_steps(steps: float) -> Fraction:
    """Return 1/K; 0 for ``math.inf``.

    Raises:
        ValueError: if K is below 1.
    """
    if not steps >= 1:
        raise ValueError(
            f"`steps` is {steps}; supported are numbers of updates K of 1 or more, or math.inf"
        )
    return Fraction(0) if math.isinf(steps) else 1 / Fraction(steps)


def root(value: Fraction) -> Fraction:
    """Return the square root, rounded once."""
    return Fraction(math.sqrt(value))


def decay(steps: float) -> tuple[Fraction, Fraction]:
    """Return 1/√K and log(K + 1)/√K, the decay of terms of falling steps; 0 for ``math.inf``."""
    inverse = root(inverse_steps(steps))
    return inverse, (inverse * Fraction(math.log(steps + 1)) if inverse else inverse)
