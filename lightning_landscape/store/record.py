"""What was taken at one probed step: the unit that is recorded, stored, read back and evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_landscape.store.freezing import Frozen
from lightning_landscape.vectors.gradients import Gradient


@dataclass(frozen=True, slots=True)
class CodecError:
    """Errors of a lossy store dtype in x_k and g_k: this process's share of each sum."""

    gradient: float = 0.0
    """‖g̃ − g‖²"""
    product: float = 0.0
    """⟨g, x̃ − x⟩"""
    iterate: float = 0.0
    """‖x̃ − x‖²"""


@dataclass(frozen=True, slots=True)
class Record:
    """One probed step of this process, in memory or read back from the store.

    Every process of a run has a record of each probed step, with its own micro-batches. Where
    processes hold the same parameters, only the first one has ``x``, ``gradient``, ``following``.
    Where parameters are sharded, each process has its part of them.
    """

    step: int
    """k, the number of steps made before it"""
    loss: float
    """This process's mini-batch loss at x_k, as training computed it"""
    moments: Sequence[Frozen]
    """The micro-batches of the step, each with the state in which the loss was computed"""
    x: Mapping[str, Tensor] | None = None
    """x_k by parameter name"""
    gradient: Gradient | None = None
    """g_k, the gradient of the mini-batch loss at x_k"""
    others: Mapping[str, Tensor] | None = None
    """Parameters that are not x. Empty or None: still those that were stored last"""
    following: Mapping[str, Tensor] | None = None
    """x_{k+1} by parameter name, where an extra needs it"""
    error: CodecError = CodecError()
    """Zero where ``x`` and ``gradient`` are exact"""
