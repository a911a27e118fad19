"""A record through a codec: which tensors are encoded, and how far that moved x_k and g_k.

Of x_k the difference to x_0 is encoded. x_0 itself, the first record, is stored natively. So is
every tensor that the codec would not shrink, that does not agree with x_0, or that moved by a
number that is not finite. Where x_{k+1} is recorded, it and g_k are stored natively: over one step
a gradient may change by less than a codec moves it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_landscape.store.codecs import CODECS, Codec, blocks, decoded, encoded
from lightning_landscape.store.record import CodecError, Record

PARAMETERS, GRADIENT, FOLLOWING = "parameters", "gradient", "following"
_CODEC, _ENCODED, _BASE, _DIFFERENCE = "codec", "encoded", "base", "difference"


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
    encoded_parts = (PARAMETERS,) if record.following is not None else (PARAMETERS, GRADIENT)
    files = {part: _File(part, dtype, base, record.step) for part in encoded_parts}
    total, factor = [0.0, 0.0, 0.0], 1.0 if gradient is None else gradient.factor
    x, g = parts.get(PARAMETERS, {}), parts.get(GRADIENT, {})
    for name in dict.fromkeys((*x, *g)):
        sums = _add(files[PARAMETERS], files.get(GRADIENT), name, x.get(name), g.get(name), factor)
        total = [t + shares.get(name, 1.0) * s for t, s in zip(total, sums, strict=True)]
    whole = {part: Part(tensors) for part, tensors in parts.items()}
    return whole | {part: files[part].part for part in files if part in parts}, CodecError(*total)


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
        disagrees = self._differs and not _alike(base, tensor)
        if disagrees or not self._codec.shrinks(tensor):
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
    x_file: _File,
    g_file: _File | None,
    name: str,
    x: Tensor | None,
    g: Tensor | None,
    factor: float,
) -> tuple[float, float, float]:
    """Add a parameter and its gradient to their files; return ‖g̃ − g‖², ⟨g, x̃ − x⟩, ‖x̃ − x‖².

    Without a file for it, the gradient stays native.
    """
    x_read = None if x is None else x_file.add(name, x)
    g_read = g if g is None or g_file is None else g_file.add(name, g)
    sums = _error(x, x_read, g, g_read, factor)
    if math.isfinite(sum(sums)):
        return sums
    for file, tensor in ((x_file, x), (g_file, g)):
        if file is not None and tensor is not None:
            file.add_natively(name, tensor)
    return 0.0, 0.0, 0.0


def _error(
    x: Tensor | None, x_read: Tensor | None, g: Tensor | None, g_read: Tensor | None, factor: float
) -> tuple[float, float, float]:
    iterate = product = gradient = 0.0
    if x is not None and x_read is not None and x_read is not x:
        for read, there, *beside in blocks(x_read, x, g):
            moved = read - there
            iterate += float(moved.square().sum(dtype=torch.float64))
            product += sum(float((moved * piece).sum(dtype=torch.float64)) for piece in beside)
    if g is not None and g_read is not None and g_read is not g:
        for read, there in blocks(g_read, g):
            gradient += float((read - there).square().sum(dtype=torch.float64))
    return gradient * factor**2, product * factor, iterate
