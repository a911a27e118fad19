"""The mini-batch gradient as the optimizer is about to see it, undivided and unscaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_landscape.vectors.parameters import copied
from lightning_landscape.vectors.sharding import is_sharded, local_gradient


@dataclass(frozen=True, slots=True)
class Gradient:
    """g = ``factor`` · ``raw``.

    The two are kept apart: a division that is undone in low precision would round the gradient.
    """

    raw: Mapping[str, Tensor]
    """By parameter name. A missing parameter has no gradient: it is frozen, or this batch does not
    use it. Of a sharded parameter it is this process's part."""
    factor: float


def present_gradient(parameters: Mapping[str, Tensor], factor: float) -> Gradient:
    """Return ``p.grad`` of parameters. Strided gradients share memory with training.

    Sparse gradients become dense. Of a sharded gradient, only this process's part is returned.

    Args:
        parameters: by name.
        factor: turns ``p.grad`` into the gradient.
    """
    present = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    return Gradient({name: _dense(g, parameters[name]) for name, g in present.items()}, factor)


def copied_gradient(parameters: Mapping[str, Tensor], factor: float) -> Gradient:
    """Return a copy of the `present_gradient`."""
    return Gradient(copied(present_gradient(parameters, factor).raw), factor)


def _dense(gradient: Tensor, parameter: Tensor) -> Tensor:
    if is_sharded(parameter):
        return local_gradient(gradient, parameter)
    gradient = gradient.detach()
    return gradient.to_dense() if gradient.layout != parameter.layout else gradient


def is_finite(*values: float) -> bool:
    """Return whether all values are finite numbers."""
    return all(math.isfinite(value) for value in values)
