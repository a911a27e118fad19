"""What is kept of a probe until x_p is known: x_k, g_k and the moments of its micro-batches, on the way to the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_landscape.recording.freezing import Frozen
from lightning_landscape.store.memory import Memory
from lightning_landscape.vectors.gradients import Gradient

_SAMPLE = 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """One probe in the store; parts that a mode of measuring does not need are absent."""

    moments: Sequence[Frozen]
    loss: float
    """This process's loss, as training saw it"""
    parameters: Mapping[str, Tensor] | None = None
    """x_k"""
    gradient: Gradient | None = None
    others: Mapping[str, Tensor] | None = None
    """Parameters that the optimiser does not hold; empty where they are still those that were stored last"""
    natively: bool = False
    """Whether x_k and g_k are to be there as they are, too, where a codec changes them and there is room"""

    @property
    def nbytes(self) -> int:
        """Bytes on disk as they are, without ``others``, which probes share while they do not change."""
        return sum(tensor.nbytes for tensor in self.measured) + sum(
            moment.nbytes for moment in self.moments
        )

    @property
    def measured(self) -> list[Tensor]:
        """The tensors of x_k and g_k."""
        return [
            *(self.parameters or {}).values(),
            *(self.gradient.raw if self.gradient else {}).values(),
        ]

    def on_host(self, memory: Memory) -> Kept:
        """Return the same with every tensor on the host.

        Args:
            memory: where x_k and g_k go that are not there yet.
        """
        gradient = self.gradient and Gradient(
            _on_host(self.gradient.raw, memory), self.gradient.factor
        )
        parameters = None if self.parameters is None else _on_host(self.parameters, memory)
        others = {name: tensor.detach().to("cpu") for name, tensor in (self.others or {}).items()}
        return replace(self, parameters=parameters, gradient=gradient, others=others)


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A probe that could not be written."""

    step: int
    kept: Kept
    error: BaseException
    """Why, or why one before it could not"""


def _on_host(tensors: Mapping[str, Tensor], memory: Memory) -> Mapping[str, Tensor]:
    return (
        tensors
        if all(tensor.device.type == "cpu" for tensor in tensors.values())
        else memory.on_host(tensors)
    )


def sampled(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return up to 1,024 elements of each tensor."""
    flat = {name: value.detach().reshape(-1) for name, value in values.items()}
    return {
        name: value[:: max(1, value.numel() // _SAMPLE)].to("cpu", copy=True)
        for name, value in flat.items()
    }


def same_sample(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two samples are of the same names and values."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )
