"""Memory for large x_k and g_k, used again and again, and laid out as the files that they become.

Fresh memory is slow: a CPU takes several times as long to make its pages as to copy into them.
Tensors that lie in memory as in their file are written without another copy.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import math
import mmap
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

PAGE = 4096
"""Bytes: direct writes take multiples of it"""
LARGE = 1 << 25
"""Bytes from which memory that is used again and direct writes are faster than the usual ways"""
_METADATA = 512
"""Bytes that a header leaves free for texts that are known only when the file is written"""

_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes of safetensors and their names in its headers"""
DTYPES = {name: dtype for dtype, name in _KINDS.items()}

Key = tuple[tuple[str, torch.dtype, torch.Size], ...]


class Layout:
    """Where tensors lie in a safetensors file: wide dtypes first, so that each tensor is aligned.

    Args:
        key: name, dtype and shape of each tensor.

    Raises:
        TypeError: if safetensors does not have a dtype.

    Example:
        >>> a, b = ("a", torch.int8, torch.Size([3])), ("b", torch.float32, torch.Size([2, 2]))
        >>> Layout((a, b)).spans
        {'b': (0, 16), 'a': (16, 19)}
    """

    def __init__(self, key: Key) -> None:
        unknown = sorted({str(dtype) for _, dtype, _ in key if dtype not in _KINDS})
        if unknown:
            found = ", ".join(unknown)
            raise TypeError(f"found tensors of {found}; supported are the dtypes of safetensors")
        self.key = key
        self._by_width = sorted(key, key=lambda entry: (-entry[1].itemsize, _KINDS[entry[1]]))
        sizes = (dtype.itemsize * math.prod(shape) for _, dtype, shape in self._by_width)
        edges = list(itertools.accumulate(sizes, initial=0))
        names = [name for name, _, _ in self._by_width]
        self.spans = dict(zip(names, itertools.pairwise(edges), strict=True))
        self.nbytes = edges[-1]
        about = {
            name: {
                "dtype": _KINDS[dtype],
                "shape": list(shape),
                "data_offsets": list(self.spans[name]),
            }
            for name, dtype, shape in self._by_width
        }
        self._entries = json.dumps(about, separators=(",", ":"))[1:]

    def header(self, texts: Mapping[str, str], *, nbytes: int | None = None) -> bytes:
        """Return the bytes before the tensors.

        Args:
            texts: metadata by name.
            nbytes: length of the header; by default the shortest multiple of 8.

        Raises:
            ValueError: if that is too short.
        """
        comma = "" if self._entries == "}" else ","
        text = f'{{"__metadata__":{json.dumps(dict(texts))}{comma}{self._entries}'.encode()
        size = nbytes if nbytes is not None else 8 + -(-len(text) // 8) * 8
        if size < 8 + len(text):
            raise ValueError(f"found a header of {8 + len(text)} bytes; supported are {size}")
        return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)

    def tensors(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of the bytes behind the header, in the order of the key."""
        views: dict[str, Tensor] = {}
        for dtype, group in itertools.groupby(self._by_width, key=lambda entry: entry[1]):
            entries = list(group)
            start, end = self.spans[entries[0][0]][0], self.spans[entries[-1][0]][1]
            sizes = [math.prod(shape) for _, _, shape in entries]
            pieces = torch.split(flat[start:end].view(dtype), sizes)
            for (name, _, shape), piece in zip(entries, pieces, strict=True):
                views[name] = piece.view(shape)
        return {name: views[name] for name, _, _ in self.key}

    @property
    def before(self) -> int:
        """Bytes, whole pages, of a header whose texts are not known yet."""
        return -(-(8 + len(self._entries) + _METADATA) // PAGE) * PAGE


_layout = functools.lru_cache(maxsize=8)(Layout)


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return how tensors lie in a file.

    Raises:
        TypeError: if safetensors does not have a dtype.
    """
    return _layout(tuple((name, value.dtype, value.shape) for name, value in tensors.items()))


class Laid(dict[str, Tensor]):
    """Tensors by name in one piece of memory, which is their file but for the header.

    Args:
        tensors: by name.
        image: the bytes of the file: whole pages, the first of which begins at a page's edge.
        layout: where the tensors lie, behind ``layout.before`` bytes.
    """

    def __init__(self, tensors: Mapping[str, Tensor], image: memoryview, layout: Layout) -> None:
        super().__init__(tensors)
        self.image, self.layout = image, layout


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
        storable = all(tensor.dtype in _KINDS for tensor in tensors.values())
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
