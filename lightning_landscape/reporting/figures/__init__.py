"""Pictures of a measured run; needs matplotlib (``pip install lightning-landscape[plots]``).

Each module draws one picture. Its panels are functions of axes and a run (`Drawn`), so a caller can
draw them into another figure. Its ``figure`` draws them into a new one. Figures have no title,
since a paper puts one into the caption. This package does not use pyplot, and it restores the
settings of matplotlib after each call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from matplotlib.figure import Figure

from lightning_landscape.reporting.attempts import attempt
from lightning_landscape.reporting.figures import (
    angle,
    bounds,
    constants,
    feasible_pairs,
    margin,
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
}
"""Each picture by its name, in the order in which they are shown"""


class Drawing(Protocol):
    """Draws pictures of its own, as an extra does."""

    def figures(self, drawn: Drawn) -> Mapping[str, Figure]:
        """Return pictures by name."""


def draw_all(drawn: Drawn, extras: Iterable[Drawing] = ()) -> dict[str, Figure]:
    """Draw every picture of a run.

    Args:
        drawn: the run. Probes without reference columns are left out.
        extras: the extras that were measured, which draw pictures of their own.

    Returns:
        The figures by name, in the order of `FIGURES`; a panel without data says why.
    """
    found = {name: figure(drawn) for name, figure in FIGURES.items()}
    nothing: Mapping[str, Figure] = {}
    for extra in extras:
        draw = functools.partial(extra.figures, drawn)
        found.update(attempt(extra, "figures", draw, nothing))
    return found


__all__ = ["FIGURES", "Drawn", "draw_all", "overview", "save"]
