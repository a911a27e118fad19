"""Pictures of a measured run; needs matplotlib (``pip install lightning-landscape[plots]``).

Each module draws one picture. Its panels are functions of axes and a run (`Drawn`), so a caller can
draw them into another figure. Its ``figure`` draws them into a new one. Figures have no title,
since a paper puts one into the caption. This package does not use pyplot, and it restores the
settings of matplotlib after each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_landscape.probes import ProbeTable
from lightning_landscape.records import SegmentPoint
from lightning_landscape.reporting.figures import (
    angle,
    bounds,
    constants,
    feasible_pairs,
    margin,
    per_sample,
    segments,
)
from lightning_landscape.reporting.figures._drawn import Drawn
from lightning_landscape.reporting.figures._files import save
from lightning_landscape.reporting.figures.overview import overview

FIGURES: dict[str, Callable[[Drawn], Figure]] = {
    "feasible_pairs": feasible_pairs.figure,
    "bounds": bounds.figure,
    "angle": angle.figure,
    "constants": constants.figure,
    "margin": margin.figure,
    "segments": segments.figure,
}
"""Each picture by name, in the order of display"""
IF_MEASURED: dict[str, Callable[[Drawn], Figure]] = {"per_sample": per_sample.figure}
"""Pictures of optional measurements, by the key of the measurement in ``summary.json``"""


def draw_all(
    table: ProbeTable,
    summary: dict[str, Any],
    segments: Sequence[SegmentPoint] | None = None,
    held_out: ProbeTable | None = None,
) -> dict[str, Figure]:
    """Draw every picture of a run.

    Args:
        table: the table of probes; rows without reference columns are left out.
        summary: the content of ``summary.json``.
        segments: the content of ``segments.csv``; None if the run evaluated no segments.
        held_out: the content of ``held_out.csv``; None if the run evaluated no held-out batches.

    Returns:
        The figures by name, in the order of `FIGURES` and `IF_MEASURED`. A panel without data shows
        the reason in place of a plot.
    """
    drawn = Drawn(table, summary, segments, held_out)
    wanted = FIGURES | {name: figure for name, figure in IF_MEASURED.items() if summary.get(name)}
    return {name: figure(drawn) for name, figure in wanted.items()}


__all__ = ["FIGURES", "Drawn", "draw_all", "overview", "save"]
