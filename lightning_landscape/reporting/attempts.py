"""What an extra shows of itself: a failure costs its own part, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

T = TypeVar("T")


def attempt(extra: Any, method: str, call: Callable[[], T], otherwise: T) -> T:
    """Return what a method of an extra returns; where it fails, warn and return something else.

    Args:
        extra: the extra, or its class.
        method: its name, for the warning.
        call: calls it.
        otherwise: the value after a failure.
    """
    try:
        return call()
    except Exception as error:
        kind = extra if isinstance(extra, type) else type(extra)
        rank_zero_warn(
            f"LandscapeMonitor: {kind.__name__}.{method} failed, {type(error).__name__}: {error}. "
            "Its part of the report is missing; all else goes on"
        )
        return otherwise
