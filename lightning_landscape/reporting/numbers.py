"""Numbers for strict JSON and for sentences."""

from __future__ import annotations

import math

from torch import Tensor


def number(value: Tensor | float | None) -> float | None:
    """Return a finite number for JSON; None for infinity, nan and None."""
    return float(value) if value is not None and math.isfinite(value) else None


def shown(value: float | None) -> str:
    """Return a value with four digits."""
    return "a number beyond float64" if value is None else f"{value:.4g}"


def of_the_drop(share: float) -> str:
    """Return a share of the drop in words.

    Example:
        >>> of_the_drop(0.1234), of_the_drop(1.6), of_the_drop(25.0)
        ('12.3 % of the drop', '160 % of the drop', '25 times the drop')
    """
    return f"{100 * share:.3g} % of the drop" if share < 9.99 else f"{share:.3g} times the drop"
