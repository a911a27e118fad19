"""Stored probes at other parameters: at x_p, at x_0, and at their own x_k to check the replay.

Every process evaluates its own micro-batches; a loss is the mean over the processes. Where parameters are the same in each
process the first one alone has x_k and g_k in its store: it takes the inner products, and gives x_k to the others where a loss
is asked for there. Where parameters are sharded each process has its part of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_landscape.evaluation.replay import Replayer
from lightning_landscape.recording.freezing import Frozen
from lightning_landscape.records import Accuracy
from lightning_landscape.store.encoding import CodecError
from lightning_landscape.store.store import ProbeStore
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.gradients import Gradient
from lightning_landscape.vectors.parameters import Swap, named_parameters
from lightning_landscape.vectors.products import Products


class AtReference(NamedTuple):
    """What of a probe needs x_p, named as the columns of the table."""

    reference_loss: float
    inner_product: float
    sq_distance: float


class Itself(NamedTuple):
    """What other losses of a step need at its own x_k."""

    moments: list[Frozen]
    x: Mapping[str, Tensor]
    """x_k by name, in every process; there may be more parameters, as they were then"""
    differentiated: list[str] | None
    """The names of those that g_k has; None where this process has none"""
    there: Callable[..., AbstractContextManager[None]]
    """Puts the module to x_k, and some of the parameters elsewhere, if it is given these"""


class StoredProbes:
    """Evaluates probes from the store; to be used inside ``replayer.silence()``, by all processes alike.

    Methods raise `NotMeasurable` where something that they need is gone: each to be called in a block of `Processes.agreed`.

    Args:
        module: the module; its parameters are put back after each evaluation.
        store: the kept probes.
        replayer: evaluates their moments.
        swap: puts other parameters into the module.
        processes: those of the run.
        products: measures inner products.
        sharded: whether each process has its own part of the parameters.
    """

    def __init__(
        self,
        module: LightningModule,
        store: ProbeStore,
        replayer: Replayer,
        swap: Swap,
        processes: Processes,
        products: Products,
        *,
        sharded: bool,
    ) -> None:
        self._module, self._store, self._replayer, self._swap = module, store, replayer, swap
        self._processes, self._products, self._sharded = processes, products, sharded
        self.measures = sharded or processes.first
        """Whether x_k and g_k are in the store of this process"""

    def one_after_another(self) -> AbstractContextManager[None]:
        """Return a block in which probes are evaluated without putting parameters back in between; they are back after it."""
        return self._swap.one_after_another()

    # --------------------------------------------------------------------------------------------- what this process has

    def iterate(
        self, step: int, there: Mapping[str, Tensor], *, exactly: bool = False
    ) -> dict[str, Tensor]:
        """Return x_k on the module's device, for the names of x_p, from this process's store, as a codec left it.

        Raises:
            NotMeasurable: if something of it is not there.
        """
        stored = {**self._store.others(step), **self._store.iterate(step, exactly=exactly)}
        return self.for_names(stored, step, there)

    def gradient(self, step: int, *, exactly: bool = False) -> Gradient:
        """Return g_k on the module's device, from this process's store, as a codec left it."""
        gradient = self._store.gradient(step, exactly=exactly)
        return Gradient(
            {name: value.to(self._module.device) for name, value in gradient.raw.items()},
            gradient.factor,
        )

    # ---------------------------------------------------------------------------------------------------- all together

    def holds(self, step: int) -> bool:
        """Return whether everything that a loss of this step needs is stored."""
        return self._processes.everywhere(step in self._store)

    def holds_iterate(self, step: int) -> bool:
        """Return whether x_k of a step is stored, and what its loss needs."""
        return self._processes.everywhere(
            self._store.holds_iterate(step) if self.measures else step in self._store
        )

    def as_they_were(self, steps: Sequence[int]) -> list[int]:
        """Return the steps whose x_k can be had as it was: all that are stored, unless there is a codec."""
        own = [step for step in steps if not self.measures or self._store.holds_exactly(step)]
        return sorted(set.intersection(*map(set, self._processes.of_each(own))))

    def itself(self, step: int, *, exactly: bool = False) -> Itself:
        """Return what a replay of a step at its own x_k needs.

        Args:
            step: a stored step.
            exactly: whether at x_k as it was.
        """
        here = self._here(step, exactly=exactly)
        differentiated = self._store.gradient_names(step) if self.measures else None
        return Itself(
            self._store.moments(step),
            here,
            differentiated,
            lambda *values: self._swap.to(here, *values),
        )

    def as_recorded(self, step: int) -> tuple[float, Gradient | None]:
        """Return what training recorded of a step: this process's loss, and g_k where it is here as it was."""
        exact = self.measures and self._store.holds_gradient_exactly(step)
        return self._store.loss(step), self.gradient(step, exactly=True) if exact else None

    def at_reference(
        self, step: int, there: Mapping[str, Tensor], following: int | None = None
    ) -> AtReference:
        """Return what needs x_p.

        Args:
            step: a stored step.
            there: x_p by name.
            following: the step that is evaluated next; it is read meanwhile.
        """
        product, distance = (
            self._own_products(step, there) if self.measures else (math.nan, math.nan)
        )
        product, distance = self._processes.exchange(product, distance)[0]
        if self.measures and following is not None:
            self._store.expect(following)
        return AtReference(self.elsewhere(step, there), product, distance)

    def _own_products(self, step: int, there: Mapping[str, Tensor]) -> tuple[float, float]:
        x, gradient = self.iterate(step, there), self.gradient(step)
        return self._products.inner_product_and_distance(x, there, gradient.raw, gradient.factor)

    def accuracy(
        self, step: int, there: Mapping[str, Tensor], found: AtReference
    ) -> Accuracy | None:
        r"""Return how far a codec can have moved what was found of a step; None where there was none, or it changed nothing.

        .. math:: |\tilde p - p| \le \|\tilde g - g\| \|\tilde x - x_p\| + |\langle g, \tilde x - x\rangle|,
            \qquad |\tilde D - D| \le \|\tilde x - x\|

        The norms, and the inner product, were measured at the probe.

        Args:
            step: a stored step.
            there: x_p by name.
            found: its values by `at_reference`.
        """
        own = self._store.error(step) if self.measures else CodecError()
        rows = self._processes.exchange(own.gradient, own.product, own.iterate)
        gradient, product, iterate = map(math.fsum, zip(*rows, strict=True))
        if gradient == product == iterate == 0:
            return None
        bound = math.sqrt(gradient * found.sq_distance) + abs(product)
        exact = None
        if self._processes.everywhere(not self.measures or self._store.holds_natively(step)):
            exact = math.nan, math.nan
            if self.measures:
                x, g = self.iterate(step, there, exactly=True), self.gradient(step, exactly=True)
                exact = self._products.inner_product_and_distance(x, there, g.raw, g.factor)
            exact_product, exact_square = self._processes.exchange(*exact)[0]
            exact = exact_product, exact_square
        return Accuracy(bound, math.sqrt(iterate), exact)

    def between(
        self, step: int, there: Mapping[str, Tensor], fractions: Sequence[float]
    ) -> list[float]:
        """Return the losses of a step at x_k + t (x_p − x_k), for each t strictly between 0 and 1."""
        here = self.for_names(self._here(step), step, there)
        points = (
            {n: torch.lerp(x, there[n].to(x.dtype), t) for n, x in here.items()} for t in fractions
        )
        return [self.elsewhere(step, point) for point in points]

    def elsewhere(self, step: int, trained: Mapping[str, Tensor]) -> float:
        """Return the loss of a step with the parameters ``trained``, all else as it was then.

        Everything is assigned anew for each probe: the loss of the one before may have moved parameters in place.
        """
        others = {
            name: value for name, value in self._store.others(step).items() if name not in trained
        }
        if others:
            here = named_parameters(self._module)
            others = {name: value for name, value in others.items() if name in here}
        with self._swap.to(others, trained):
            return self._processes.mean(self._replayer.mean_loss(self._store.moments(step)))

    def start(self, step: int, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return x_0, the first probe's parameters, for the parameters that are trained at the end."""
        stored = self._here(step, exactly=True)
        return {name: stored[name] for name in trained if name in stored}

    def _here(self, step: int, *, exactly: bool = False) -> dict[str, Tensor]:
        """Return x_k, with the values that other parameters had then, in every process."""
        others, own = (
            self._store.others(step),
            self._store.iterate(step, exactly=exactly) if self.measures else None,
        )
        x = own if self._sharded else self._processes.tensors_of_first(own)
        if x is None:
            raise NotMeasurable(f"the parameters of step {step} are not stored")
        stored = {**others, **x}
        return {name: stored[name] for name in named_parameters(self._module) if name in stored}

    def for_names(
        self, stored: Mapping[str, Tensor], step: int, there: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the values that are stored of a step, on the module's device, for the names of x_p.

        Raises:
            NotMeasurable: if one is missing.
        """
        missing = [name for name in there if name not in stored]
        if missing:
            raise NotMeasurable(f"the values of {missing} at step {step} were not stored")
        return {name: stored[name].to(self._module.device) for name in there}
