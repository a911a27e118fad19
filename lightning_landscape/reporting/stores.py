"""Stores that runs left behind: how large they are, and their removal."""

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
    """What its removal frees: files that another run links are not counted"""
    ended: bool
    """Whether the run ended: until then its probes need the store"""

    def remove(self) -> None:
        """Remove it from the disk.

        Raises:
            OSError: if it cannot be removed, or is a link to another place.
        """
        shutil.rmtree(self.path)


def _is_ours(entry: Path) -> bool:
    """Return whether an entry of a store is one that a monitor writes: a probe, one half written, or what probes share."""
    if entry.is_dir():
        if re.fullmatch(r"process-\d+", entry.name):  # of a distributed run
            return all(map(_is_ours, entry.iterdir()))
        return re.fullmatch(r"\d{12}|\.\d{12}\.part", entry.name) is not None
    return (
        re.fullmatch(
            r"(others|base-\d+)\.safetensors|\.(others|base-\d+)\.safetensors\.tmp", entry.name
        )
        is not None
    )


def leftover(folder: Path) -> Leftover | None:
    """Return the store of a run; None where there is none, or where anything in it is not a monitor's.

    Args:
        folder: the monitor's folder, ``<prefix>/``.
    """
    path = folder / STORE
    if not path.is_dir() or not all(map(_is_ours, path.iterdir())):
        return None
    files = [file.lstat() for file in path.rglob("*") if not file.is_dir()]
    here = Counter(file.st_ino for file in files)  # probes of one run share files, too
    freed = {file.st_ino: file.st_size for file in files if file.st_nlink <= here[file.st_ino]}
    return Leftover(path, sum(freed.values()), (folder / SUMMARY).is_file())
