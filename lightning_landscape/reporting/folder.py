"""The folder of a run: which one it is, and how its files are kept readable at any time."""

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
"""While training, ``probes.csv`` is rewritten no more often than this"""


def parent_folder(trainer: Trainer, dirpath: str | os.PathLike[str] | None) -> Path:
    """Return where ``<prefix>/`` goes: ``dirpath``, or the logger's folder, or the trainer's ``default_root_dir``."""
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
    """Return ``parent/prefix``, or the first ``prefix-1``, ``prefix-2``, … in which no other run has left anything."""
    folder, number = parent / prefix, 0
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = parent / f"{prefix}-{number}"
    return folder


def remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and those above it, up to ``top``, as far as they are empty."""
    for each in (folder, *folder.parents):
        with suppress(OSError):
            each.rmdir()
        if each == top:
            return


class RunFolder:
    """Writes ``probes.jsonl`` line by line, ``probes.csv`` now and then, ``summary.json`` at the end.

    Args:
        path: the folder; made at once.
        writes: whether this process writes; of several, one does.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        self._written, self._written_beside = float("-inf"), time.monotonic()
        if writes:
            path.mkdir(parents=True, exist_ok=True)

    def append(self, probe: Probe, table: ProbeTable) -> None:
        """Add a probe: a line at once, the whole table if it has not been written for a while."""
        if not self._writes:
            return
        _append(self.path / PROBES_JSONL, to_json_line(probe).encode())
        if time.monotonic() - self._written > CSV_SECONDS:
            self.write_table(table)

    def rewrite(self, table: ProbeTable) -> None:
        """Write table and lines anew: after rows were thinned out or taken over from another run."""
        self.write_table(table)
        self._write(PROBES_JSONL, "".join(to_json_line(probe) for probe in table))

    def write_table(self, table: ProbeTable) -> None:
        """Write ``probes.csv`` atomically."""
        self._write(PROBES_CSV, table.to_csv())
        self._written = time.monotonic()

    @property
    def beside_is_due(self) -> bool:
        """Whether the tables beside the table of probes have not been written for a while."""
        return time.monotonic() - self._written_beside > CSV_SECONDS

    def write_beside(self, tables: Mapping[str, tuple[type[Any], Sequence[Any]]]) -> None:
        """Write the tables of the extras.

        Args:
            tables: class and rows of each, by its name; those without rows are not written.
        """
        self._written_beside = time.monotonic()
        for name, (kind, rows) in tables.items():
            if rows:
                self._write(f"{name}.csv", to_csv(kind, rows))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json`` atomically, as strict JSON."""
        self._write(
            SUMMARY, json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        )

    def finish(self, table: ProbeTable, summary: dict[str, Any]) -> None:
        """Write the final table and summary; the lines, which say no more, go."""
        self.write_table(table)
        self.write_summary(summary)
        (self.path / PROBES_JSONL).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        if self._writes:
            write_atomically(self.path / name, text)


def _append(path: Path, line: bytes) -> None:
    """Add a line to a file, with as little as the system needs for it: training waits meanwhile."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        while line:
            line = line[os.write(file, line) :]
    finally:
        os.close(file)
