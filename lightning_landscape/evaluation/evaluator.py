"""`Evaluator`: a recorded step at other parameters, in its own state.

Every process evaluates its own micro-batches; a loss is the mean over the processes. Where all
processes hold the same parameters, the first one alone has x_k and g_k. It takes the inner
products, and gives x_k to the others where a loss is evaluated there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_landscape.evaluation.replay import Replay
from lightning_landscape.store.freezing import Frozen, freeze, thaw
from lightning_landscape.store.record import Record
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.training.loss import Loss
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.gradients import Gradient
from lightning_landscape.vectors.parameters import Swap, named_parameters


class Products(NamedTuple):
    """Columns of a probe that follow from x_k, g_k and x_p without a loss."""

    inner_product: float
    """<g_k, x_k − x_p>"""
    sq_distance: float
    """‖x_k − x_p‖²"""


class Evaluator:
    """Takes a `Record` and parameters; gives losses, gradients and inner products.

    Use it inside of `session`, in all processes alike, in a block of `Processes.agreed`. A method
    raises `NotMeasurable` where a record lacks the parts that it needs.

    Args:
        training: the run.
        loss: the user's loss; None for the module's own ``training_step``.
        of_samples: whether the user's loss returns one number a sample; f_i is then their mean.
    """

    def __init__(
        self, training: Training, loss: Loss | None = None, *, of_samples: bool = False
    ) -> None:
        self.training = training
        self.replay = Replay(training, loss, of_samples=of_samples)
        """Evaluates micro-batches with the parameters as they stand"""
        self._swap = Swap(training.module)
        self._iterate: tuple[Record, dict[str, Tensor]] | None = None

    @contextmanager
    def session(self, restored: Collection[str] = ()) -> Iterator[None]:
        """Inside the block records can be evaluated; at its end everything is as it was before.

        Args:
            restored: names of parameters that every `at` in the block assigns. Their values need
                no second copy.
        """
        try:
            with self.replay.silence(restored), self._swap.one_after_another():
                yield
        finally:
            self._iterate = None

    def recover(self) -> None:
        """Put parameters back where an interrupt came while a session put them back."""
        self._iterate = None
        self._swap.recover()

    # -------------------------------------------------------------------------------- parameters

    def iterate(self, record: Record) -> dict[str, Tensor]:
        """Return x_k, and the values that other parameters had then, in every process.

        Raises:
            NotMeasurable: if x_k is not in the record.
        """
        if self._iterate is None or self._iterate[0] is not record:
            own = self.everywhere(record.x)
            if own is None:
                raise NotMeasurable(f"the parameters of step {record.step} are not recorded")
            self._iterate = record, {**self._others(record), **self._existing(own)}
        return self._iterate[1]

    def everywhere(self, own: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """Return the first process's parameters in every process; of shards, its own in each.

        Args:
            own: by name; None in processes that have none.
        """
        return own if self.training.sharded else self.training.processes.tensors_of_first(own)

    @contextmanager
    def at(self, record: Record, x: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Hold the module's parameters at x inside the block, all others as they were at the step.

        Everything is assigned anew each time: a loss may have moved parameters in place.

        Args:
            record: the step.
            x: parameters by name; None for x_k.
        """
        with self._swap.to(self.iterate(record) if x is None else {**self._others(record), **x}):
            yield

    def _others(self, record: Record) -> dict[str, Tensor]:
        return self._existing(record.others or {})

    def _existing(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not values:
            return {}
        present = named_parameters(self.training.module)
        return {name: value for name, value in values.items() if name in present}

    # ---------------------------------------------------------------------------------- measures

    def loss(self, record: Record, x: Mapping[str, Tensor] | None = None) -> float:
        """Return f_i(x), the loss of the record's mini-batch; arguments as of `at`."""
        with self.at(record, x):
            return self.training.processes.mean(self.replay.loss(record.moments))

    def gradient(
        self, record: Record, x: Mapping[str, Tensor] | None = None
    ) -> tuple[float, Gradient]:
        """Return f_i(x) and ∇f_i(x), each the mean over the processes; arguments as of `at`.

        The gradient has the parameters that have one in g_k. The others were frozen at the step, or
        joined the optimizer later. Of sharded parameters it is this process's part.
        """
        own = None if record.gradient is None else list(record.gradient.raw)
        processes = self.training.processes
        names = own if self.training.sharded else processes.of_first(lambda: own)
        with self.at(record, x):
            loss, gradient = self.replay.loss_and_gradient(record.moments)
        if names is not None:
            raw = {name: gradient.raw[name] for name in names if name in gradient.raw}
            gradient = Gradient(raw, gradient.factor)
        return processes.mean(loss), gradient

    def products(self, record: Record, reference: Mapping[str, Tensor]) -> Products:
        """Return <g_k, x_k − x_p> and ‖x_k − x_p‖².

        Args:
            record: the step.
            reference: x_p by name.
        """
        gradient = record.gradient if self.training.measures else None
        return self.products_of(record, gradient, reference)

    def products_of(
        self, record: Record, gradient: Gradient | None, reference: Mapping[str, Tensor]
    ) -> Products:
        """Return <g, x_k − x_p> and ‖x_k − x_p‖² for another gradient g than that of the step."""
        found = Products(math.nan, math.nan)
        if self.training.measures:
            if gradient is None:
                raise NotMeasurable(f"the gradient of step {record.step} is not recorded")
            x = self.for_names(record, reference)
            device = self.training.module.device
            raw = {name: value.to(device) for name, value in gradient.raw.items() if name in x}
            measure = self.training.products.inner_product_and_distance
            found = Products(*measure(x, reference, raw, gradient.factor))
        return Products(*self.training.processes.exchange(*found)[0])

    def sq_norm(self, gradient: Gradient | None) -> float:
        """Return ‖g‖² in every process.

        Args:
            gradient: not needed in processes that do not measure (``training.measures``).
        """
        squares = math.nan
        if self.training.measures and gradient is not None:
            squares = self.training.products.sq_change(gradient.raw, gradient.factor, {}, 1.0)
        return self.training.processes.exchange(squares)[0][0]

    def for_names(self, record: Record, names: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return x_k on the module's device for the names of x_p, in processes that measure.

        Raises:
            NotMeasurable: if one is not in the record.
        """
        recorded = {**(record.others or {}), **(record.x or {})}
        missing = [name for name in names if name not in recorded]
        if missing:
            raise NotMeasurable(f"the values of {missing} at step {record.step} are not recorded")
        device = self.training.module.device
        return {name: recorded[name].to(device) for name in names}

    # -------------------------------------------------------------------------- while training

    def at_present(self, moments: Sequence[Frozen]) -> tuple[float, Gradient]:
        """Return this process's loss and the gradient at the present parameters, outside a session.

        This is how ``loss=`` is evaluated at a probed step.

        Raises:
            MisconfigurationException: if it fails.
        """
        try:
            with self.replay.silence():
                return self.replay.loss_and_gradient(moments)
        except Exception as error:
            samples = "one loss a sample, a tensor of shape (B,),"
            kind = samples if self.replay.of_samples else "a tensor with one element"
            raise MisconfigurationException(
                f"LandscapeMonitor(loss=...) failed, {type(error).__name__}: {error}. Supported is "
                f"a function of (module, batch) that returns {kind} which depends on the parameters"
            ) from error

    # ------------------------------------------------------------------------------- mini-batches

    def with_batch(self, record: Record, batch: Any) -> Record:
        """Return a record with another batch in the place of its first micro-batch, alone.

        Args:
            record: the step, whose state stays.
            batch: as a data loader yields it.
        """
        placed = lightning_compat.on_device(self.training.trainer, batch)
        return replace(record, moments=[with_batch(record.moments[0], placed)])


def with_batch(moment: Frozen, batch: Any) -> Frozen:
    """Return a micro-batch's state with another batch among the arguments of ``training_step``."""
    state = thaw(moment)
    if state["args"]:
        state["args"] = (batch, *state["args"][1:])
    else:
        state["kwargs"] = {**state["kwargs"], next(iter(state["kwargs"])): batch}
    return freeze(state)
