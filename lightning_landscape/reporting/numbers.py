"""Numbers as strict JSON and sentences hold them."""

from __future__ import annotations

import math

from torch import Tensor


def number(value: Tensor | float | None) -> float | None:
    """Return a value as JSON holds it: a finite number, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def shown(value: float | None) -> str:
    """Return a value with four digits."""
    return "a number beyond float64" if value is None else f"{value:.4g}"
