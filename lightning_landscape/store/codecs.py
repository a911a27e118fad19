"""Codecs: a codec turns a tensor into a few smaller ones, its planes, and back.

To add one: a subclass of `Codec`, and its name in `CODECS`, settings.py and docs/files.md. What it
does to a probe is measured when the probe is written.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_landscape.store.background import ELEMENTS

BLOCK = ELEMENTS
"""Elements that are encoded at a time"""
NATIVE = "native"

Planes = dict[str, Tensor]
"""Flat tensors by name"""


class Codec(ABC):
    """Turns flat blocks of float32, or float64, into planes and back."""

    planes: ClassVar[Mapping[str, tuple[int, torch.dtype]]]
    """By name: how many elements share a number of the plane (a divisor of `BLOCK`), its dtype"""

    @abstractmethod
    def encode(self, block: Tensor, generator: torch.Generator) -> Planes:
        """Return the planes of a block; ``generator`` is the only source of random numbers."""

    @abstractmethod
    def decode(self, planes: Planes, dtype: torch.dtype) -> Tensor:
        """Return a block of float32 or float64 from its planes."""

    def nbytes(self, tensor: Tensor) -> int:
        """Return the bytes of a tensor as stored: its own if the codec would not shrink it."""
        return (
            min(tensor.nbytes, self._encoded(tensor))
            if tensor.is_floating_point()
            else tensor.nbytes
        )

    def shrinks(self, tensor: Tensor) -> bool:
        """Return whether a tensor is encoded: only floats are, and only to take fewer bytes."""
        return self.nbytes(tensor) < tensor.nbytes

    def sizes(self, elements: int) -> dict[str, int]:
        """Return the sizes of the planes of so many elements."""
        return {name: -(-elements // group) for name, (group, _) in self.planes.items()}

    def _encoded(self, tensor: Tensor) -> int:
        sizes = self.sizes(tensor.numel())
        return sum(sizes[name] * dtype.itemsize for name, (_, dtype) in self.planes.items())


class Bfloat16(Codec):
    """The nearest bfloat16: 8 bits of precision, the range of float32."""

    planes: ClassVar = {"values": (1, torch.bfloat16)}

    @override
    def encode(self, block: Tensor, generator: torch.Generator) -> Planes:
        return {"values": block.to(torch.bfloat16)}

    @override
    def decode(self, planes: Planes, dtype: torch.dtype) -> Tensor:
        return planes["values"].to(dtype)


class Int8(Codec):
    r"""Groups of 128 integers from −127 to 127 with a float32 scale, rounded at random.

    .. math:: \tilde v = s \lfloor v/s + u \rfloor, \quad u \sim U[0, 1), \quad s \ge \max |v| / 127

    Then E[ṽ] = v.
    """

    group = 128
    planes: ClassVar = {"codes": (1, torch.int8), "scales": (group, torch.float32)}

    @override
    def encode(self, block: Tensor, generator: torch.Generator) -> Planes:
        groups = self._grouped(block)
        largest = groups.abs().amax(dim=1)
        # the next number above: with a smaller scale the largest value would have no code
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


CODECS: dict[str, Codec | None] = {NATIVE: None, "bfloat16": Bfloat16(), "int8": Int8()}
"""By the names of ``Store(dtype=)``"""


# ------------------------------------------------------------------------------------------- sizes


def stored_bytes(tensor: Tensor, dtype: str) -> int:
    """Return the bytes that a tensor takes in a probe.

    Args:
        tensor: any tensor; it may be on the meta device.
        dtype: a name of `CODECS`.

    Example:
        >>> [stored_bytes(torch.zeros(1280), dtype) for dtype in CODECS]
        [5120, 2560, 1320]
    """
    codec = CODECS[dtype]
    return tensor.nbytes if codec is None else codec.nbytes(tensor)


def bytes_of_probe(parameters: Mapping[str, Tensor], dtype: str) -> int:
    """Return the bytes of x_k and g_k as stored.

    Args:
        parameters: x by name.
        dtype: a name of `CODECS`.
    """
    return 2 * sum(stored_bytes(tensor, dtype) for tensor in parameters.values())


def bytes_of_start(parameters: Mapping[str, Tensor], dtype: str) -> int:
    """Return by how many bytes the first probe, which is stored natively, exceeds another one.

    Args:
        parameters: x by name.
        dtype: a name of `CODECS`.
    """
    return bytes_of_probe(parameters, NATIVE) - bytes_of_probe(parameters, dtype)


# ------------------------------------------------------------------------------------ whole tensors


def encoded(codec: Codec, tensor: Tensor, base: Tensor | None, seed: str) -> Planes:
    """Return the planes of a tensor, or of its difference to another.

    Args:
        codec: the codec.
        tensor: any shape, floating.
        base: what is subtracted first; same shape.
        seed: of the codec's own random numbers.

    Example:
        >>> values = torch.tensor([0.0, 1.0, -127.0])
        >>> planes = encoded(CODECS["int8"], values, None, "step 0, weight")
        >>> {name: tuple(plane.shape) for name, plane in planes.items()}
        {'codes': (3,), 'scales': (1,)}
        >>> found = decoded(CODECS["int8"], planes, values.dtype, values.shape, None)
        >>> bool((found - values).abs().max() <= 1.001)
        True
    """
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    whole = {
        name: torch.empty(size, dtype=codec.planes[name][1])
        for name, size in codec.sizes(tensor.numel()).items()
    }
    for index, (block, *beneath) in enumerate(blocks(tensor, base)):
        difference = block - beneath[0] if beneath else block
        for name, plane in codec.encode(difference, generator).items():
            start = index * BLOCK // codec.planes[name][0]
            whole[name][start : start + len(plane)].copy_(plane)
    return whole


def decoded(
    codec: Codec,
    planes: Mapping[str, Tensor],
    dtype: torch.dtype,
    shape: torch.Size,
    base: Tensor | None,
) -> Tensor:
    """Return the tensor that `encoded` turned into planes.

    Args:
        codec: the codec.
        planes: by name.
        dtype: of the tensor.
        shape: of the tensor.
        base: what was subtracted.

    Raises:
        ValueError: if the planes are those of another number of elements.
    """
    if {name: len(plane) for name, plane in planes.items()} != codec.sizes(shape.numel()):
        raise ValueError(f"found planes that are not those of {shape.numel()} elements")
    flat = torch.empty(shape.numel(), dtype=dtype)
    beneath, working = None if base is None else base.reshape(-1), _working(dtype)
    for start in range(0, len(flat), BLOCK):
        end = min(start + BLOCK, len(flat))
        part = {
            name: planes[name][start // group : -(-end // group)]
            for name, (group, _) in codec.planes.items()
        }
        block = codec.decode(part, working)
        flat[start:end] = block if beneath is None else block + beneath[start:end].to(working)
    return flat.view(shape)


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def blocks(*tensors: Tensor | None) -> Iterator[list[Tensor]]:
    """Yield the same block of each tensor, in the dtype in which the first one is encoded."""
    flat = [tensor.reshape(-1) for tensor in tensors if tensor is not None]
    working = _working(flat[0].dtype)
    for start in range(0, len(flat[0]), BLOCK):
        yield [values[start : start + BLOCK].to(working) for values in flat]
