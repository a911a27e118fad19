"""Arguments and results of the bounds: numbers in, exact arithmetic, one rounding, a 0-dim tensor out."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from lightning_landscape.functional._envelope import as_float
from lightning_landscape.functional._fractional import LinearFractional

Number = Tensor | float


def positive(name: str, value: Number) -> Fraction:
    """Return a finite number above 0 exactly.

    Raises:
        ValueError: naming the argument.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` is {float(value)}; supported are finite numbers above 0")
    return Fraction(float(value))


def non_negative(name: str, value: Number) -> Fraction:
    """Return a finite number of 0 or more exactly.

    Raises:
        ValueError: naming the argument.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` is {float(value)}; supported are finite numbers of 0 or more")
    return Fraction(float(value))


def finite(name: str, value: Number) -> Fraction:
    """Return a finite number exactly.

    Raises:
        ValueError: naming the argument.
    """
    if not math.isfinite(value):
        raise ValueError(f"`{name}` is {float(value)}; supported are finite numbers")
    return Fraction(float(value))


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
    """Return 1/√K and log(K + 1)/√K, how fast the terms of decreasing step sizes fall; 0 and 0 for ``math.inf``."""
    inverse = root(inverse_steps(steps))
    return inverse, (inverse * Fraction(math.log(steps + 1)) if inverse else inverse)


def value(shape: LinearFractional, alpha: Number, beta: Number, condition: str) -> Tensor:
    """Return a bound at a pair.

    Args:
        shape: the bound as a function of the pair.
        alpha: α.
        beta: β.
        condition: the step-size condition as text, for the message.

    Raises:
        ValueError: if not α > β ≥ 0, or the pair does not meet the step-size condition.
    """
    a, b = finite("alpha", alpha), non_negative("beta", beta)
    if a <= b:
        raise ValueError(
            f"`alpha` is {float(alpha)} and `beta` {float(beta)}; supported are pairs with α > β ≥ 0"
        )
    rate = a - b
    if shape.closed and 0 < shape.least_rate - rate <= Fraction(2) ** -51 * (a + b):
        rate = shape.least_rate  # α = δ + β was rounded
    if not shape.allows(rate):
        raise ValueError(
            f"α − β is {float(rate):.6g}, and the theorem needs {condition}, here α − β {'≥' if shape.closed else '>'} "
            f"{as_float(shape.least_rate):.6g}; take a smaller step size, or a pair with a larger α − β"
        )
    return torch.tensor(as_float(shape.at(rate, b)), dtype=torch.float64)
