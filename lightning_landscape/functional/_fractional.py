"""Linear-fractional functions of a pair (δ, β): every bound of the theory has this form."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

ZERO = Fraction(0)
ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class LinearFractional:
    """``(distance + noise + noise_rate · δ + spread · β) / (slope · δ − offset)``.

    Every proof bounds ``(slope · δ − offset)`` times the gap by the numerator. The coefficients do
    not depend on the pair (α, β) = (δ + β, β). Here ``spread ≥ 0`` and ``slope > 0``.
    """

    distance: Fraction = ZERO
    """Term of the initial distance ‖x_0 − x_p‖²"""
    noise: Fraction = ZERO
    """Term of the step-size noise that does not depend on the pair"""
    noise_rate: Fraction = ZERO
    """Factor of δ in the step-size noise"""
    spread: Fraction = ZERO
    """Factor of β: the interpolation error"""
    slope: Fraction = ONE
    offset: Fraction = ZERO
    least_rate: Fraction = ZERO
    """Smallest δ that meets the step-size condition"""
    closed: bool = False
    """Whether δ = ``least_rate`` itself is allowed"""

    def allows(self, rate: Fraction) -> bool:
        """Return whether a δ meets the step-size condition and makes the denominator positive."""
        inside = rate >= self.least_rate if self.closed else rate > self.least_rate
        return inside and self.slope * rate > self.offset

    def parts(self, rate: Fraction, beta: Fraction) -> tuple[Fraction, Fraction, Fraction]:
        """Return the summands of the value: initial distance, step-size noise, neighbourhood."""
        below = self.slope * rate - self.offset
        return (
            self.distance / below,
            (self.noise + self.noise_rate * rate) / below,
            self.spread * beta / below,
        )

    def at(self, rate: Fraction, beta: Fraction) -> Fraction:
        """Return the value of the bound at a pair."""
        return sum(self.parts(rate, beta), ZERO)

    def grows_along(self, slope: Fraction, intercept: Fraction) -> Fraction:
        """Return a number with the sign of d/dδ along the line β = slope · δ + intercept."""
        rising = self.noise_rate + self.spread * slope
        return -(
            self.offset * rising
            + self.slope * (self.distance + self.noise + self.spread * intercept)
        )

    def at_infinity(self, slope: Fraction) -> Fraction:
        """Return the limit as δ → ∞ along the line β = slope · δ + intercept."""
        return (self.noise_rate + self.spread * slope) / self.slope


RATIO = LinearFractional(spread=ONE)
"""The function β/δ"""
