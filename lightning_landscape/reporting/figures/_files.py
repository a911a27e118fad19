"""Pictures in files: a PDF for a paper and a PNG for a screen, written atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_landscape.reporting.figures._style import DPI, style

_METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "png": {}}
"""Without a creation date the same run gives the same file"""


def save(figures: Mapping[str, Figure], folder: str | os.PathLike[str]) -> list[Path]:
    """Write each figure as ``<name>.pdf`` and ``<name>.png``.

    A reader finds either the old file or the complete new one.

    Args:
        figures: figures by name, as `draw_all` returns them.
        folder: the target folder; it is created if it does not exist.

    Returns:
        The files in the order of writing.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    return [
        _write(figure, target / f"{name}.{kind}", kind)
        for name, figure in figures.items()
        for kind in _METADATA
    ]


def _write(figure: Figure, path: Path, kind: str) -> Path:
    # The rename is atomic, so an error while drawing leaves the old file in place.
    temporary = path.with_name(f".{path.name}.tmp")
    with style():
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=_METADATA[kind])
    os.replace(temporary, path)
    return path
