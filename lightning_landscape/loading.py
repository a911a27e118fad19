"""Read a run back from its files alone, on any machine."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_landscape.probes import ProbeTable, check_schema, from_json_lines
from lightning_landscape.records import LayerRow, Record, SecantRow, SegmentPoint, records_from_csv
from lightning_landscape.reporting.folder import PROBES_CSV, PROBES_JSONL, RECORDS_CSV, SUMMARY


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run: its folder, its table of probes, and its summary (None where the run left none)."""

    path: Path
    table: ProbeTable
    summary: dict[str, Any] | None = field(repr=False)
    secants: dict[int, float] | None = field(default=None, repr=False)
    """‖∇f_{i_k}(x_{k+1}) − ∇f_{i_k}(x_k)‖² by step, where the run measured it"""
    layers: list[LayerRow] | None = field(default=None, repr=False)
    """Contributions of the module's parts, where the run measured them"""
    segments: list[SegmentPoint] | None = field(default=None, repr=False)
    """Losses on straight lines to the reference, where the run evaluated them"""


def load(path: str | os.PathLike[str]) -> Run:
    """Read the table of probes and the summary of a run.

    Args:
        path: a log directory, the monitor's folder in it (``<prefix>/``), or a file in that folder.

    Returns:
        The run. Of a run that was killed, the table holds what it had written until then.

    Raises:
        FileNotFoundError: if there is no run, or a log directory holds several.
        ValueError: if a file is damaged or was written by another version of the format.
    """
    folder = _folder(Path(path))
    table = ProbeTable()
    if (folder / PROBES_CSV).is_file():
        table = ProbeTable.from_csv((folder / PROBES_CSV).read_text(encoding="utf-8"))
    if (folder / PROBES_JSONL).is_file():  # there only while a run has not ended well: lines newer than the table
        lines = from_json_lines((folder / PROBES_JSONL).read_text(encoding="utf-8"))
        known = {probe.step for probe in table}
        table = table.merged(probe for probe in lines if probe.step not in known)
    summary = None
    if (folder / SUMMARY).is_file():
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        check_schema(summary.get("schema"), SUMMARY)
    secants = _records(folder, SecantRow)
    return Run(
        folder,
        table,
        summary,
        secants=None if secants is None else {row.step: row.grad_sq_change for row in secants},
        layers=_records(folder, LayerRow),
        segments=_records(folder, SegmentPoint),
    )


def _records(folder: Path, kind: type[Record]) -> list[Record] | None:
    path = folder / RECORDS_CSV[kind]
    return records_from_csv(kind, path.read_text(encoding="utf-8"), path.name) if path.is_file() else None


def _folder(path: Path) -> Path:
    if path.is_file():
        path = path.parent
    if _is_run(path):
        return path
    found = sorted(child for child in path.iterdir() if _is_run(child)) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    names = [child.name for child in found]
    raise FileNotFoundError(
        f"found {f'several runs, {names},' if found else 'no run'} in {path}; supported is a log directory with one run of "
        f"LandscapeMonitor, its folder, or a file in it ({PROBES_CSV}, {PROBES_JSONL}, {SUMMARY})"
    )


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (PROBES_CSV, PROBES_JSONL, SUMMARY))
