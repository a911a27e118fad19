"""Whether replays reproduce the recorded losses well enough to rely on the results."""

from __future__ import annotations

from typing import Any


def is_faithful(run: dict[str, Any], achieved: float | None) -> bool:
    """Return whether replays are exact or differ only by rounding.

    Args:
        run: the ``run`` part of the summary.
        achieved: the drop f(x_0) − f(x_p); a difference up to 0.1 % of it counts as rounding.
    """
    size = run["fidelity"]["max_abs"]
    if run["fidelity"]["exact"] is not False:
        return True
    return size is not None and achieved is not None and size <= 1e-3 * achieved


def infidelity(run: dict[str, Any]) -> str:
    """Return a clause on how far replays were from the recorded losses."""
    size = run["fidelity"]["max_abs"]
    how_far = "by a non-finite number" if size is None else f"by up to {size:.2g}"
    return f"replays differ from the recorded losses {how_far}"
