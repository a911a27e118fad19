"""How x_k, g_k and x_{k+1} are stored: natively, or by a lossy codec that takes fewer bytes.

A codec turns a tensor into a few smaller ones, its planes. Of x_k and x_{k+1} it encodes the
difference to x_0, which is stored natively. To add a codec: a subclass of `Codec`, and its name in
`CODECS`, settings.py, ``LandscapeMonitor`` and docs/files.md. What a codec did to a probe is
measured when the probe is written.
"""

from __future__ import annotations

import json
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_landscape.recording.record import CodecError, Record
from lightning_landscape.store.background import ELEMENTS

BLOCK = ELEMENTS
"""Elements that are encoded at a time"""
PARAMETERS, GRADIENT, FOLLOWING = "parameters", "gradient", "following"
NATIVE = "native"
_CODEC, _ENCODED, _BASE, _DIFFERENCE = "codec", "encoded", "base", "difference"

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

    def _encoded(self, tensor: Tensor) -> int:
        sizes = ((-(-tensor.numel() // group), dtype) for group, dtype in self.planes.values())
        return sum(size * dtype.itemsize for size, dtype in sizes)


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
"""By the names of ``Store(dtype=...)``"""


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
        name: torch.empty(-(-tensor.numel() // group), dtype=dtype)
        for name, (group, dtype) in codec.planes.items()
    }
    for index, (block, *beneath) in enumerate(_blocks(tensor, base)):
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
    """
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


def _blocks(*tensors: Tensor | None) -> Iterator[list[Tensor]]:
    """Yield the same block of each tensor that there is, as the first one is encoded."""
    flat = [tensor.reshape(-1) for tensor in tensors if tensor is not None]
    working = _working(flat[0].dtype)
    for start in range(0, len(flat[0]), BLOCK):
        yield [values[start : start + BLOCK].to(working) for values in flat]


# ----------------------------------------------------------------------------------------- records


@dataclass(frozen=True, slots=True)
class Base:
    """x_0, to which differences are encoded."""

    step: int
    values: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors of a record as they go to a file, and the metadata that say how to read them."""

    tensors: Mapping[str, Tensor]
    texts: Mapping[str, str] = field(default_factory=dict)


def encode(
    record: Record, dtype: str, base: Base | None, shares: Mapping[str, float]
) -> tuple[dict[str, Part], CodecError]:
    """Return the files of a record, and what the codec did.

    Args:
        record: its tensors are on the host.
        dtype: a name of `CODECS`.
        base: None for the first record, which is stored natively.
        shares: by name, which part of a sum over elements this process adds; 1 by default.
    """
    gradient = record.gradient
    present = {
        PARAMETERS: record.x,
        GRADIENT: None if gradient is None else gradient.raw,
        FOLLOWING: record.following,
    }
    parts = {part: tensors for part, tensors in present.items() if tensors is not None}
    if CODECS[dtype] is None or base is None:
        return {part: Part(tensors) for part, tensors in parts.items()}, CodecError()
    files = {part: _File(part, dtype, base, record.step) for part in present}
    total, factor = [0.0, 0.0, 0.0], 1.0 if gradient is None else gradient.factor
    x, g = parts.get(PARAMETERS, {}), parts.get(GRADIENT, {})
    for name in dict.fromkeys((*x, *g)):
        sums = _add(files[PARAMETERS], files[GRADIENT], name, x.get(name), g.get(name), factor)
        total = [t + shares.get(name, 1.0) * s for t, s in zip(total, sums, strict=True)]
    for name, tensor in parts.get(FOLLOWING, {}).items():
        _add(files[FOLLOWING], files[GRADIENT], name, tensor, None, factor)
    return {part: files[part].part for part in parts}, CodecError(*total)


def _codec(dtype: str) -> Codec:
    codec = CODECS[dtype]
    if codec is None:
        raise ValueError(f"found tensors encoded as {dtype}")
    return codec


def is_native(texts: Mapping[str, str]) -> bool:
    """Return whether the metadata of a file are those of a native one."""
    return _CODEC not in texts


def decode(
    tensors: dict[str, Tensor],
    texts: Mapping[str, str],
    base_of: Callable[[int], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Return the tensors that `encode` turned into a file.

    Args:
        tensors: of the file.
        texts: its metadata.
        base_of: returns x of the step to which differences were encoded.

    Raises:
        LookupError: if something is missing.
        ValueError: if the metadata are damaged.
    """
    if is_native(texts):
        return tensors
    codec, about = _codec(texts[_CODEC]), json.loads(texts[_ENCODED])
    differ = any(each[_DIFFERENCE] for each in about.values())
    base = base_of(int(texts[_BASE])) if differ else {}
    for name, each in about.items():
        planes = {plane: tensors.pop(f"{name}|{plane}") for plane in codec.planes}
        beneath = base[name] if each[_DIFFERENCE] else None
        dtype, shape = getattr(torch, each["dtype"]), torch.Size(each["shape"])
        tensors[name] = decoded(codec, planes, dtype, shape, beneath)
    return tensors


class _File:
    """A file in the making: some tensors are encoded, others are not."""

    def __init__(self, part: str, dtype: str, base: Base, step: int) -> None:
        self._codec, self._dtype, self._base = _codec(dtype), dtype, base
        self._differs, self._seed = part != GRADIENT, f"step {step} {part}"
        self._tensors: dict[str, Tensor] = {}
        self._about: dict[str, dict[str, Any]] = {}

    def add(self, name: str, tensor: Tensor) -> Tensor:
        """Add a tensor, encoded if possible; return the tensor that will be read."""
        base = self._base.values.get(name) if self._differs else None
        joined = self._differs and not _alike(base, tensor)
        if joined or not self._codec.shrinks(tensor):
            self.add_natively(name, tensor)
            return tensor
        planes = encoded(self._codec, tensor, base, f"{self._seed} {name}")
        self._tensors.update({f"{name}|{plane}": values for plane, values in planes.items()})
        self._about[name] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            _DIFFERENCE: base is not None,
        }
        return decoded(self._codec, planes, tensor.dtype, tensor.shape, base)

    def add_natively(self, name: str, tensor: Tensor) -> None:
        """Add a tensor natively, in the place of its encoded form."""
        if self._about.pop(name, None) is not None:
            for plane in self._codec.planes:
                self._tensors.pop(f"{name}|{plane}")
        self._tensors[name] = tensor

    @property
    def part(self) -> Part:
        """Tensors and metadata."""
        about = json.dumps(self._about)
        base = str(self._base.step)
        return Part(self._tensors, {_CODEC: self._dtype, _ENCODED: about, _BASE: base})


def _alike(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and one.dtype == other.dtype


def _add(
    x_file: _File, g_file: _File, name: str, x: Tensor | None, g: Tensor | None, factor: float
) -> tuple[float, float, float]:
    """Add a parameter and its gradient to their files; return ‖g̃ − g‖², ⟨g, x̃ − x⟩, ‖x̃ − x‖²."""
    x_read = None if x is None else x_file.add(name, x)
    g_read = None if g is None else g_file.add(name, g)
    sums = _error(x, x_read, g, g_read, factor)
    if math.isfinite(sum(sums)):
        return sums
    for file, tensor in ((x_file, x), (g_file, g)):
        if tensor is not None:
            file.add_natively(name, tensor)
    return 0.0, 0.0, 0.0


def _error(
    x: Tensor | None, x_read: Tensor | None, g: Tensor | None, g_read: Tensor | None, factor: float
) -> tuple[float, float, float]:
    iterate = product = gradient = 0.0
    if x is not None and x_read is not None and x_read is not x:
        for read, there, *beside in _blocks(x_read, x, g):
            moved = read - there
            iterate += float(moved.square().sum(dtype=torch.float64))
            product += sum(float((moved * piece).sum(dtype=torch.float64)) for piece in beside)
    if g is not None and g_read is not None and g_read is not g:
        for read, there in _blocks(g_read, g):
            gradient += float((read - there).square().sum(dtype=torch.float64))
    return gradient * factor**2, product * factor, iterate
