"""Parameters that are not x: stored when they change, and shared by the probes until then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_landscape.store.tensor_files import link, read_tensors, save_tensors

OTHERS = "others"
_SAMPLE = 1024


class Others:
    """The others of all probes: each probe's folder has a hard link to the file that applies to it.

    Args:
        folder: the store's folder; the newest values lie there.
    """

    def __init__(self, folder: Path) -> None:
        self._newest = folder / f"{OTHERS}.safetensors"
        self._sample: dict[str, Tensor] = {}
        self._owed: Mapping[str, Tensor] = {}
        self._read: tuple[tuple[int, ...], dict[str, Tensor]] = ((), {})
        self.nbytes = 0
        """Bytes of the newest values"""

    @property
    def known(self) -> bool:
        """Whether any values were taken so far."""
        return bool(self._sample)

    def changed(self, others: Mapping[str, Tensor]) -> bool:
        """Return whether values differ from the newest ones, judged by a sample of each tensor."""
        return not same_sample(sampled(others), self._sample)

    def note(self, others: Mapping[str, Tensor]) -> None:
        """Take values as the newest ones, before they are written."""
        self.nbytes = sum(value.nbytes for value in others.values())
        self._sample = sampled(others)

    def owe(self, others: Mapping[str, Tensor] | None) -> None:
        """Remember values that the next probe to be written has to bring."""
        self._owed = others or self._owed

    def put_into(self, folder: Path) -> bool:
        """Write what is owed, and link the newest values into a probe's folder, if there are any.

        Raises:
            OSError: if that is not possible.
        """
        if self._owed:
            save_tensors(self._newest, self._owed, private=True)
        if not self._newest.exists():
            return False
        link(self._newest, folder / self._newest.name)
        return True

    def written(self) -> None:
        """Note that a probe with the newest values is complete."""
        self._owed = {}

    def newest(self) -> dict[str, Tensor]:
        """Return the newest values."""
        return dict(self._owed) if self._owed else read_tensors(self._newest)[0]

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Return the values that apply to a probe, read once for the probes that share them.

        Raises:
            OSError: if the file is gone.
            ValueError: if it is damaged.
        """
        path = folder / self._newest.name
        stat = path.stat()
        key = stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
        if key != self._read[0]:
            self._read = (), {}
            self._read = key, read_tensors(path)[0]
        return dict(self._read[1])

    def forget(self) -> None:
        """Forget what was read."""
        self._read = (), {}


def sampled(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return up to 2,047 elements of each tensor, evenly spaced."""
    flat = {name: value.detach().reshape(-1) for name, value in values.items()}
    return {
        name: value[:: max(1, value.numel() // _SAMPLE)].to("cpu", copy=True)
        for name, value in flat.items()
    }


def same_sample(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two samples have the same names and values."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )
