"""Memory for large x_k and g_k, used again and again, and laid out as the files that they become.

Fresh memory is slow: a CPU takes several times as long to make its pages as to copy into them.
Tensors that lie in memory as in their file are written without another copy.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from lightning_landscape.store.layout import KINDS, PAGE, Laid, layout_of

LARGE = 1 << 24
"""Bytes from which memory that is used again, and direct reads and writes, pay.

Below, a file goes to the system's cache and back in less time. Above, the CPU has less to do: half
for a copy, a fifth or less for a file. Measured with 1 to 128 MiB on two cores.
"""


class _Place:
    """One piece of memory, lent as long as a tensor in it is there.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        size = -(-size // PAGE) * PAGE
        private: dict[str, Any] = {}
        if hasattr(mmap, "MAP_PRIVATE"):
            private["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._pages = mmap.mmap(-1, size, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a system without large pages
                self._pages.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self._lease: weakref.ref[Any] | None = None

    @property
    def free(self) -> bool:
        """Whether every tensor that was here is gone."""
        return self._lease is None or self._lease() is None

    def lend(self, size: int) -> tuple[Tensor, memoryview]:
        # the storage of a tensor, and so every view of it, keeps the lease alive
        lease = (ctypes.c_uint8 * self.size).from_buffer(self._pages)
        self._lease = weakref.ref(lease)
        whole = -(-size // PAGE) * PAGE
        return torch.frombuffer(lease, dtype=torch.uint8)[:whole], memoryview(self._pages)[:whole]


class Memory:
    """Lends memory to tensors, and lends it again when they are gone.

    Args:
        most: how many pieces to keep; pieces beyond that are made anew each time.
        large: bytes from which tensors come into such memory, `LARGE` by default.

    Example:
        >>> memory = Memory(most=2, large=0)
        >>> first = memory.copied({"x": torch.ones(3)})
        >>> where = first["x"].data_ptr()
        >>> del first
        >>> memory.copied({"x": torch.zeros(3)})["x"].data_ptr() == where
        True
    """

    def __init__(self, most: int, large: int | None = None) -> None:
        self._most, self.large = most, LARGE if large is None else large
        self._places: list[_Place] = []
        # a probe is read in the background while parameters are copied
        self._lending = threading.Lock()

    @torch.no_grad()
    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies on the same devices.

        Args:
            tensors: by name, strided.
        """
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):
            return {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return self.on_host(tensors)

    @torch.no_grad()
    def on_host(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return contiguous copies on the host.

        Args:
            tensors: by name, strided, on any device.
        """
        detached = {name: tensor.detach() for name, tensor in tensors.items()}
        if not self._lays_out(detached):
            order = torch.contiguous_format
            return {
                name: tensor.to("cpu", copy=True, memory_format=order)
                for name, tensor in detached.items()
            }
        layout = layout_of(detached)
        flat, image = self.lend(layout.before + layout.nbytes)
        laid = Laid(layout.tensors(flat[layout.before :]), image, layout)
        torch._foreach_copy_(list(laid.values()), list(detached.values()))
        return laid

    def _lays_out(self, tensors: Mapping[str, Tensor]) -> bool:
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        storable = all(tensor.dtype in KINDS for tensor in tensors.values())
        return bool(tensors) and nbytes >= self.large and storable

    def lend(self, size: int) -> tuple[Tensor, memoryview]:
        """Return whole pages of memory, undefined, as a tensor and as a buffer.

        They are lent as long as the tensor, or a view of it, is there.

        Args:
            size: bytes that are needed.
        """
        with self._lending:
            free = [place for place in self._places if place.free]
            fitting = [place for place in free if size <= place.size <= 2 * size + PAGE]
            if fitting:
                return fitting[0].lend(size)
            if len(self._places) == self._most and free:
                self._places.remove(free[0])
            place = _Place(size)
            if len(self._places) < self._most:
                self._places.append(place)
            return place.lend(size)
