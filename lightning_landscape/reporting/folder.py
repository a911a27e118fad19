"""The folder of a run, and its files, which are readable at any time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lightning_landscape.csv_tables import to_csv
from lightning_landscape.files import PROBES_CSV, PROBES_JSONL, SUMMARY
from lightning_landscape.probes import Probe, ProbeTable, to_json_line, write_atomically

CSV_SECONDS = 30.0
"""Shortest time between two versions of ``probes.csv`` while training"""


def parent_folder(trainer: Trainer, dirpath: str | os.PathLike[str] | None) -> Path:
    """Return the folder in which ``<prefix>/`` is created.

    This is ``dirpath``, or else the first logger's folder, or else the trainer's
    ``default_root_dir``.
    """
    if dirpath is not None:
        return Path(dirpath)
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    log_dir = getattr(logger, "log_dir", None)
    if log_dir is not None:
        return Path(log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def free_folder(parent: Path, prefix: str) -> Path:
    """Return the first of ``parent/prefix``, ``prefix-1``, ``prefix-2``, … that holds no files."""
    folder, number = parent / prefix, 0
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = parent / f"{prefix}-{number}"
    return folder


def remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and its parents, up to and with ``top``, if they are empty."""
    for each in (folder, *folder.parents):
        with suppress(OSError):
            each.rmdir()
        if each == top:
            return


class RunFolder:
    """Write the files of a run.

    ``probes.jsonl`` gets one line a probe, ``probes.csv`` is written now and then, and
    ``summary.json`` at the end.

    Args:
        path: the folder, which is created at once.
        writes: whether this process writes; of several processes only one does.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        self._written, self._written_beside = float("-inf"), time.monotonic()
        if writes:
            path.mkdir(parents=True, exist_ok=True)

    def append(self, probe: Probe, table: ProbeTable) -> None:
        """Write a new probe as a line, and the table if `CSV_SECONDS` have passed."""
        if not self._writes:
            return
        _append(self.path / PROBES_JSONL, to_json_line(probe).encode())
        if time.monotonic() - self._written > CSV_SECONDS:
            self.write_table(table)

    def rewrite(self, table: ProbeTable) -> None:
        """Write table and lines anew, after thinning or after rows came from another run."""
        self.write_table(table)
        self._write(PROBES_JSONL, "".join(to_json_line(probe) for probe in table))

    def write_table(self, table: ProbeTable) -> None:
        """Write ``probes.csv`` atomically."""
        self._write(PROBES_CSV, table.to_csv())
        self._written = time.monotonic()

    @property
    def beside_is_due(self) -> bool:
        """Whether `CSV_SECONDS` have passed since the extras' tables were written."""
        return time.monotonic() - self._written_beside > CSV_SECONDS

    def write_beside(self, tables: Mapping[str, tuple[type[Any], Sequence[Any]]]) -> None:
        """Write the tables of the extras.

        Args:
            tables: dataclass and rows of each table by name. A table without rows is not written.
        """
        self._written_beside = time.monotonic()
        for name, (kind, rows) in tables.items():
            if rows:
                self._write(f"{name}.csv", to_csv(kind, rows))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json`` atomically, as strict JSON."""
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        self._write(SUMMARY, text + "\n")

    def finish(self, table: ProbeTable, summary: dict[str, Any]) -> None:
        """Write the final table and summary, and remove ``probes.jsonl``, which has no more."""
        self.write_table(table)
        self.write_summary(summary)
        (self.path / PROBES_JSONL).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        if self._writes:
            write_atomically(self.path / name, text)


def _append(path: Path, line: bytes) -> None:
    """Append a line to a file."""
    # Without Python's buffers, because training waits meanwhile.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        while line:
            line = line[os.write(file, line) :]
    finally:
        os.close(file)
