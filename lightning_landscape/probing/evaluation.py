"""Stored probes at other parameters: at x_p, at x_0, and at their own x_k to check the replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_landscape.probing.freezing import Frozen
from lightning_landscape.probing.gradients import Gradient
from lightning_landscape.probing.parameters import Swap, inner_product_and_distance, named_parameters
from lightning_landscape.probing.replay import NotMeasurable, Replayer
from lightning_landscape.probing.store import ProbeStore


class AtReference(NamedTuple):
    """What of a probe needs x_p, named as the columns of the table."""

    reference_loss: float
    inner_product: float
    sq_distance: float


class StoredProbes:
    """Evaluates probes from the store; to be used inside ``replayer.silence()``.

    Args:
        module: the module; its parameters are put back after each evaluation.
        store: the kept probes.
        replayer: evaluates their moments.
        swap: puts other parameters into the module.
    """

    def __init__(self, module: LightningModule, store: ProbeStore, replayer: Replayer, swap: Swap) -> None:
        self._module, self._store, self._replayer, self._swap = module, store, replayer, swap

    @contextmanager
    def itself(self, step: int) -> Iterator[tuple[list[Frozen], Gradient]]:
        """Inside the block the module is at a step's own x_k; its moments and g_k, for what training has recorded of them."""
        with self._swap.to(self._stored(step)):
            yield self._store.moments(step), self.gradient(step)

    def at_reference(self, step: int, there: Mapping[str, Tensor]) -> AtReference:
        """Return what needs x_p.

        Args:
            step: a stored step.
            there: x_p by name.

        Raises:
            NotMeasurable: if something of the probe is not in the store.
        """
        x, gradient = self.iterate(step, there), self.gradient(step)
        return AtReference(self.elsewhere(step, there), *inner_product_and_distance(x, there, gradient.raw, gradient.factor))

    def iterate(self, step: int, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return x_k on the module's device, for the names of x_p.

        Raises:
            NotMeasurable: if something of it is not in the store.
        """
        here = self._stored(step)
        missing = [name for name in there if name not in here]
        if missing:
            raise NotMeasurable(f"the values of {missing} at step {step} were not stored")
        return {name: here[name].to(self._module.device) for name in there}

    def gradient(self, step: int) -> Gradient:
        """Return g_k on the module's device."""
        gradient = self._store.gradient(step)
        return Gradient({name: value.to(self._module.device) for name, value in gradient.raw.items()}, gradient.factor)

    def between(self, step: int, there: Mapping[str, Tensor], fraction: float) -> float:
        """Return the loss of a step at x_k + t (x_p − x_k), with t strictly between 0 and 1."""
        here = self.iterate(step, there)
        return self.elsewhere(step, {name: torch.lerp(x, there[name].to(x.dtype), fraction) for name, x in here.items()})

    def elsewhere(self, step: int, trained: Mapping[str, Tensor]) -> float:
        """Return the loss of a step with the parameters ``trained``, all else as it was then.

        Everything is assigned anew for each probe: the loss of the one before may have moved parameters in place.
        """
        here = named_parameters(self._module)
        others = {n: v for n, v in self._store.others(step).items() if n in here and n not in trained}
        with self._swap.to(others, trained):
            return self._replayer.mean_loss(self._store.moments(step))

    def start(self, step: int, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return x_0, the first probe's parameters, for the parameters that are trained at the end."""
        stored = self._stored(step)
        return {name: stored[name] for name in trained if name in stored}

    def _stored(self, step: int) -> dict[str, Tensor]:
        stored = self._store.parameters(step)
        return {name: stored[name] for name in named_parameters(self._module) if name in stored}
