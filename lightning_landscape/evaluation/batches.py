"""Batches from a loader, without moving the random numbers that others draw from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_landscape.training import lightning_compat
from lightning_landscape.training.failures import NotMeasurable

Source = str | Callable[[Trainer], Iterable[Any]]
VALIDATION = "val"


class Batches:
    """Yields batches from a loader that starts again when it ends; inside of `Evaluator.session`.

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
        raise NotMeasurable("the loader of held-out batches has none")

    def first(self, count: int) -> list[Any]:
        """Return the same first batches every time."""
        if count and self._first is None:
            with self._own_generators():
                batches = (batch for loader in self._all() for batch in loader)
                self._first = [batch for _, batch in zip(range(count), batches, strict=False)]
            if len(self._first) < count:
                rank_zero_warn(
                    f"HeldOut(fixed={count}) found {len(self._first)} batches in its loader, and "
                    "evaluates those. Supported is any number that the loader has: let it yield "
                    "more, or ask for fewer"
                )
        return self._first or []

    def _all(self) -> list[Iterable[Any]]:
        if self._loaders is None:
            if callable(self._source):
                self._loaders = [self._source(self._trainer)]
            else:
                self._loaders = lightning_compat.validation_loaders(self._trainer)
        return self._loaders

    @contextmanager
    def _own_generators(self) -> Iterator[None]:
        """Restore the generators of the loaders: the user's validation draws from them too."""
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
