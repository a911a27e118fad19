"""Pictures at the end of a run, where matplotlib is installed; a failure costs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_landscape.probes import ProbeTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "figures"
Images = Literal["overview", "all"]


def draw(
    table: ProbeTable,
    summary: dict[str, Any],
    tables: Mapping[str, Sequence[Any]],
    folder: Path,
    images: Images,
    extras: Sequence[Any] = (),
) -> Mapping[str, Figure]:
    """Draw pictures of a run into ``<folder>/figures/``; return them by name.

    Args:
        table: the table of probes.
        summary: the content of ``summary.json``.
        tables: rows of the extras' tables, by name.
        folder: the run's.
        images: "overview" for one picture, "all" for every one.
        extras: the extras that were measured, which draw pictures of their own.
    """
    try:
        from lightning_landscape.reporting import figures
    except ImportError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        rank_zero_info(
            "LandscapeMonitor draws no pictures without matplotlib: "
            "pip install lightning-landscape[plots]"
        )
        return {}
    try:
        drawn = figures.Drawn(table, summary, tables)
        if images == "overview":
            found = {"overview": figures.overview(drawn)}
        else:
            found = figures.draw_all(drawn, extras)
        figures.save(found, folder / FOLDER)
    except Exception as error:
        rank_zero_warn(
            f"LandscapeMonitor could not draw its pictures: {type(error).__name__}: {error}; "
            "the other files are complete"
        )
        return {}
    return found
