"""Freeze any object that can be pickled: its tensors apart, so that they go to safetensors, and the rest as bytes.

Freezing is also the copy that a batch needs before ``training_step`` may change it: nothing in the frozen form aliases the
original. Inside collections and objects of any kind tensors are found by the pickler itself, and aliases stay aliases.
"""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# what safetensors holds; tensors of other types travel with the bytes, as torch pickles them
_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)


@dataclass(frozen=True, slots=True)
class Frozen:
    """An object at rest: the tensors found in it, on the CPU and contiguous, and the bytes of everything else."""

    structure: bytes
    tensors: dict[str, Tensor]
    held: Any = None
    """Where the object cannot be pickled: its deep copy, which lives in this process alone"""

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return len(self.structure) + sum(tensor.nbytes for tensor in self.tensors.values())


def freeze(value: Any) -> Frozen:
    """Copy ``value`` into a frozen form.

    Raises:
        TypeError: if it can be neither pickled nor deep-copied; the message names both reasons.
    """
    buffer = io.BytesIO()
    tensors: dict[str, Tensor] = {}
    try:
        _Freezer(buffer, tensors).dump(value)
    except Exception as unpicklable:
        try:
            return Frozen(b"", {}, held=copy.deepcopy(value))
        except Exception as uncopyable:
            raise TypeError(f"{unpicklable}; {uncopyable}") from uncopyable
    return Frozen(buffer.getvalue(), tensors)


def thaw(frozen: Frozen, device: torch.device | None = None) -> Any:
    """Return a fresh copy of a frozen value.

    Args:
        frozen: what `freeze` returned.
        device: where tensors go that were not on the CPU; by default to the device that they came from.
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
    """Puts aside plain tensors and generators; each tensor once, however often it occurs."""

    def __init__(self, file: io.BytesIO, tensors: dict[str, Tensor]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors
        self._seen: dict[int, tuple[Any, tuple[Any, ...]]] = {}

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if type(value) is not Tensor:  # asked of every object in there
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
            # the value is kept beside its key so that its id cannot be taken by another tensor meanwhile
            self._seen[id(value)] = (
                value,
                ("tensor", name, str(value.device), value.requires_grad, strides),
            )
        return self._seen[id(value)][1]


def _dense_strides(value: Tensor) -> tuple[int, ...] | None:
    """Return the strides of a dense tensor in another order (channels_last), on which kernels may depend."""
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
        return torch.empty_strided(stored.shape, strides, dtype=stored.dtype, device=target).copy_(
            stored
        )
