"""Stores that runs left behind: their size and their removal."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lightning_landscape.files import STORE, SUMMARY


@dataclass(frozen=True, slots=True)
class Leftover:
    """The store of a run, which holds its training batches."""

    path: Path
    nbytes: int
    """Bytes that the removal frees. Files that another run links do not count."""
    ended: bool
    """Whether the run has ended. Before its end, its probes need the store."""

    def remove(self) -> None:
        """Remove the store from the disk.

        Raises:
            OSError: if the system refuses the removal, or the store is a symbolic link.
        """
        shutil.rmtree(self.path)


def _is_ours(entry: Path) -> bool:
    """Return whether a monitor wrote an entry of a store: a probe, or tensors that probes share.

    The entry may be unfinished.
    """
    if not entry.is_dir():
        shared = r"(others|base-\d+)\.safetensors"
        return re.fullmatch(rf"{shared}|\.{shared}\.tmp", entry.name) is not None
    if re.fullmatch(r"process-\d+", entry.name):  # of a distributed run
        return all(map(_is_ours, entry.iterdir()))
    return re.fullmatch(r"\d{12}|\.\d{12}\.part", entry.name) is not None


def leftover(folder: Path) -> Leftover | None:
    """Return the store of a run; None if there is none, or if it holds files of another program.

    Args:
        folder: the monitor's folder, ``<prefix>/``.
    """
    path = folder / STORE
    if not path.is_dir() or not all(map(_is_ours, path.iterdir())):
        return None
    files = [file.lstat() for file in path.rglob("*") if not file.is_dir()]
    here = Counter(file.st_ino for file in files)  # probes of one run also share files
    freed = {file.st_ino: file.st_size for file in files if file.st_nlink <= here[file.st_ino]}
    return Leftover(path, sum(freed.values()), (folder / SUMMARY).is_file())
