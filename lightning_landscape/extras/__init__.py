"""Optional measurements of recorded steps, one a file.

No code outside of this room depends on one of them: the files of a run are read by `KNOWN`, and
users pass the extras that they want.
"""

from collections.abc import Iterable

from lightning_landscape.evaluation.extra import FOLLOWING, SAMPLES, Extra
from lightning_landscape.extras.held_out import HeldOut
from lightning_landscape.extras.layers import Layers
from lightning_landscape.extras.per_sample import PerSample
from lightning_landscape.extras.secant import Secant
from lightning_landscape.extras.segments import Segments
from lightning_landscape.extras.store_accuracy import StoreAccuracy
from lightning_landscape.reporting.findings import Findings

KNOWN: tuple[type[Extra], ...] = (Segments, Layers, HeldOut, PerSample, Secant, StoreAccuracy)
"""The extras of this package, whose rows and pictures are read back from the files of a run"""


def started(extras: Iterable[Extra], dtype: str) -> list[Extra]:
    """Return copies of extras for one ``fit``, and `StoreAccuracy` where the store dtype is lossy.

    Args:
        extras: the user's.
        dtype: of the store.
    """
    added = [] if dtype == "native" else [StoreAccuracy()]
    return [extra.start() for extra in (*extras, *added)]


def measured(tables: Iterable[str]) -> list[type[Extra]]:
    """Return the known extras that left any of these tables."""
    found = set(tables)
    return [extra for extra in KNOWN if found & set(extra.tables)]


__all__ = [
    "FOLLOWING",
    "KNOWN",
    "SAMPLES",
    "Extra",
    "Findings",
    "HeldOut",
    "Layers",
    "PerSample",
    "Secant",
    "Segments",
    "StoreAccuracy",
    "measured",
    "started",
]
