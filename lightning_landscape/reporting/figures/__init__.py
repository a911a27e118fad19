"""Pictures of what the table of probes says; needs matplotlib (``pip install lightning-landscape[plots]``).

One file a picture. Each draws into panels that it is given, so that `overview` can put several into one picture; a panel that
has nothing to show says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_landscape.probes import ProbeTable
from lightning_landscape.records import SegmentPoint
from lightning_landscape.reporting.figures import overview as _overview
from lightning_landscape.reporting.figures._style import Drawn, style
from lightning_landscape.reporting.figures.angle import angle
from lightning_landscape.reporting.figures.bounds import bounds
from lightning_landscape.reporting.figures.constants import constants
from lightning_landscape.reporting.figures.feasible_pairs import feasible_pairs
from lightning_landscape.reporting.figures.margin import margin
from lightning_landscape.reporting.figures.segments import segments

FIGURES: dict[str, Callable[[Drawn], Figure]] = {
    "feasible_pairs": feasible_pairs,
    "bounds": bounds,
    "angle": angle,
    "constants": constants,
    "margin": margin,
    "segments": segments,
}
"""All pictures by name, which is that of their file and tag"""

DPI = 120


def draw_all(table: ProbeTable, summary: dict[str, Any], segments: Sequence[SegmentPoint] | None = None) -> dict[str, Figure]:
    """Draw every picture of a run.

    Args:
        table: the table of probes; rows whose reference columns are not known are left out.
        summary: the content of ``summary.json``.
        segments: losses on lines to the reference, where there are any.

    Returns:
        Figures by name.
    """
    run = Drawn(table, summary, list(segments or ()))
    with style():
        return {name: _laid_out(draw(run)) for name, draw in FIGURES.items()}


def _laid_out(figure: Figure) -> Figure:
    """Settle a figure's layout: it is saved more than once, and finding a layout takes longer than drawing."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def overview(table: ProbeTable, summary: dict[str, Any]) -> Figure:
    """Draw one picture of a run, of three panels: the feasible pairs, the losses, the angle.

    Args:
        table: the table of probes; rows whose reference columns are not known are left out.
        summary: the content of ``summary.json``.
    """
    with style():
        return _overview.overview(Drawn(table, summary))


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as ``<name>.pdf``, for a paper, and ``<name>.png``; return their paths.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        for kind in ("pdf", "png"):
            partial, path = folder / f".{name}.{kind}.tmp", folder / f"{name}.{kind}"
            with style():
                figure.savefig(partial, format=kind, dpi=DPI)
            os.replace(partial, path)
            paths.append(path)
    return paths
