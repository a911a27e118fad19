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
