"""How all pictures look: colours that colour-blind readers tell apart, line styles that tell apart in grey, no title."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape.probes import ProbeTable
from lightning_landscape.records import SegmentPoint

# Okabe and Ito's palette
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#666666"
LINES = tuple(zip((BLUE, ORANGE, GREEN, PURPLE, SKY, GREY), ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))), strict=True))
"""Colour and line style of the first, second, … of several curves"""

NOT_EVALUATED = "no probe was evaluated at the reference"

_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,  # letters stay letters in a PDF
}


@dataclass(frozen=True)
class Drawn:
    """What pictures are drawn of: a run as its files have it."""

    table: ProbeTable
    """The table of probes; only rows whose reference columns are known are drawn"""
    summary: dict[str, Any]
    segments: list[SegmentPoint] = field(default_factory=list)

    @property
    def rows(self) -> ProbeTable:
        """The rows whose reference columns are known."""
        return self.table.evaluated

    @property
    def alpha_beta(self) -> dict[str, Any]:
        """What is reported of the α-β-condition."""
        found: dict[str, Any] = self.summary["conditions"]["alpha_beta"]
        return found

    @property
    def drop(self) -> float | None:
        """What training achieved; None where it was not measured."""
        value: float | None = self.summary["run"]["drop"]["value"]
        return value


@contextmanager
def style() -> Iterator[None]:
    """Inside the block pictures are drawn in this style; nobody else's settings change."""
    with mpl.rc_context(_RC):
        yield


def canvas(rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row, of a size in inches.

    That of a column in a paper: there, and in TensorBoard, pictures are shown small.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    return figure, list(panels.flat)


def say(axes: Axes, what: str, *, width: int = 48, fontsize: str = "medium") -> None:
    """Say in the place of a picture why there is none, in lines of so many letters."""
    text = textwrap.fill(what, width)
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, fontsize=fontsize, transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def note(axes: Axes, what: str, *, where: str = "upper right") -> None:
    """Say something in a corner of a picture."""
    right, up = "right" in where, "upper" in where
    axes.text(
        0.98 if right else 0.02,
        0.97 if up else 0.03,
        textwrap.fill(what, 46),
        ha="right" if right else "left",
        va="top" if up else "bottom",
        fontsize="small",
        transform=axes.transAxes,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )
