"""x_k and g_k of a probe in files, through a codec, and what the codec did to them.

Of x_k the difference to x_0 is encoded, and x_0 itself is written once, as it is, in ``base-0.safetensors``; parameters that
join later have their own first values in a ``base-1`` and so on. Each probe's folder has links to them: they outlive any probe
and go with all. A file of encoded tensors says in its header how to read it: a store may hold probes of several codecs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_landscape.store.codecs import BLOCK, CODECS, Codec, decoded, encoded, working_dtype
from lightning_landscape.store.memory import Memory
from lightning_landscape.store.tensor_files import (
    link,
    read_header,
    read_tensors,
    save_tensors,
    write_tensors,
)
from lightning_landscape.vectors.gradients import Gradient

PARAMETERS, GRADIENT = "parameters", "gradient"
_NATIVELY, _BASE = "native-", "base-"
_CODEC, _ENCODED, _DIFFERENCE, _FACTOR = "codec", "encoded", "difference", "factor"


@dataclass(frozen=True, slots=True)
class CodecError:
    """What a codec did to x_k and g_k, summed over what this process adds to a sum over parameters."""

    gradient: float = 0.0
    """‖g̃ − g‖²"""
    product: float = 0.0
    """⟨g, x̃ − x⟩"""
    iterate: float = 0.0
    """‖x̃ − x‖²"""

    def __add__(self, other: CodecError) -> CodecError:
        """Return the sum."""
        return CodecError(
            self.gradient + other.gradient,
            self.product + other.product,
            self.iterate + other.iterate,
        )

    def times(self, share: float) -> CodecError:
        """Return a share of it."""
        return CodecError(self.gradient * share, self.product * share, self.iterate * share)


class Encoder:
    """Writes and reads x_k and g_k.

    Args:
        codec: a name of `CODECS`.
        folder: the store, where x_0 lies.
    """

    def __init__(self, codec: str, folder: Path) -> None:
        self._name, self._codec, self._folder = codec, CODECS[codec], folder
        self._base: dict[str, Tensor] = {}
        """x_0 by name, read as it lies on disk"""
        self.shares: Mapping[str, float] = {}
        """By name what part of a sum over elements this process adds, where parameters are sharded; else all of it"""

    @property
    def lossy(self) -> bool:
        """Whether there is a codec."""
        return self._codec is not None

    def nbytes(self, tensors: Mapping[str, Tensor]) -> int:
        """Return how many bytes tensors take on disk."""
        return sum(stored_bytes(self._name, tensor) for tensor in tensors.values())

    def base_bytes(self, parameters: Mapping[str, Tensor]) -> int:
        """Return how many bytes x_0 takes beside the probes."""
        codec = self._codec
        return sum(
            tensor.nbytes
            for tensor in parameters.values()
            if codec is not None and codec.shrinks(tensor)
        )

    # -------------------------------------------------------------------------------------------------------- writing

    def write(
        self,
        folder: Path,
        seed: str,
        parameters: Mapping[str, Tensor] | None,
        gradient: Gradient | None,
        *,
        natively: bool,
    ) -> CodecError:
        """Write x_k and g_k into a probe's folder.

        Args:
            folder: the probe's.
            seed: of the codec's random numbers.
            parameters: x_k; None for none.
            gradient: g_k; None for none.
            natively: whether both are to be there as they are as well.

        Returns:
            What the codec did.

        Raises:
            OSError: if something cannot be written.
        """
        factor = {} if gradient is None else {_FACTOR: repr(gradient.factor)}
        if self._codec is None:
            if parameters is not None:
                write_tensors(folder / f"{PARAMETERS}.safetensors", parameters, private=True)
            if gradient is not None:
                write_tensors(
                    folder / f"{GRADIENT}.safetensors", gradient.raw, factor, private=True
                )
            return CodecError()
        x, g = parameters or {}, {} if gradient is None else gradient.raw
        self._extend_base(self._codec, x)
        files = {
            PARAMETERS: _File(self._name, self._codec, self._base),
            GRADIENT: _File(self._name, self._codec, {}),
        }
        total = CodecError()
        for name in dict.fromkeys((*x, *g)):
            total += self._add(
                files,
                name,
                x.get(name),
                g.get(name),
                1.0 if gradient is None else gradient.factor,
                seed,
            )
        for base in self._bases(self._folder):
            link(base, folder / base.name)
        if parameters is not None:
            files[PARAMETERS].write(folder / f"{PARAMETERS}.safetensors", {})
        if gradient is not None:
            files[GRADIENT].write(folder / f"{GRADIENT}.safetensors", factor)
        if natively:
            write_tensors(folder / f"{_NATIVELY}{PARAMETERS}.safetensors", x, private=True)
            write_tensors(folder / f"{_NATIVELY}{GRADIENT}.safetensors", g, factor, private=True)
        return total

    def _add(
        self,
        files: Mapping[str, _File],
        name: str,
        x: Tensor | None,
        g: Tensor | None,
        factor: float,
        seed: str,
    ) -> CodecError:
        """Add a parameter and its gradient to their files; as they are, where a codec cannot hold them."""
        x_read = (
            None if x is None else files[PARAMETERS].add(name, x, f"{seed} {PARAMETERS} {name}")
        )
        g_read = None if g is None else files[GRADIENT].add(name, g, f"{seed} {GRADIENT} {name}")
        error = _error(x, x_read, g, g_read, factor)
        if not math.isfinite(error.gradient + error.product + error.iterate):
            for part, tensor in ((PARAMETERS, x), (GRADIENT, g)):
                if tensor is not None:
                    files[part].add_natively(name, tensor)
            return CodecError()
        return error.times(self.shares.get(name, 1.0))

    def _extend_base(self, codec: Codec, x: Mapping[str, Tensor]) -> None:
        """Write down the first values of parameters that have none yet."""
        new = {
            name: tensor
            for name, tensor in x.items()
            if codec.shrinks(tensor) and not _alike(self._base.get(name), tensor)
        }
        if new:
            path = self._folder / f"{_BASE}{len(self._bases(self._folder))}.safetensors"
            save_tensors(path, new, private=True)
            self._base.update(load_file(path))

    def adopt(self, folder: Path) -> None:
        """Go on from the x_0 of a probe that was taken over from another store."""
        if self._codec is not None and len(bases := self._bases(folder)) > len(
            self._bases(self._folder)
        ):
            for base in bases:
                link(base, self._folder / base.name)
                self._base.update(load_file(base))

    @staticmethod
    def _bases(folder: Path) -> list[Path]:
        return sorted(
            folder.glob(f"{_BASE}*.safetensors"),
            key=lambda path: int(path.stem.removeprefix(_BASE)),
        )

    # -------------------------------------------------------------------------------------------------------- reading

    @classmethod
    def read(
        cls, folder: Path, part: str, memory: Memory | None = None, *, natively: bool = False
    ) -> dict[str, Tensor]:
        """Return x_k or g_k by name, without its factor.

        Args:
            folder: the probe's.
            part: `PARAMETERS` or `GRADIENT`.
            memory: lends the memory for what was not encoded; None for memory of its own.
            natively: whether as it was, which is there for some probes.
        """
        return cls._read(folder, part, memory, natively=natively)[0]

    @classmethod
    def read_gradient(
        cls, folder: Path, memory: Memory | None = None, *, natively: bool = False
    ) -> Gradient:
        """Return g_k; arguments as of `read`."""
        raw, header = cls._read(folder, GRADIENT, memory, natively=natively)
        return Gradient(raw, float(header[_FACTOR]))

    @staticmethod
    def names(folder: Path, part: str) -> list[str]:
        """Return the names of the tensors of x_k or g_k, which are not read; arguments as of `read`."""
        stored, texts = read_header(folder / f"{part}.safetensors")
        encoded: list[str] = list(json.loads(texts.get(_ENCODED, "{}")))
        planes = tuple(f"{name}|" for name in encoded)
        return encoded + [name for name in stored if not name.startswith(planes)]

    @classmethod
    def _read(
        cls, folder: Path, part: str, memory: Memory | None, *, natively: bool
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        path = folder / f"{_NATIVELY if natively else ''}{part}.safetensors"
        tensors, header = read_tensors(path, memory or Memory(most=0))
        codec = CODECS[header.get(_CODEC, "native")]
        if codec is None:
            return tensors, header
        base: dict[str, Tensor] = {}
        for file in cls._bases(folder) if part == PARAMETERS else ():
            base.update(load_file(file))
        read = {}
        for name, about in json.loads(header[_ENCODED]).items():
            planes = {plane: tensors.pop(f"{name}|{plane}") for plane in codec.planes(0)}
            beneath = base[name] if about[_DIFFERENCE] else None
            read[name] = decoded(
                codec, planes, getattr(torch, about["dtype"]), torch.Size(about["shape"]), beneath
            )
        return {**tensors, **read}, header

    @staticmethod
    def holds_natively(folder: Path) -> bool:
        """Return whether a probe is there as it was, beside being encoded."""
        return (folder / f"{_NATIVELY}{GRADIENT}.safetensors").is_file()

    @staticmethod
    def drop_native(folder: Path) -> None:
        """Remove a probe as it was; it stays there encoded."""
        for part in (GRADIENT, PARAMETERS):
            (folder / f"{_NATIVELY}{part}.safetensors").unlink(missing_ok=True)


class _File:
    """A safetensors file in the making, some of whose tensors are encoded."""

    def __init__(self, name: str, codec: Codec, base: Mapping[str, Tensor]) -> None:
        self._name, self._codec, self._base = name, codec, base
        self._tensors: dict[str, Tensor] = {}
        self._encoded: dict[str, Any] = {}

    def add(self, name: str, tensor: Tensor, seed: str) -> Tensor:
        """Add a tensor; return what will be read."""
        if not self._codec.shrinks(tensor):
            self.add_natively(name, tensor)
            return tensor
        base = self._base.get(name)
        planes = encoded(self._codec, tensor, base, seed)
        self._tensors.update({f"{name}|{plane}": values for plane, values in planes.items()})
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._encoded[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            _DIFFERENCE: base is not None,
        }
        return decoded(self._codec, planes, tensor.dtype, tensor.shape, base)

    def add_natively(self, name: str, tensor: Tensor) -> None:
        """Add a tensor as it is, in the place of what may have been added of it."""
        if self._encoded.pop(name, None) is not None:
            for plane in self._codec.planes(0):
                self._tensors.pop(f"{name}|{plane}")
        self._tensors[name] = tensor

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        write_tensors(
            path,
            self._tensors,
            {**metadata, _CODEC: self._name, _ENCODED: json.dumps(self._encoded)},
            private=True,
        )


def stored_bytes(codec: str, tensor: Tensor) -> int:
    """Return how many bytes a parameter, or its gradient, takes in a probe.

    Args:
        codec: a name of `CODECS`.
        tensor: any.

    Example:
        >>> [stored_bytes(codec, torch.zeros(1280)) for codec in ("native", "bfloat16", "int8")]
        [5120, 2560, 1320]
    """
    found = CODECS[codec]
    return tensor.nbytes if found is None else found.nbytes(tensor)


def _alike(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and one.dtype == other.dtype


def _error(
    x: Tensor | None, x_read: Tensor | None, g: Tensor | None, g_read: Tensor | None, factor: float
) -> CodecError:
    """Return what was done to one parameter and its gradient."""
    iterate = product = gradient = 0.0
    if x is not None and x_read is not None and x_read is not x:
        for moved, *beside in _apart(x, x_read, g):
            iterate += float(moved.square().sum(dtype=torch.float64))
            product += sum(float((moved * piece).sum(dtype=torch.float64)) for piece in beside)
    if g is not None and g_read is not None and g_read is not g:
        gradient = sum(
            float(moved.square().sum(dtype=torch.float64)) for moved, *_ in _apart(g, g_read, None)
        )
    return CodecError(gradient * factor**2, product * factor, iterate)


def _apart(there: Tensor, read: Tensor, beside: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
    """Yield read − there, and the same elements of another tensor, block by block."""
    flat = [tensor.reshape(-1) for tensor in (there, read, beside) if tensor is not None]
    working = working_dtype(there.dtype)
    for start in range(0, flat[0].numel(), BLOCK):
        pieces = [tensor[start : start + BLOCK].to(working) for tensor in flat]
        yield pieces[1] - pieces[0], *pieces[2:]
