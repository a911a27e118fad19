"""The micro-batches of one optimiser step, from the door of ``training_step`` to x_k and g_k."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_landscape.evaluation.replay import Doorstep, Replayer, scalar_loss
from lightning_landscape.recording.freezing import Frozen
from lightning_landscape.recording.state import iterators
from lightning_landscape.store.kept import Kept, sampled
from lightning_landscape.store.store import ProbeStore
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.gradients import (
    Gradient,
    accumulation_factor,
    learning_rate,
    loss_scale,
    present_gradient,
    unscaling_factor,
)
from lightning_landscape.vectors.parameters import (
    copied,
    fingerprint,
    held_by,
    local_values,
    named_parameters,
    optimized_parameters,
)

Timed = Callable[[Callable[..., None]], Callable[..., None]]


class Window:
    """Watches the batches of one optimiser step and takes what a probe of it needs.

    Args:
        step: the optimiser's step.
        trainer: the trainer.
        module: the module in training.
        optimizer: its optimiser.
        store: knows whether the parameters that the optimiser does not hold have changed.
        replayer: freezes the moments of the micro-batches.
        processes: those of the run, each with micro-batches of its own.
        timed: wraps what runs inside the user's ``training_step``, to count its time.
        may_refuse: whether no optimiser step was made yet.
    """

    def __init__(
        self,
        step: int,
        *,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        store: ProbeStore,
        replayer: Replayer,
        processes: Processes,
        timed: Timed,
        may_refuse: bool,
    ) -> None:
        self.step = step
        self.epoch = 0
        self.logged_step = 0
        self.local_loss = 0.0
        """Mean over this process's micro-batches that have a loss"""
        self.loss = 0.0
        """The mean of that over the processes"""
        self.before: dict[str, Tensor] = {}
        """x_k"""
        self.gradient = Gradient({}, 1.0)
        """g_k: in the memory of training, until it is held"""
        self.moments: list[Frozen] = []
        self.lr: float | None = None
        """The optimiser's learning rate for this step; None where its groups have several"""
        self.share = 1.0
        """The part of a whole window that this one is: Lightning divides a short last one by the whole number"""
        self.stepping = False
        """Whether the window has come to the optimiser's step"""
        self._trainer, self._module, self._optimizer, self._store = (
            trainer,
            module,
            optimizer,
            store,
        )
        self._replayer, self._processes, self._timed = replayer, processes, timed
        self.may_refuse = may_refuse
        """Whether no optimiser step was made before"""
        self._error: Exception | None = None
        """What failed inside ``training_step``: raised where the optimiser steps, in every process"""
        self._losses: list[float] = []
        self._newest_has_loss = False
        self.others: dict[str, Tensor] | None = None
        """Parameters that are not x as the loss sees them, where they are not those last stored.

        ``training_step`` sees them at the door; a loss of the user's, evaluated at the step, sees what other optimisers (or
        hooks) have made of them since.
        """
        self._first_others: dict[str, Tensor] = {}
        """Some elements of them at the first micro-batch"""
        self._traces: list[tuple[str, Tensor]] = []
        """Under manual optimisation, by micro-batch: a parameter to whose gradient it added, and that gradient"""
        self._gradients_before: dict[str, Tensor] = {}
        self._arriving: Frozen | None = None
        self._door: Doorstep | None = None

    def watch(self) -> None:
        """Watch the batch that is about to start."""
        self.look_away()
        self._door = Doorstep(
            self._trainer, self._kept_from_user(self._enter), self._kept_from_user(self._leave)
        )

    def look_away(self) -> None:
        """Give the module its ``training_step`` back."""
        if self._door is not None:
            self._door.leave()
            self._door = None

    def _kept_from_user(self, function: Callable[..., None]) -> Callable[..., None]:
        """Let no failure of ours reach the user's ``training_step``: the first one is raised later, and nothing is tried again.

        A refusal is raised at once, while the run may be refused and no other process waits for this one.
        """

        @functools.wraps(function)
        def kept(*args: Any) -> None:
            if self._error is None:
                try:
                    self._timed(function)(*args)
                except Exception as error:
                    self._error = error
                    if (
                        self.may_refuse
                        and self._processes.size == 1
                        and isinstance(error, MisconfigurationException)
                    ):
                        raise

        return kept

    def _enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if not self._replayer.of_user and (found := iterators(self._module)):
            raise MisconfigurationException(
                f"LandscapeMonitor found iterators among the module's attributes, {found}, which another evaluation of "
                "training_step would advance; supported are data that come in the batch (CombinedLoader), or loss=, a function "
                "of (module, batch) that draws from no iterator"
            )
        others = {} if self._replayer.of_user else self._others_at_the_door()
        if not self._module.automatic_optimization:
            self._forget_zeroed()
            self._gradients_before = {
                name: _sampled(p.grad) for name, p in self._parameters() if p.grad is not None
            }
        try:
            self._arriving = self._replayer.moment(args, kwargs, others)
        except TypeError as error:
            raise MisconfigurationException(
                f"LandscapeMonitor cannot keep this batch to evaluate its loss again: {error}. Supported is anything that can "
                "be pickled or deep-copied; let the data loader yield tensors and plain containers, without locks, open files, "
                "generators or tensors that carry a graph"
            ) from error

    def _leave(self, output: Any) -> None:
        moment, self._arriving = self._arriving, None
        self._newest_has_loss = False
        if moment is None:
            return
        if self._module.automatic_optimization:
            try:
                loss = scalar_loss(output)
            except TypeError as error:
                raise MisconfigurationException(
                    f"LandscapeMonitor, step {self.step}: {error}"
                ) from error
            if loss is None:
                return
            self._losses.append(float(loss))
        elif not self._leaves_a_trace():
            return
        self.moments.append(moment)
        self._newest_has_loss = True

    def forget_gradients(self) -> None:
        """Gradients are about to be zeroed: of the micro-batches so far only the newest will have one."""
        keep = -1 if self._newest_has_loss else len(self.moments)
        self.moments, self._losses = self.moments[keep:], self._losses[keep:]

    def forget_batches(self) -> None:
        """No gradient of the micro-batches so far is in the step."""
        self.moments, self._losses = [], []

    def _parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return optimized_parameters(self._module, self._optimizer).items()

    def _leaves_a_trace(self) -> bool:
        """Note to which gradient the batch that ends has added; False for none: it was another optimiser's batch.

        Which batches a step by hand is of nobody says: those that added to its gradient, and were not zeroed since.
        """
        touched = [
            (p.numel(), name, p.grad)
            for name, p in self._parameters()
            if p.grad is not None and self._adds(name, p.grad)
        ]
        if not touched:
            return False
        _, name, gradient = min(
            touched, key=lambda entry: entry[0]
        )  # it is held until the step: a small one
        self._traces.append((name, gradient))
        return True

    def _adds(self, name: str, gradient: Tensor) -> bool:
        before, after = self._gradients_before.get(name), _sampled(gradient)
        return before is None or not torch.allclose(before, after, rtol=0, atol=0, equal_nan=True)

    def _forget_zeroed(self) -> None:
        """Forget the batches whose gradients are gone, as ``zero_grad`` sets them to None."""
        present = dict(self._parameters())
        kept = [
            present[name].grad is gradient if name in present else False
            for name, gradient in self._traces
        ]
        self.moments = list(itertools.compress(self.moments, kept))
        self._traces = list(itertools.compress(self._traces, kept))

    def _others(self) -> dict[str, Tensor]:
        parameters = named_parameters(self._module)
        trained = held_by(self._optimizer, parameters)
        return local_values({n: p for n, p in parameters.items() if n not in trained})

    def _others_at_the_door(self) -> dict[str, Tensor]:
        """Return the parameters that are not x where they have moved since the window's first micro-batch: a teacher does.

        At the first one they are taken, before ``training_step`` can move them: a momentum encoder does.
        """
        others = self._others()
        if self.others is None:
            self.others, self._first_others = self._changed(others), sampled(others)
            return {}
        now, first = (
            sampled(others),
            self._first_others,
        )  # one that has not moved is left out: it may join x later
        return {
            n: value
            for n, value in others.items()
            if n not in first or not torch.equal(now[n], first[n])
        }

    def _changed(self, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a copy of the parameters that are not x, where they are not those last stored."""
        return copied(others) if self._store.others_changed(others) else {}

    def take(self) -> None:
        """Take loss and x_k, and look at g_k: everything is accumulated and nothing has moved yet.

        Raises:
            Exception: what failed while the window was watched.
        """
        self.look_away()
        if self._error is not None:
            raise self._error
        self._processes.exchange()  # every process has come so far: what follows may wait for the others
        self.stepping = True
        self.lr = learning_rate(self._optimizer)
        if not self._module.automatic_optimization:
            self._forget_zeroed()
            self._traces = []
        if self._arriving is not None:  # manual optimisation steps inside training_step
            self.moments.append(self._arriving)
            self._arriving = None
        self.epoch = self._trainer.current_epoch
        self.logged_step = lightning_compat.batches_that_stepped(self._trainer)
        counts = [int(row[0]) for row in self._processes.exchange(len(self.moments))]
        if 0 in counts:
            return
        if len(set(counts)) > 1:
            raise ValueError(
                f"found {counts} mini-batches with a loss in the processes at step {self.step}; supported are processes that "
                "accumulate over as many"
            )
        parameters = optimized_parameters(self._module, self._optimizer)
        if self._replayer.of_user:
            self.others = self._changed(self._others())
            scale = loss_scale(self._trainer)
            try:
                with self._replayer.silence():
                    self.local_loss, raw = self._replayer.mean_loss_and_gradient(
                        self.moments, parameters, scale
                    )
            except Exception as error:
                kind = (
                    "one loss a sample, a tensor of shape (B,),"
                    if self._replayer.per_sample
                    else "a tensor with one element"
                )
                raise MisconfigurationException(
                    f"LandscapeMonitor(loss=...) failed at step {self.step}, {type(error).__name__}: {error}. Supported is a "
                    f"function of (module, batch) that returns {kind} which depends on the parameters"
                ) from error
            factor = self._replayer.gradient_factor(self.moments, scale)
            self.gradient = Gradient(self._replayer.averaged(raw, parameters), factor)
        else:
            self.local_loss = sum(self._losses) / len(self._losses)
            self.share = 1 / accumulation_factor(self._trainer, len(self._losses))
            factor = unscaling_factor(self._trainer, self._optimizer) * accumulation_factor(
                self._trainer, len(self._losses)
            )
            self.gradient = present_gradient(parameters, factor)
        self.loss = self._processes.mean(self.local_loss)
        if self.measurable:
            self.before = self._store.memory.copied(local_values(parameters))

    def hold_gradient(self) -> None:
        """Copy g_k, which training is about to change."""
        if self.measurable and not self._replayer.of_user:  # that of a user's loss is ours already
            self.gradient = Gradient(
                self._store.memory.copied(self.gradient.raw), self.gradient.factor
            )

    def let_go_of_gradient(self) -> None:
        """Give the memory of g_k back, where nobody will ask for it any more."""
        self.gradient = Gradient({}, self.gradient.factor)

    @property
    def training_loss(self) -> float | None:
        """What ``training_step`` returned, the mean over this process's micro-batches; None under manual optimisation."""
        return (
            sum(self._losses) / len(self._losses)
            if self._losses and len(self._losses) == len(self.moments)
            else None
        )

    @property
    def measurable(self) -> bool:
        """Whether there is a loss, and a gradient of it."""
        return bool(self.gradient.raw)

    def after(self) -> dict[str, Tensor]:
        """Return the parameters now: x_{k+1}, once the optimiser has made its step."""
        parameters = named_parameters(self._module)
        return local_values({name: parameters[name] for name in self.before})

    def kept(self, *, parameters: bool = True, gradient: bool = True) -> Kept:
        """Return what the store keeps of this probe."""
        x, g = self.before if parameters else None, self.gradient if gradient else None
        return Kept(self.moments, self.local_loss, x, g, self.others)


def _sampled(gradient: Tensor) -> Tensor:
    """Return some elements of a gradient, in which it is seen when something is added."""
    return fingerprint(
        {"": gradient if gradient.layout == torch.strided else gradient.coalesce().values()}
    )
