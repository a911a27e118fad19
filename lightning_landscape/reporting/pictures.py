"""Pictures at the end of a run, where matplotlib is installed; without it, or where one fails, all else is as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_landscape.probes import ProbeTable
from lightning_landscape.records import SegmentPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "figures"


def draw(
    table: ProbeTable,
    summary: dict[str, Any],
    segments: Sequence[SegmentPoint],
    folder: Path,
    held_out: ProbeTable | None = None,
) -> Mapping[str, Figure]:
    """Draw all pictures of a run into ``<folder>/figures/`` and return them by name; none without matplotlib."""
    try:
        from lightning_landscape.reporting import figures
    except ImportError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        rank_zero_info(
            "LandscapeMonitor draws no pictures without matplotlib: pip install lightning-landscape[plots]"
        )
        return {}
    try:
        drawn = figures.draw_all(table, summary, list(segments), held_out)
        figures.save(drawn, folder / FOLDER)
    except Exception as error:
        rank_zero_warn(
            f"LandscapeMonitor could not draw its pictures: {type(error).__name__}: {error}; the files are complete"
        )
        return {}
    return drawn
