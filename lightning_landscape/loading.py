"""Read a run back from its files alone, on any machine."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lightning_landscape.files import (
    HELD_OUT_CSV,
    PROBES_CSV,
    PROBES_JSONL,
    RECORDS_CSV,
    STORE,
    SUMMARY,
)
from lightning_landscape.probes import ProbeTable, check_schema, from_json_lines, to_frame
from lightning_landscape.records import (
    FixedBatchRow,
    LayerRow,
    PerSampleRow,
    Record,
    SecantRow,
    SegmentPoint,
    records_from_csv,
)

_FILES = {PROBES_CSV, PROBES_JSONL, SUMMARY}


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
    held_out: ProbeTable | None = field(default=None, repr=False)
    """At each probe a batch that was held out, where the run evaluated any"""
    fixed_batches: list[FixedBatchRow] | None = field(default=None, repr=False)
    """At each probe the same batches, where the run evaluated them"""

    per_sample: list[PerSampleRow] | None = field(default=None, repr=False)
    """At each probe its single samples, where the run evaluated them"""

    def to_pandas(self, name: Literal["probes", "layers", "segments"] = "probes") -> Any:
        """Return one of the run's tables as a ``pandas.DataFrame``, see `ProbeTable.to_pandas`.

        Args:
            name: the file, without its ending.

        Raises:
            ImportError: if pandas is not installed.
            ValueError: if the run left no such file.
        """
        if name == "probes":
            return self.table.to_pandas()
        rows: list[LayerRow] | list[SegmentPoint] | None = (
            self.layers if name == "layers" else self.segments
        )
        if rows is None:
            raise ValueError(
                f"found no {name}.csv in {self.path}; it is there where the run measured it"
            )
        kind = LayerRow if name == "layers" else SegmentPoint
        return to_frame(
            {field.name: [getattr(row, field.name) for row in rows] for field in fields(kind)}
        )


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
    return Run(
        folder,
        read_table(folder),
        read_summary(folder),
        secants=read_secants(folder),
        layers=read_records(folder, LayerRow),
        segments=read_records(folder, SegmentPoint),
        held_out=read_held_out(folder),
        fixed_batches=read_records(folder, FixedBatchRow),
        per_sample=read_records(folder, PerSampleRow),
    )


def find_runs(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folders of all runs in a directory tree, ascending, or of the one run that a path names."""
    path = Path(path)
    if path.is_file():
        path = path.parent
    if is_run(path):
        return [path]
    found = []
    for folder, below, names in os.walk(path):
        if _FILES & set(names) and is_run(Path(folder)):
            found.append(Path(folder))
            below[:] = [
                name for name in below if name != STORE
            ]  # a folder for each probe, and no run among them
    return sorted(found, key=_natural)


def is_run(path: Path) -> bool:
    """Whether a folder holds files of a run; a ``summary.json`` alone must say that it is one of ours."""
    if any((path / name).is_file() for name in (PROBES_CSV, PROBES_JSONL)):
        return True
    try:
        text = (path / SUMMARY).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return all(f'"{key}"' in text for key in ("schema", "run", "conditions"))


def read_table(folder: Path) -> ProbeTable:
    """Return the table of a run's folder; empty where there is none."""
    table = ProbeTable()
    if (folder / PROBES_CSV).is_file():
        table = ProbeTable.from_csv((folder / PROBES_CSV).read_text(encoding="utf-8"))
    known = {probe.step for probe in table}
    return table.merged(probe for probe in read_lines(folder) if probe.step not in known)


def read_lines(folder: Path) -> ProbeTable:
    """Return the probes of ``probes.jsonl``: there only while a run has not ended well, with lines newer than the table."""
    path = folder / PROBES_JSONL
    return from_json_lines(path.read_text(encoding="utf-8")) if path.is_file() else ProbeTable()


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``summary.json``; None where there is none."""
    if not (folder / SUMMARY).is_file():
        return None
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    if not isinstance(summary, dict):
        raise ValueError(
            f"found a {type(summary).__name__} in {SUMMARY}; supported is what a run writes, an object"
        )
    check_schema(summary.get("schema"), SUMMARY)
    return summary


def read_held_out(folder: Path) -> ProbeTable | None:
    """Return ``held_out.csv``; None where there is none."""
    path = folder / HELD_OUT_CSV
    return ProbeTable.from_csv(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_secants(folder: Path) -> dict[int, float] | None:
    """Return ``secant.csv`` by step; None where there is none."""
    rows = read_records(folder, SecantRow)
    return None if rows is None else {row.step: row.grad_sq_change for row in rows}


def read_records(folder: Path, kind: type[Record]) -> list[Record] | None:
    """Return one of the tables beside the table of probes; None where there is none."""
    path = folder / RECORDS_CSV[kind]
    return (
        records_from_csv(kind, path.read_text(encoding="utf-8"), path.name)
        if path.is_file()
        else None
    )


def _folder(path: Path) -> Path:
    if path.is_file():
        path = path.parent
    if is_run(path):
        return path
    found = sorted(child for child in path.iterdir() if is_run(child)) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    names = [child.name for child in found]
    raise FileNotFoundError(
        f"found {f'several runs, {names},' if found else 'no run'} in {path}; supported is a log directory with one run of "
        f"LandscapeMonitor, its folder, or a file in it ({PROBES_CSV}, {PROBES_JSONL}, {SUMMARY})"
    )


def _natural(path: Path) -> list[Any]:
    """Return a key that sorts version_10 after version_9."""
    return [
        [
            (0, int(part), "") if part.isdigit() else (1, 0, part)
            for part in re.split(r"(\d+)", name)
        ]
        for name in path.parts
    ]
