"""Read a run from its files, on any machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning_landscape.csv_tables import columns_from_csv, from_csv
from lightning_landscape.extras import KNOWN
from lightning_landscape.files import PROBES_CSV, PROBES_JSONL, STORE, SUMMARY
from lightning_landscape.probes import ProbeTable, check_schema, from_json_lines
from lightning_landscape.run import Run

_FILES = {PROBES_CSV, PROBES_JSONL, SUMMARY}


def load(path: str | os.PathLike[str]) -> Run:
    """Read a run.

    Args:
        path: a log directory, the monitor's folder in it (``<prefix>/``), or a file in that folder.

    Returns:
        The run. If it was killed, its table has the probes that were written before.

    Raises:
        FileNotFoundError: if there is no run, or if a log directory has several.
        ValueError: if a file is damaged or has another version of the format.
    """
    folder = _folder(Path(path))
    tables = {name: read_rows(folder, name) for name in tables_in(folder)}
    return Run(folder, read_table(folder), read_summary(folder), tables)


def tables_in(folder: Path) -> list[str]:
    """Return the names of the extras' tables in a run's folder.

    Another CSV file, which a user may have put there, has no column ``schema`` and is none of them.
    """
    others = sorted(path for path in folder.glob("*.csv") if path.name != PROBES_CSV)
    return [path.stem for path in others if path.stem in _kinds() or _has_schema(path)]


def _kinds() -> dict[str, type]:
    """Return the dataclass of each table that this package knows."""
    return {table: kind for extra in KNOWN for table, kind in extra.tables.items()}


def _has_schema(path: Path) -> bool:
    with path.open("rb") as file:
        return b"schema" in file.readline().strip().split(b",")


def read_rows(folder: Path, name: str) -> list[Any]:
    """Return the rows of an extra's table.

    Args:
        folder: the monitor's folder.
        name: name of the table: its file name without ending.

    Returns:
        Instances of the table's dataclass, or plain objects if this package does not know it.

    Raises:
        ValueError: if the file is damaged or has another version of the format.
    """
    path = folder / f"{name}.csv"
    text, kind = path.read_text(encoding="utf-8"), _kinds().get(name)
    if kind is not None:
        return from_csv(kind, text, path.name)
    columns = columns_from_csv(text, path.name)
    cells = zip(*columns.values(), strict=True)
    return [SimpleNamespace(**dict(zip(columns, row, strict=True))) for row in cells]


def find_runs(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folders of all runs in a directory tree, sorted by path.

    Args:
        path: a directory tree, the folder of one run, or a file in the folder of a run.
    """
    path = Path(path)
    if path.is_file():
        path = path.parent
    if is_run(path):
        return [path]
    found = []
    for folder, below, names in os.walk(path):
        if _FILES & set(names) and is_run(Path(folder)):
            found.append(Path(folder))
            # The store has a folder for each probe, but no run.
            below[:] = [name for name in below if name != STORE]
    return sorted(found, key=_natural)


def is_run(path: Path) -> bool:
    """Return whether a folder holds files of a run."""
    if any((path / name).is_file() for name in (PROBES_CSV, PROBES_JSONL)):
        return True
    # Other programs also write files with the name summary.json: look for our keys.
    try:
        text = (path / SUMMARY).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return all(f'"{key}"' in text for key in ("schema", "run", "conditions"))


def read_table(folder: Path) -> ProbeTable:
    """Return the table of probes in a run's folder; it is empty if there is none."""
    table = ProbeTable()
    if (folder / PROBES_CSV).is_file():
        table = ProbeTable.from_csv((folder / PROBES_CSV).read_text(encoding="utf-8"))
    known = {probe.step for probe in table}
    return table.merged(probe for probe in read_lines(folder) if probe.step not in known)


def read_lines(folder: Path) -> ProbeTable:
    """Return the probes of ``probes.jsonl``, which may be newer than the table.

    The file exists until a run has ended well. Without it, the result is empty.
    """
    path = folder / PROBES_JSONL
    return from_json_lines(path.read_text(encoding="utf-8")) if path.is_file() else ProbeTable()


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``summary.json``; None if there is no such file.

    Raises:
        ValueError: if the file is damaged or has another version of the format.
    """
    if not (folder / SUMMARY).is_file():
        return None
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    if not isinstance(summary, dict):
        raise ValueError(
            f"found a {type(summary).__name__} in {SUMMARY}; supported is a JSON object, as a run "
            "writes it: name another run"
        )
    check_schema(summary.get("schema"), SUMMARY)
    return summary


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
        f"found {f'several runs, {names},' if found else 'no run'} in {path}; supported is a log "
        "directory with one run of LandscapeMonitor, the folder of a run, or a file in it "
        f"({PROBES_CSV}, {PROBES_JSONL}, {SUMMARY}): name one run"
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
