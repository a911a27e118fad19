"""Codecs: a codec turns the elements of a tensor into a few smaller tensors, its planes, and back.

It says which planes there are for a number of elements, and encodes and decodes a block of `BLOCK` elements (the last one may
be shorter). To add one: a subclass with these three methods, and its name in `CODECS`, settings.py, ``LandscapeMonitor`` and
docs/files.md; what it costs in accuracy is measured at every probe, whatever it does.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from lightning_landscape.store.background import ELEMENTS

BLOCK = ELEMENTS
"""Elements that are encoded at a time"""

Planes = dict[str, Tensor]
"""Flat tensors by name"""


class Codec(ABC):
    """Turns flat blocks of float32, or float64, into planes and back."""

    @abstractmethod
    def planes(self, elements: int) -> dict[str, tuple[int, torch.dtype]]:
        """Return size and dtype of each plane for so many elements; of several blocks they lie one after the other."""

    @abstractmethod
    def encode(self, block: Tensor, generator: torch.Generator) -> Planes:
        """Return the planes of a block; what is random is drawn from ``generator`` and from no other."""

    @abstractmethod
    def decode(self, planes: Planes, dtype: torch.dtype) -> Tensor:
        """Return a block of float32 or float64 from its planes."""

    def nbytes(self, tensor: Tensor) -> int:
        """Return how many bytes a tensor takes: its own where a codec has nothing to win."""
        return self._encoded(tensor.numel()) if self.shrinks(tensor) else tensor.nbytes

    def shrinks(self, tensor: Tensor) -> bool:
        """Return whether a tensor is encoded: whole and complex numbers never are, nor what would not become smaller."""
        return tensor.is_floating_point() and self._encoded(tensor.numel()) < tensor.nbytes

    def _encoded(self, elements: int) -> int:
        return sum(size * dtype.itemsize for size, dtype in self.planes(elements).values())


class Bfloat16(Codec):
    """The nearest bfloat16: 8 bits of precision, the range of float32."""

    @override
    def planes(self, elements: int) -> dict[str, tuple[int, torch.dtype]]:
        return {"values": (elements, torch.bfloat16)}

    @override
    def encode(self, block: Tensor, generator: torch.Generator) -> Planes:
        return {"values": block.to(torch.bfloat16)}

    @override
    def decode(self, planes: Planes, dtype: torch.dtype) -> Tensor:
        return planes["values"].to(dtype)


class Int8(Codec):
    r"""Groups of 128 whole numbers from −127 to 127 with a float32 scale, rounded up or down at random so that E[ṽ] = v.

    .. math:: \tilde v = s \lfloor v/s + u \rfloor, \qquad u \sim U[0, 1), \quad s \ge \max_{group} |v| / 127
    """

    group = 128

    @override
    def planes(self, elements: int) -> dict[str, tuple[int, torch.dtype]]:
        return {
            "codes": (elements, torch.int8),
            "scales": (-(-elements // self.group), torch.float32),
        }

    @override
    def encode(self, block: Tensor, generator: torch.Generator) -> Planes:
        groups = self._grouped(block)
        largest = groups.abs().amax(dim=1)
        # the next number above: rounded down, a scale would leave no code for the largest value, and bias it
        scales = torch.nextafter((largest / 127).to(torch.float32), torch.tensor(torch.inf))
        scales = torch.where(largest > 0, scales, torch.zeros(()))
        ratios = groups / torch.where(scales > 0, scales, torch.ones(())).unsqueeze(1)
        drawn = torch.rand(groups.shape, generator=generator)
        codes = (ratios + drawn).floor_().clamp_(-127, 127).to(torch.int8)
        return {"codes": codes.reshape(-1)[: block.numel()], "scales": scales}

    @override
    def decode(self, planes: Planes, dtype: torch.dtype) -> Tensor:
        groups = self._grouped(planes["codes"].to(dtype)) * planes["scales"].to(dtype).unsqueeze(1)
        return groups.reshape(-1)[: planes["codes"].numel()]

    def _grouped(self, block: Tensor) -> Tensor:
        lacking = -block.numel() % self.group
        whole = torch.nn.functional.pad(block, (0, lacking)) if lacking else block
        return whole.view(-1, self.group)


NATIVE = "native"

CODECS: dict[str, Codec | None] = {NATIVE: None, "bfloat16": Bfloat16(), "int8": Int8()}
"""By the names of ``store_dtype``; None writes tensors as they are"""


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return in what a tensor is encoded: float64 stays, all else becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def encoded(codec: Codec, tensor: Tensor, base: Tensor | None, seed: str) -> Planes:
    """Return the planes of a tensor, or of its difference to another.

    Args:
        codec: the codec.
        tensor: any shape, floating.
        base: what is subtracted first; same shape.
        seed: of the codec's own random numbers; where it is the same, so is what is drawn.

    Example:
        >>> values = torch.tensor([0.0, 1.0, -127.0])
        >>> planes = encoded(CODECS["int8"], values, None, "step 0, weight")
        >>> {name: tuple(plane.shape) for name, plane in planes.items()}
        {'codes': (3,), 'scales': (1,)}
        >>> bool((decoded(CODECS["int8"], planes, values.dtype, values.shape, None) - values).abs().max() <= 1.001)
        True
    """
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    whole = {
        name: torch.empty(size, dtype=dtype)
        for name, (size, dtype) in codec.planes(tensor.numel()).items()
    }
    working = working_dtype(tensor.dtype)
    flat, beneath = tensor.reshape(-1), None if base is None else base.reshape(-1)
    for start in range(0, flat.numel(), BLOCK):
        block = flat[start : start + BLOCK].to(working)
        if beneath is not None:
            block = block - beneath[start : start + BLOCK].to(working)
        for name, plane in codec.encode(block, generator).items():
            _part(codec, whole, name, start, block.numel()).copy_(plane)
    return whole


def decoded(
    codec: Codec,
    planes: Mapping[str, Tensor],
    dtype: torch.dtype,
    shape: torch.Size,
    base: Tensor | None,
) -> Tensor:
    """Return the tensor of which `encoded` gave the planes.

    Args:
        codec: the codec.
        planes: by name.
        dtype: of the tensor.
        shape: of the tensor.
        base: what was subtracted.
    """
    whole = torch.empty(shape.numel(), dtype=dtype)
    beneath, working = None if base is None else base.reshape(-1), working_dtype(dtype)
    for start in range(0, whole.numel(), BLOCK):
        into = whole[start : start + BLOCK]
        block = codec.decode(
            {name: _part(codec, planes, name, start, into.numel()) for name in planes}, working
        )
        into.copy_(block if beneath is None else block + beneath[start : start + BLOCK].to(working))
    return whole.view(shape)


def _part(
    codec: Codec, planes: Mapping[str, Tensor], name: str, start: int, elements: int
) -> Tensor:
    """Return the part of a plane that belongs to the block which starts at an element."""
    begin = codec.planes(start)[name][0]
    return planes[name][begin : begin + codec.planes(elements)[name][0]]
