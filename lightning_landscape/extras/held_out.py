"""Batches that did not make the trajectory: each is evaluated at a probe's x_k and at x_p, in the state of that step.

What led the run to x_p are its own mini-batches, and the one of step k had a part in it: for SGD the inner product is an
autocorrelation of gradients along the same run. A batch that was held out is independent evidence. It takes the place of the
batch among the arguments of ``training_step`` of step k; random numbers, buffers and all else are those of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.evaluation.replay import Replayer
from lightning_landscape.evaluation.stored_probes import Itself
from lightning_landscape.recording.freezing import Frozen, freeze, thaw
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.gradients import loss_scale
from lightning_landscape.vectors.parameters import optimized_parameters
from lightning_landscape.vectors.products import Products

Source = str | Callable[[Trainer], Iterable[Any]]
VALIDATION = "val"


class Values(NamedTuple):
    """What a batch gives at x_k and at x_p, named as columns of the table of probes."""

    loss: float
    reference_loss: float
    inner_product: float
    grad_sq_norm: float


class Batches:
    """Yields batches on the CPU, from a loader that starts again when it ends; inside ``replayer.silence()``.

    Args:
        trainer: the trainer.
        source: "val", or a function of the trainer that returns an iterable.
    """

    def __init__(self, trainer: Trainer, source: Source) -> None:
        self._trainer, self._source = trainer, source
        self._loaders: list[Iterable[Any]] | None = None
        self._batches: Iterator[Any] | None = None
        self._first: list[Any] | None = None

    def take(self) -> Any:
        """Return the next batch.

        Raises:
            NotMeasurable: if there is none.
        """
        with self._own_generators():
            for _ in range(2):
                if self._batches is None:
                    self._batches = (batch for loader in self._all() for batch in loader)
                for batch in self._batches:
                    return batch
                self._batches = None
        raise NotMeasurable("the loader of held_out= has no batch")

    def first(self, count: int) -> list[Any]:
        """Return the same first batches every time."""
        if count and self._first is None:
            with self._own_generators():
                batches = (batch for loader in self._all() for batch in loader)
                self._first = [batch for _, batch in zip(range(count), batches, strict=False)]
            if len(self._first) < count:
                rank_zero_warn(
                    f"LandscapeMonitor(fixed_batches={count}) found {len(self._first)} batches in the loader of held_out=, and "
                    "evaluates those; supported is any number that it has: let it yield more, or ask for fewer"
                )
        return self._first or []

    def _all(self) -> list[Iterable[Any]]:
        if self._loaders is None:
            validation = self._source == VALIDATION
            self._loaders = (
                lightning_compat.validation_loaders(self._trainer)
                if validation
                else [self._given()]
            )
        return self._loaders

    def _given(self) -> Iterable[Any]:
        assert not isinstance(self._source, str), "checked before training"
        return self._source(self._trainer)

    @contextmanager
    def _own_generators(self) -> Iterator[None]:
        """Leave generators that a loader holds as they were: the user's validation would see other batches."""
        held = [
            generator
            for loader in self._all()
            for holder in (loader, getattr(loader, "sampler", None))
            if isinstance(generator := getattr(holder, "generator", None), torch.Generator)
        ]
        states = [generator.get_state() for generator in held]
        try:
            yield
        finally:
            for generator, state in zip(held, states, strict=True):
                generator.set_state(state)


class HeldOut:
    """Evaluates batches in the place of a step's own; inside ``replayer.silence()``, by all processes alike.

    Args:
        trainer: the trainer.
        module: the module.
        optimizer: its optimiser.
        source: where batches are from.
        fixed: how many of its first batches are evaluated at every probe, beside one new batch a probe.
        replayer: evaluates losses and gradients.
        processes: those of the run, each with batches of its own.
        products: measures inner products.
        measures: whether this process has x_k and g_k.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        source: Source,
        *,
        fixed: int,
        replayer: Replayer,
        processes: Processes,
        products: Products,
        measures: bool,
    ) -> None:
        self._trainer, self._module, self._optimizer, self._replayer = (
            trainer,
            module,
            optimizer,
            replayer,
        )
        self._processes, self._products, self._measures = processes, products, measures
        self._batches, self._fixed = Batches(trainer, source), fixed

    @property
    def batches(self) -> int:
        """How many batches are evaluated at each probe."""
        return 1 + self._fixed

    def at(
        self, itself: Itself, x: Mapping[str, Tensor], reference: Mapping[str, Tensor]
    ) -> tuple[Values, list[Values]]:
        """Return the values of a new batch, and those of the fixed ones.

        Args:
            itself: the step, of whose micro-batches they take the place of the first one.
            x: x_k by the names of x_p, where this process has it.
            reference: x_p by name.
        """
        batches = [self._batches.take(), *self._batches.first(self._fixed)]
        first, *others = [
            self._evaluate(replaced(itself.moments[0], self._placed(b)), itself, x, reference)
            for b in batches
        ]
        return first, others

    def _placed(self, batch: Any) -> Any:
        return lightning_compat.on_device(self._trainer, batch)

    def _evaluate(
        self,
        moment: Frozen,
        itself: Itself,
        x: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
    ) -> Values:
        parameters, scale = (
            optimized_parameters(self._module, self._optimizer),
            loss_scale(self._trainer),
        )
        with itself.there():
            loss, gradient = self._replayer.mean_loss_and_gradient([moment], parameters, scale)
        gradient = self._replayer.averaged(gradient, parameters)
        factor = self._replayer.gradient_factor([moment], scale)
        with itself.there(reference):
            reference_loss = self._replayer.mean_loss([moment])
        product = squares = 0.0
        if self._measures:
            names = set(itself.differentiated or ())
            gradient = {name: value for name, value in gradient.items() if name in names}
            product, _ = self._products.inner_product_and_distance(x, reference, gradient, factor)
            squares = self._products.sq_change(gradient, factor, {}, 1.0)
        product, squares = self._processes.exchange(product, squares)[0]
        return Values(
            self._processes.mean(loss), self._processes.mean(reference_loss), product, squares
        )


def replaced(moment: Frozen, batch: Any) -> Frozen:
    """Return a moment of training with another batch among the arguments of ``training_step``."""
    state = thaw(moment)
    if state["args"]:
        state["args"] = (batch, *state["args"][1:])
    else:
        state["kwargs"] = {**state["kwargs"], next(iter(state["kwargs"])): batch}
    return freeze(state)
