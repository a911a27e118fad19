"""Freeze an object: copy its tensors, which go to safetensors, and pickle the rest.

The frozen form shares nothing with the object, so it is also the copy of a batch that
``training_step`` may change. The pickler finds tensors in containers and objects of any kind. Two
references to the same tensor stay references to the same tensor.
"""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The dtypes of safetensors. torch pickles tensors of other dtypes together with the rest.
_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A copy of an object: its tensors, and the rest as pickled bytes."""

    structure: bytes
    """The pickled rest; empty if the object cannot be pickled"""
    tensors: dict[str, Tensor]
    """Contiguous tensors on the CPU by number"""
    held: Any = None
    """A deep copy of an object that cannot be pickled; it exists in this process only"""

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return len(self.structure) + sum(tensor.nbytes for tensor in self.tensors.values())


def freeze(value: Any) -> Frozen:
    """Return a frozen copy of a value.

    Raises:
        TypeError: if the value can be neither pickled nor deep-copied. The message has both
            reasons.
    """
    buffer = io.BytesIO()
    tensors: dict[str, Tensor] = {}
    try:
        _Freezer(buffer, tensors).dump(value)
    except Exception as unpicklable:
        try:
            return Frozen(b"", {}, held=copy.deepcopy(value))
        except Exception as uncopyable:  # user classes may raise anything
            raise TypeError(f"{unpicklable}; {uncopyable}") from uncopyable
    return Frozen(buffer.getvalue(), tensors)


def thaw(frozen: Frozen, device: torch.device | None = None) -> Any:
    """Return a fresh copy of a frozen value.

    Args:
        frozen: the result of `freeze`.
        device: device of the tensors that were not on the CPU; by default their old device.
    """
    if not frozen.structure:
        return copy.deepcopy(frozen.held)
    return _Thawer(io.BytesIO(frozen.structure), frozen.tensors, device).load()


def _is_plain(value: Tensor) -> bool:
    return (
        value.layout == torch.strided
        and value.dtype in _DTYPES
        and value.device.type != "meta"
        and not value.is_nested
    )


class _Freezer(pickle.Pickler):
    """Pickle an object, and put each plain tensor in it into a dictionary once."""

    def __init__(self, file: io.BytesIO, tensors: dict[str, Tensor]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors
        self._seen: dict[int, tuple[Any, tuple[Any, ...]]] = {}

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if type(value) is not Tensor:  # first, because pickle calls this for every object
            if type(value) is torch.Generator:
                return "generator", str(value.device), value.get_state().numpy().tobytes()
            return None
        if not _is_plain(value):
            return None
        if id(value) not in self._seen:
            name = str(len(self._tensors))
            detached = value.detach()
            self._tensors[name] = detached.to(
                "cpu", copy=True, memory_format=torch.contiguous_format
            )
            strides = None if value.is_contiguous() else _dense_strides(detached)
            key = ("tensor", name, str(value.device), value.requires_grad, strides)
            # With a reference to the value, so that no other tensor can get its id meanwhile.
            self._seen[id(value)] = (value, key)
        return self._seen[id(value)][1]


def _dense_strides(value: Tensor) -> tuple[int, ...] | None:
    """Return the strides of a dense tensor in another order, such as channels_last, or None."""
    # The choice of a kernel may depend on the strides, and so the rounding.
    strides = torch.empty_like(value, device="meta").stride()
    return strides if strides == value.stride() else None


class _Thawer(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, tensors: dict[str, Tensor], device: torch.device | None
    ) -> None:
        super().__init__(file)
        self._tensors, self._device = tensors, device
        self._thawed: dict[str, Tensor] = {}

    def persistent_load(self, key: tuple[Any, ...]) -> Any:
        if key[0] == "generator":
            generator = torch.Generator(key[1])
            generator.set_state(torch.frombuffer(bytearray(key[2]), dtype=torch.uint8))
            return generator
        _, name, device, requires_grad, strides = key
        if name not in self._thawed:
            self._thawed[name] = self._tensor(name, device, strides).requires_grad_(requires_grad)
        return self._thawed[name]

    def _tensor(self, name: str, device: str, strides: tuple[int, ...] | None) -> Tensor:
        stored = self._tensors[name]
        target = torch.device(device) if self._device is None or device == "cpu" else self._device
        if strides is None:
            return stored.to(target, copy=True)
        empty = torch.empty_strided(stored.shape, strides, dtype=stored.dtype, device=target)
        return empty.copy_(stored)
