"""Manual optimization: which micro-batches belong to a step.

Nobody says so. They are those that added to a gradient of x, and were not zeroed since.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_landscape.store.freezing import Frozen
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.parameters import fingerprint


class Traces:
    """One trace for each micro-batch of the window: a parameter to whose gradient it added.

    Args:
        training: the run.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._traces: list[tuple[str, Tensor]] = []
        """Name of the parameter, and its gradient"""
        self._before: dict[str, Tensor] = {}
        """Some elements of each gradient when the micro-batch began"""

    def begin(self, moments: Sequence[Frozen]) -> list[Frozen]:
        """Note the gradients before a micro-batch; return the earlier ones not zeroed since."""
        kept = self._not_zeroed(moments)
        parameters = self._training.parameters().items()
        self._before = {name: _some_of(p.grad) for name, p in parameters if p.grad is not None}
        return kept

    def end(self) -> bool:
        """Return whether the micro-batch added to a gradient of x."""
        gradients = ((name, p.grad) for name, p in self._training.parameters().items())
        touched = [(g.numel(), n, g) for n, g in gradients if g is not None and self._grew(n, g)]
        if touched:
            # a trace keeps its gradient in memory until the step: take the smallest
            _, name, gradient = min(touched, key=lambda entry: entry[0])
            self._traces.append((name, gradient))
        return bool(touched)

    def step(self, moments: Sequence[Frozen]) -> list[Frozen]:
        """Return the micro-batches whose gradients are in the step; forget all traces."""
        kept = self._not_zeroed(moments)
        self._traces = []
        return kept

    def _grew(self, name: str, gradient: Tensor) -> bool:
        before, after = self._before.get(name), _some_of(gradient)
        return before is None or not torch.allclose(before, after, rtol=0, atol=0, equal_nan=True)

    def _not_zeroed(self, moments: Sequence[Frozen]) -> list[Frozen]:
        """Forget micro-batches whose gradient is gone: ``zero_grad`` sets it to None."""
        present = self._training.parameters()
        kept = [
            name in present and present[name].grad is gradient for name, gradient in self._traces
        ]
        self._traces = list(itertools.compress(self._traces, kept))
        return list(itertools.compress(moments, kept))


def _some_of(gradient: Tensor) -> Tensor:
    """Return some elements of a gradient, which show whether something was added."""
    values = gradient if gradient.layout == torch.strided else gradient.coalesce().values()
    return fingerprint({"": values})
