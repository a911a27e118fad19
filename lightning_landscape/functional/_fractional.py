"""Linear-fractional functions of a pair: the shape that every bound of the theory has."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

ZERO = Fraction(0)
ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class LinearFractional:
    """``(distance + noise + noise_rate · δ + spread · β) / (slope · δ − offset)``, for δ from ``least_rate`` on.

    Every bound is a sum over steps of ``slope · δ − offset`` times the gap, which is at most the numerator; what multiplies
    what does not depend on the pair (α, β) = (δ + β, β). ``spread ≥ 0`` and ``slope > 0``.
    """

    distance: Fraction = ZERO
    """What is left of ‖x_0 − x_p‖²"""
    noise: Fraction = ZERO
    noise_rate: Fraction = ZERO
    spread: Fraction = ZERO
    """What multiplies β: the interpolation error"""
    slope: Fraction = ONE
    offset: Fraction = ZERO
    least_rate: Fraction = ZERO
    """The step-size condition, as a condition on δ"""
    closed: bool = False
    """Whether δ = ``least_rate`` is allowed"""

    def allows(self, rate: Fraction) -> bool:
        """Return whether a δ meets the step-size condition; where the denominator is zero, none does."""
        inside = rate >= self.least_rate if self.closed else rate > self.least_rate
        return inside and self.slope * rate > self.offset

    def parts(self, rate: Fraction, beta: Fraction) -> tuple[Fraction, Fraction, Fraction]:
        """Return initial distance, step-size noise and neighbourhood, whose sum is the value."""
        below = self.slope * rate - self.offset
        return (
            self.distance / below,
            (self.noise + self.noise_rate * rate) / below,
            self.spread * beta / below,
        )

    def at(self, rate: Fraction, beta: Fraction) -> Fraction:
        """Return the value at a pair."""
        return sum(self.parts(rate, beta), ZERO)

    def grows_along(self, slope: Fraction, intercept: Fraction) -> Fraction:
        """Return a number with the sign of the derivative in δ along the line β = slope · δ + intercept."""
        rising = self.noise_rate + self.spread * slope
        return -(
            self.offset * rising
            + self.slope * (self.distance + self.noise + self.spread * intercept)
        )

    def at_infinity(self, slope: Fraction) -> Fraction:
        """Return the limit as δ → ∞ along a line β = slope · δ + intercept."""
        return (self.noise_rate + self.spread * slope) / self.slope


RATIO = LinearFractional(spread=ONE)
"""β/δ"""
