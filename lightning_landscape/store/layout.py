"""Where tensors lie in a safetensors file, and in memory that is an image of one."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

PAGE = 4096
"""Bytes: direct writes take multiples of it"""
_METADATA = 512
"""Bytes that a header leaves free for texts that are known only when the file is written"""

KINDS = {
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
DTYPES = {name: dtype for dtype, name in KINDS.items()}

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
        unknown = sorted({str(dtype) for _, dtype, _ in key if dtype not in KINDS})
        if unknown:
            found = ", ".join(unknown)
            raise TypeError(f"found tensors of {found}; supported are the dtypes of safetensors")
        self.key = key
        by_width = sorted(key, key=lambda entry: (-entry[1].itemsize, KINDS[entry[1]]))
        sizes = (dtype.itemsize * math.prod(shape) for _, dtype, shape in by_width)
        edges = list(itertools.accumulate(sizes, initial=0))
        names = [name for name, _, _ in by_width]
        self.spans = dict(zip(names, itertools.pairwise(edges), strict=True))
        self.nbytes = edges[-1]
        entries = {
            name: {
                "dtype": KINDS[dtype],
                "shape": list(shape),
                "data_offsets": list(self.spans[name]),
            }
            for name, dtype, shape in by_width
        }
        self._entries = json.dumps(entries, separators=(",", ":"))[1:]

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
        return {
            name: flat[slice(*self.spans[name])].view(dtype).view(shape)
            for name, dtype, shape in self.key
        }

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
