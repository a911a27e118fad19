"""Whether replays gave the recorded losses well enough to rely on what follows from them."""

from __future__ import annotations

from typing import Any


def is_faithful(run: dict[str, Any], achieved: float | None) -> bool:
    """Return whether replays are exact, or off by rounding beside what training achieved."""
    size = run["fidelity"]["max_abs"]
    if run["fidelity"]["exact"] is not False:
        return True
    return size is not None and achieved is not None and size <= 1e-3 * achieved


def infidelity(run: dict[str, Any]) -> str:
    """Say how far replays were from the recorded losses."""
    size = run["fidelity"]["max_abs"]
    how_far = "by a number that is not finite" if size is None else f"by up to {size:.2g}"
    return f"replays differ from the recorded losses {how_far}"
