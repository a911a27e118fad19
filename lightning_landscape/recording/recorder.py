"""Records the probed steps of a run: copies alone, the user's code is not called.

The one exception is ``loss=``: the user asks for its value at the probed steps.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_landscape.probes import Probe
from lightning_landscape.recording.every_step import StepSums
from lightning_landscape.recording.schedule import Schedule
from lightning_landscape.recording.window import Taken, Tools, UserLoss, Window
from lightning_landscape.store.memory import Memory
from lightning_landscape.store.record import Record
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.gradients import is_finite
from lightning_landscape.vectors.parameters import fingerprint, named_parameters


class Missed(NamedTuple):
    """A probed step without a row."""

    step: int
    why: str
    """A key of ``run.dropped`` in ``summary.json``"""


class Finished(NamedTuple):
    """A probed step after the optimizer's step."""

    probe: Probe
    """Its row; the columns that depend on x_p are not known yet"""
    record: Record


@dataclass(slots=True)
class Found:
    """What the probes so far say of the run as a whole."""

    moved_between: int = 0
    """Probes after whose step something else moved the parameters"""
    off_schedule: int = 0
    """Probes whose step was not lr times the gradient: clipping, or no SGD"""
    learning_rates: tuple[float, float] | None = None
    """Smallest and largest over the probes; ``nan`` where parameter groups have different ones"""

    def note_step(self, lr: float, expected: float, step_size: float, rounding: float) -> None:
        """Add a probe's step.

        Args:
            lr: the optimizer's learning rate; ``nan`` for several.
            expected: the step size that follows from it.
            step_size: η, as measured.
            rounding: by how much η may be off.
        """
        low, high = self.learning_rates or (lr, lr)
        several = math.isnan(low + lr)
        self.learning_rates = (math.nan, math.nan) if several else (min(low, lr), max(high, lr))
        if not abs(step_size - expected) <= 1e-3 * abs(expected) + rounding:
            self.off_schedule += 1


class Recorder:
    """Records the steps that are due, in step with the other processes of the run.

    `watch`, `read_gradient` and `finish` wait for the other processes: all of them call these, in a
    block of `Processes.agreed`. The other methods wait for nobody, but for `take_sums` and
    `count_step` where parameters are sharded.

    Args:
        training: the run.
        schedule: says which steps are probed.
        memory: lends memory for copies.
        others_changed: whether parameters that are not x differ from those stored last.
        loss_infimum: l, a lower bound of every mini-batch loss.
        user_loss: evaluates ``loss=``; None for the loss of ``training_step``.
        following: whether x_{k+1} is recorded as well.
        every_step: whether every step is measured for the sums over steps.
    """

    def __init__(
        self,
        training: Training,
        schedule: Schedule,
        *,
        memory: Memory,
        others_changed: Callable[[Mapping[str, Tensor]], bool],
        loss_infimum: float,
        user_loss: UserLoss | None = None,
        following: bool = False,
        every_step: bool = False,
    ) -> None:
        self._training, self.schedule = training, schedule
        self._loss_infimum, self._following = loss_infimum, following
        self._tools = Tools(others_changed, memory, self._timing, user_loss)
        self.seconds = 0.0
        """Time spent here while training"""
        self.found = Found()
        self.sums = StepSums(training) if every_step and training.measures else None
        self._window: Window | None = None
        self._taken: Taken | None = None
        self._left: tuple[list[str], Tensor] | None = None
        """Names of x, and some elements of it, as the newest probe's step left it"""
        self._problem: Exception | None = None

    # ---------------------------------------------------------------------------------- the door

    @property
    def watching(self) -> bool:
        """Whether a step is being recorded."""
        return self._window is not None

    @property
    def stepping(self) -> bool:
        """Whether the optimizer's step of the window has begun."""
        return self._window is not None and self._window.stepping

    def watch(self, step: int, *, may_refuse: bool) -> None:
        """Watch the batch that is about to start, if its step is due.

        Args:
            step: the step that is about to be made.
            may_refuse: whether no optimizer step was made yet.
        """
        with self.timed():
            if self._window is None and self.schedule.due(step):
                self._window = Window(step, self._training, self._tools, may_refuse=may_refuse)
            if self._window is not None:
                self._window.watch()

    def look_away(self) -> None:
        """Watch no further batches of the window."""
        if self._window is not None:
            self._window.look_away()

    def forget_gradients(self) -> None:
        """Gradients are about to be zeroed."""
        if self._window is not None and not self._window.stepping:
            self._window.forget_gradients()

    def forget_batches(self) -> None:
        """The coming step belongs to no batch; its probe is missed."""
        if self._window is not None:
            self._window.forget_batches()

    def abandon(self) -> None:
        """Stop recording: at an interrupt, a failure, or the end."""
        self.look_away()
        self._window = self._taken = None

    def note(self, problem: Exception) -> None:
        """Remember a failure of this process alone; all stop together at the next probe."""
        self._problem = self._problem or problem

    def raise_noted(self) -> None:
        """Raise what was noted, if anything was."""
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    # ---------------------------------------------------------------------------------- one step

    def read_gradient(self) -> None:
        """Copy x_k and g_k: everything is accumulated and nothing has moved."""
        if self._window is None:
            return
        with self.timed():
            self.raise_noted()
            self._taken = self._window.take()
            if self._taken is not None and not self.schedule.kept:
                self._check_infimum(self._taken.loss, self._window.step)

    def _check_infimum(self, loss: float, step: int) -> None:
        if loss < self._loss_infimum:
            raise MisconfigurationException(
                f"LandscapeMonitor found the loss {loss:.6g} at step {step}, below loss_infimum="
                f"{self._loss_infimum:g}; supported is a lower bound of every mini-batch loss: "
                "pass a smaller loss_infimum="
            )

    @property
    def first(self) -> Record | None:
        """Return the first probe before its step: it may still be refused; None for others."""
        if self._taken is None or self._window is None or self.schedule.kept:
            return None
        return self._record(self._taken, {}, self._window.step)

    @property
    def training_loss(self) -> float | None:
        """Return the mean of what ``training_step`` returned in this window, where it did."""
        return None if self._taken is None else self._taken.training_loss

    def finish(self) -> Finished | Missed | None:
        """Measure the step that the optimizer has made; None where no step was being recorded."""
        window, self._window = self._window, None
        taken, self._taken = self._taken, None
        if window is None:
            return None
        window.look_away()
        with self.timed():
            self.raise_noted()
            if taken is None:
                return Missed(window.step, "no_loss")
            after = self._training.values_of(taken.x)
            self._left = (list(after), fingerprint(after))
            probe = self._measure(window.step, taken, after)
            if probe is None:
                return Missed(window.step, "non_finite")
            return Finished(probe, self._record(taken, after, window.step))

    def _record(self, taken: Taken, after: Mapping[str, Tensor], step: int) -> Record:
        measures = self._training.measures
        following = self._tools.memory.copied(after) if self._following and measures else None
        return Record(
            step=step,
            loss=taken.local_loss,
            moments=taken.moments,
            x=taken.x if measures else None,
            gradient=taken.gradient if measures else None,
            others=taken.others,
            following=following,
        )

    def _measure(self, step: int, taken: Taken, after: Mapping[str, Tensor]) -> Probe | None:
        lr = taken.lr * taken.share if taken.lr is not None else math.nan
        raw, factor = taken.gradient.raw, taken.gradient.factor
        found = self._training.products.step(taken.x, after, raw, factor, expected=lr)
        self._check_agreement(step, found.grad_sq_norm, found.step_size)
        if not is_finite(taken.loss, *found):
            return None
        squares = found.grad_sq_norm
        rounding = found.residual / math.sqrt(squares) if squares else math.inf
        self.found.note_step(
            math.nan if taken.lr is None else taken.lr, lr, found.step_size, rounding
        )
        return Probe(
            step=step,
            epoch=taken.epoch,
            loss=taken.loss,
            reference_loss=None,
            loss_infimum=self._loss_infimum,
            inner_product=None,
            grad_sq_norm=squares,
            sq_distance=None,
            step_size=found.step_size,
            step_residual=found.residual,
            initial_loss=None,
            logged_step=taken.logged_step,
        )

    def _check_agreement(self, step: int, *measures: float) -> None:
        """See whether all processes have the same gradient and made the same step.

        Raises:
            ValueError: if not: then there is no one x_k.
        """
        rows = self._training.processes.exchange(step, *measures)
        for own, row in zip(rows[0], zip(*rows, strict=True), strict=True):
            if not all(v == own or abs(v - own) <= 1e-5 * abs(own) or v != v for v in row):
                raise ValueError(
                    f"found processes with different gradients or steps at step {step}: {row}; "
                    "supported are strategies that keep the parameters of all processes the same"
                )

    def check_nothing_moved(self) -> None:
        """Note whether x is still where the newest probe's step left it."""
        if self._left is None:
            return
        with self.timed():
            (names, left), self._left = self._left, None
            parameters = named_parameters(self._training.module)
            there = all(name in parameters for name in names)  # pruning renames parameters
            now = fingerprint({name: parameters[name] for name in names}) if there else None
            self.found.moved_between += now is None or not _equal(now, left)

    def forget_movement(self) -> None:
        """Another step is about to be made in the same batch: it moves x, and that is no fault."""
        self._left = None

    # -------------------------------------------------------------------------------- every step

    def take_sums(self) -> None:
        """Copy x_k and g_k for the sums over all steps."""
        if self.sums is not None:
            with self.timed():
                self.sums.take()

    def count_step(self, step: int) -> None:
        """Add the step that was just made to the sums over all steps."""
        if self.sums is not None:
            with self.timed():
                self.sums.add(step, self.schedule.kept[0] if self.schedule.kept else None)

    # -------------------------------------------------------------------------------------- time

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of the block as the monitor's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def _timing(self, function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def timed(*args: Any) -> None:
            with self.timed():
                function(*args)

        return timed

    # --------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain values."""
        rates = self.found.learning_rates
        return {
            "seconds": self.seconds,
            "off_schedule": self.found.off_schedule,
            "moved_between": self.found.moved_between,
            "learning_rates": None if rates is None else list(rates),
            "exact_sums": self.sums.state() if self.sums is not None else None,
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.seconds = state["seconds"]
        rates = state["learning_rates"]
        self.found = Found(
            state["moved_between"],
            state["off_schedule"],
            None if rates is None else (rates[0], rates[1]),
        )
        if self.sums is not None and state["exact_sums"] is not None:
            self.sums.adopt(state["exact_sums"])


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
