"""Memory for x_k and g_k that is used again and again, laid out as the files in which they go to disk.

Fresh memory is dear: until it has been touched for the first time there are no pages, and on a CPU making them takes several
times as long as copying into them. Tensors that lie as a file of safetensors has them are written without another copy.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import mmap
import threading
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

PAGE = 4096
"""Bytes: what reads and writes past the cache of the system has to be a multiple of"""

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
"""How safetensors calls them"""
DTYPES = {name: dtype for dtype, name in _KINDS.items()}
_LAYOUTS = 8  # remembered: x_k and g_k have one or two, more only where parameters come and go
_METADATA = 512
"""Bytes that the header leaves for what is known only when a file is written"""

Key = tuple[tuple[str, torch.dtype, torch.Size], ...]


class Layout:
    """Where tensors lie in a file of safetensors: wide elements first, so that each is aligned to its own size.

    Args:
        key: name, dtype and shape of each.

    Raises:
        TypeError: if safetensors has no such dtype.

    Example:
        >>> layout = Layout((("a", torch.int8, torch.Size([3])), ("b", torch.float32, torch.Size([2, 2]))))
        >>> layout.spans
        {'b': (0, 16), 'a': (16, 19)}
    """

    def __init__(self, key: Key) -> None:
        unknown = sorted({str(dtype) for _, dtype, _ in key if dtype not in _KINDS})
        if unknown:
            raise TypeError(
                f"found tensors of {', '.join(unknown)}; supported is what safetensors holds: other dtypes"
            )
        self.key = key
        self._by_width = sorted(key, key=lambda entry: (-entry[1].itemsize, _KINDS[entry[1]]))
        sizes = (dtype.itemsize * math.prod(shape) for _, dtype, shape in self._by_width)
        edges = list(itertools.accumulate(sizes, initial=0))
        self.spans = {
            name: span
            for (name, _, _), span in zip(self._by_width, itertools.pairwise(edges), strict=True)
        }
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

    def header(self, metadata: Mapping[str, str], *, nbytes: int | None = None) -> bytes:
        """Return what stands before the tensors in a file.

        Args:
            metadata: text by name.
            nbytes: how long it has to be; by default as short as it can be, a multiple of 8.

        Raises:
            ValueError: if that is too short.
        """
        comma = "" if self._entries == "}" else ","
        text = f'{{"__metadata__":{json.dumps(dict(metadata))}{comma}{self._entries}'.encode()
        size = nbytes if nbytes is not None else 8 + -(-len(text) // 8) * 8
        if size < 8 + len(text):
            raise ValueError(f"found a header of {8 + len(text)} bytes; supported are {size}")
        return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)

    def tensors(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a file's bytes behind the header, in the order of the key."""
        views: dict[str, Tensor] = {}
        for dtype, group in itertools.groupby(self._by_width, key=lambda entry: entry[1]):
            entries = list(group)
            start, end = self.spans[entries[0][0]][0], self.spans[entries[-1][0]][1]
            pieces = torch.split(
                flat[start:end].view(dtype), [math.prod(shape) for _, _, shape in entries]
            )
            views |= {
                name: piece.view(shape)
                for (name, _, shape), piece in zip(entries, pieces, strict=True)
            }
        return {name: views[name] for name, _, _ in self.key}

    @property
    def before(self) -> int:
        """Bytes, whole pages, that a header takes where it is laid out before it is known."""
        return -(-(8 + len(self._entries) + _METADATA) // PAGE) * PAGE


class Laid(dict[str, Tensor]):
    """Tensors by name in one piece of memory, which is an image of their file but for its header.

    Args:
        tensors: by name.
        image: the bytes of the file; they begin on a page's edge and fill whole pages.
        layout: where the tensors lie, behind ``layout.before`` bytes.
    """

    def __init__(self, tensors: Mapping[str, Tensor], image: memoryview, layout: Layout) -> None:
        super().__init__(tensors)
        self.image, self.layout = image, layout


class _Place:
    """One piece of memory, used by tensors as long as any of them is there.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        size = -(-size // PAGE) * PAGE
        private = (
            {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        )
        self._pages = mmap.mmap(-1, size, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a system without large pages
                self._pages.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self._lease: weakref.ref[Any] | None = None

    @property
    def free(self) -> bool:
        """Whether no tensor is here any more."""
        return self._lease is None or self._lease() is None

    def lend(self, size: int) -> tuple[Tensor, memoryview]:
        """Return the first bytes as a tensor, whole pages; the place is free again when it and all of its views are gone."""
        lease = (ctypes.c_uint8 * self.size).from_buffer(
            self._pages
        )  # a tensor's storage holds what it was made from
        self._lease = weakref.ref(lease)
        whole = -(-size // PAGE) * PAGE
        return torch.frombuffer(lease, dtype=torch.uint8)[:whole], memoryview(self._pages)[:whole]


class Memory:
    """Lends memory to tensors that earlier ones have left.

    Args:
        most: how many pieces to keep; where more are wanted at a time they are made anew, and not kept.

    Example:
        >>> memory = Memory(most=2)
        >>> first = memory.copied({"x": torch.ones(3)})
        >>> where = first["x"].data_ptr()
        >>> del first
        >>> memory.copied({"x": torch.zeros(3)})["x"].data_ptr() == where
        True
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: list[_Place] = []
        self._lending = threading.Lock()
        """A probe is read in the background while the parameters are copied: no place is to be given to both"""
        self._layouts: dict[Key, Layout] = {}

    @torch.no_grad()
    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies on the same devices: on the CPU in memory of ours, elsewhere in that of torch, which is kept as well.

        Args:
            tensors: by name, strided.
        """
        if any(
            tensor.device.type != "cpu" or tensor.dtype not in _KINDS for tensor in tensors.values()
        ):
            return {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return self.on_host(tensors)

    @torch.no_grad()
    def on_host(self, tensors: Mapping[str, Tensor]) -> Laid:
        """Return copies on the host.

        Args:
            tensors: by name, strided, on any device.

        Raises:
            TypeError: if safetensors has no such dtype.
        """
        layout = self._layout(tensors)
        flat, image = self.lend(layout.before + layout.nbytes)
        laid = Laid(layout.tensors(flat[layout.before :]), image, layout)
        if laid:
            torch._foreach_copy_(
                list(laid.values()), [tensor.detach() for tensor in tensors.values()]
            )
        return laid

    def _layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        key = tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
        if key not in self._layouts:
            if len(self._layouts) >= _LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = Layout(key)
        return self._layouts[key]

    def lend(self, size: int) -> tuple[Tensor, memoryview]:
        """Return memory of some bytes, filled up to whole pages, as a tensor and as a buffer; what it holds is undefined.

        It is lent as long as the tensor, or a view of it, is there.
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


def laid_out(tensors: Mapping[str, Tensor]) -> Layout:
    """Return how tensors lie in a file.

    Raises:
        TypeError: if safetensors has no such dtype.
    """
    return Layout(tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()))


def bytes_of(tensors: Iterable[Tensor]) -> list[memoryview]:
    """Return the memory of contiguous tensors on the host, but of those without elements."""
    flat = (tensor.reshape(-1).view(torch.uint8) for tensor in tensors if tensor.numel())
    return [tensor.numpy().data for tensor in flat]
