"""The window of one probed step: its micro-batches, and loss, x_k and g_k before the step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_landscape.recording.door import Doorstep
from lightning_landscape.recording.manual import Traces
from lightning_landscape.recording.state import frozen_moment, iterators
from lightning_landscape.store.freezing import Frozen
from lightning_landscape.store.memory import Memory
from lightning_landscape.store.others import sampled
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.loss import scalar_loss
from lightning_landscape.training.scaling import (
    accumulation_factor,
    learning_rate,
    unscaling_factor,
)
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.gradients import Gradient, present_gradient
from lightning_landscape.vectors.parameters import copied, local_values

UserLoss = Callable[[Sequence[Frozen]], tuple[float, Gradient]]
"""Evaluates ``loss=`` on micro-batches at the present parameters: its mean, and the gradient"""
Timed = Callable[[Callable[..., None]], Callable[..., None]]


@dataclass(frozen=True, slots=True)
class Tools:
    """The parts that a window needs beside the run itself."""

    others_changed: Callable[[Mapping[str, Tensor]], bool]
    """Whether parameters that are not x differ from those that were stored last"""
    memory: Memory
    """Where copies of x_k and g_k go"""
    timed: Timed
    """Counts the time of a function that runs inside the user's ``training_step``"""
    user_loss: UserLoss | None = None
    """None: the loss is that of ``training_step``"""


@dataclass(frozen=True, slots=True)
class Taken:
    """One step when its gradient is complete and nothing has moved."""

    epoch: int
    logged_step: int
    local_loss: float
    """Mean over this process's micro-batches"""
    loss: float
    """Mean of that over the processes"""
    training_loss: float | None
    """Mean of what ``training_step`` returned in this process; None under manual optimization"""
    lr: float | None
    """None where parameter groups have different learning rates"""
    share: float
    """k/N for a window of k micro-batches: Lightning divides every loss by N"""
    moments: Sequence[Frozen]
    x: dict[str, Tensor]
    gradient: Gradient
    others: Mapping[str, Tensor] | None
    """Parameters that are not x. Empty or None: still those that were stored last"""


class Window:
    """Watches the micro-batches of one optimizer step.

    Args:
        step: k, the number of steps made before.
        training: the run.
        tools: what the window works with.
        may_refuse: whether no optimizer step was made yet.
    """

    def __init__(self, step: int, training: Training, tools: Tools, *, may_refuse: bool) -> None:
        self.step, self.may_refuse = step, may_refuse
        self.stepping = False
        """Whether the optimizer's step has begun"""
        self._training, self._tools = training, tools
        self._traces = None if training.module.automatic_optimization else Traces(training)
        self._door: Doorstep | None = None
        self._error: Exception | None = None
        """Our first failure inside ``training_step``; raised where the optimizer steps"""
        self._arriving: Frozen | None = None
        self._moments: list[Frozen] = []
        self._losses: list[float] = []
        """One a micro-batch, under automatic optimization"""
        self._newest_has_loss = False
        self._others: dict[str, Tensor] | None = None
        self._others_at_first: dict[str, Tensor] = {}
        """Some elements of them when the first micro-batch arrived"""

    # ------------------------------------------------------------------------------ at the door

    def watch(self) -> None:
        """Watch the next batch."""
        self.look_away()
        enter, leave = self._guarded(self._enter), self._guarded(self._leave)
        self._door = Doorstep(self._training.trainer, enter, leave)

    def look_away(self) -> None:
        """Watch no further batches."""
        if self._door is not None:
            self._door.leave()
            self._door = None

    def _guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        """Keep our failures out of the user's ``training_step``; the first one is raised later.

        A refusal is raised at once, while the run may be refused and no other process waits.
        """

        @functools.wraps(function)
        def guarded(*args: Any) -> None:
            if self._error is not None:
                return
            try:
                self._tools.timed(function)(*args)
            except Exception as error:
                self._error = error
                alone = self._training.processes.size == 1
                if self.may_refuse and alone and isinstance(error, MisconfigurationException):
                    raise

        return guarded

    def _enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        others: dict[str, Tensor] = {}
        if self._tools.user_loss is None:
            self._refuse_iterators()
            others = self._others_at_the_door()
        if self._traces is not None:
            self._moments = self._traces.begin(self._moments)
        try:
            self._arriving = frozen_moment(self._training, args, kwargs, others)
        except TypeError as error:
            raise MisconfigurationException(
                f"LandscapeMonitor cannot keep this batch: {error}. Supported are batches that can "
                "be pickled or deep-copied. Let the data loader yield tensors and plain "
                "containers, without locks, open files, generators or tensors with a graph"
            ) from error

    def _refuse_iterators(self) -> None:
        if found := iterators(self._training.module):
            raise MisconfigurationException(
                f"LandscapeMonitor found iterators among the module's attributes: {found}. "
                "Another evaluation of training_step would advance them. Supported are batches "
                "from the data loader (CombinedLoader for several), or loss=, a function of "
                "(module, batch) that draws from no iterator"
            )

    def _leave(self, output: Any) -> None:
        moment, self._arriving = self._arriving, None
        self._newest_has_loss = False
        if moment is None:
            return
        if self._traces is not None:
            if not self._traces.end():
                return
        elif not self._has_loss(output):
            return
        self._moments.append(moment)
        self._newest_has_loss = True

    def _has_loss(self, output: Any) -> bool:
        try:
            loss = scalar_loss(output)
        except TypeError as error:
            raise MisconfigurationException(
                f"LandscapeMonitor, step {self.step}: {error}"
            ) from error
        if loss is not None:
            self._losses.append(float(loss))
        return loss is not None

    def forget_gradients(self) -> None:
        """Gradients are about to be zeroed: only the newest micro-batch will still have one."""
        keep = -1 if self._newest_has_loss else len(self._moments)
        self._moments, self._losses = self._moments[keep:], self._losses[keep:]

    def forget_batches(self) -> None:
        """No gradient of the micro-batches so far is in the step."""
        self._moments, self._losses = [], []

    # -------------------------------------------------------------- parameters that are not x

    def _others_at_the_door(self) -> dict[str, Tensor]:
        """Return those parameters that moved since the window's first micro-batch.

        ``training_step`` may move them itself, as a momentum encoder does. So they are taken at
        the door of the first micro-batch, before it can.
        """
        others = self._training.others()
        if self._others is None:
            self._others, self._others_at_first = self._changed(others), sampled(others)
            return {}
        now, first = sampled(others), self._others_at_first
        # a name that is missing there may join x later
        moved = [n for n in others if n not in first or not torch.equal(now[n], first[n])]
        return {name: others[name] for name in moved}

    def _changed(self, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a copy of parameters where they are not those that were stored last."""
        return copied(others) if self._tools.others_changed(others) else {}

    # ------------------------------------------------------------------------- before the step

    def take(self) -> Taken | None:
        """Copy x_k and g_k: everything is accumulated and nothing has moved yet.

        Returns:
            None where the step has no loss.

        Raises:
            Exception: the first failure while the window was watched.
        """
        self.look_away()
        if self._error is not None:
            raise self._error
        self._training.processes.exchange()  # all have come so far: what follows may wait for them
        self.stepping = True
        if self._traces is not None:
            self._moments = self._traces.step(self._moments)
        if self._arriving is not None:  # manual optimization steps inside training_step
            self._moments.append(self._arriving)
            self._arriving = None
        if not self._same_number_of_batches():
            return None
        loss, gradient = self._loss_and_gradient()
        if not gradient.raw:
            return None
        trainer, memory = self._training.trainer, self._tools.memory
        losses = self._losses if len(self._losses) == len(self._moments) else []
        # a short last window of an epoch has fewer than accumulate_grad_batches
        automatic = self._tools.user_loss is None
        share = 1 / accumulation_factor(trainer, len(losses)) if automatic else 1.0
        return Taken(
            epoch=trainer.current_epoch,
            logged_step=lightning_compat.batches_that_stepped(trainer),
            local_loss=loss,
            loss=self._training.processes.mean(loss),
            training_loss=sum(losses) / len(losses) if losses else None,
            lr=learning_rate(self._training.optimizer),
            share=share,
            moments=self._moments,
            x=memory.copied(local_values(self._training.parameters())),
            gradient=gradient,
            others=self._others,
        )

    def _same_number_of_batches(self) -> bool:
        """Return whether there are micro-batches with a loss, as many in each process."""
        counts = [int(row[0]) for row in self._training.processes.exchange(len(self._moments))]
        if 0 in counts:
            return False
        if len(set(counts)) > 1:
            raise ValueError(
                f"found {counts} mini-batches with a loss in the processes at step {self.step}; "
                "supported are processes that accumulate over the same number"
            )
        return True

    def _loss_and_gradient(self) -> tuple[float, Gradient]:
        if self._tools.user_loss is not None:
            # the loss is evaluated now, with what others have made of their parameters since
            self._others = self._changed(self._training.others())
            return self._tools.user_loss(self._moments)
        training = self._training
        factor = unscaling_factor(training.trainer, training.optimizer)
        factor *= accumulation_factor(training.trainer, len(self._losses))
        present = present_gradient(training.parameters(), factor)
        raw = self._tools.memory.copied(present.raw) if present.raw else {}
        return sum(self._losses) / len(self._losses), Gradient(raw, factor)
