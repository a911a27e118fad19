"""One training run measured: from windows of micro-batches to rows of the table of probes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.probes import Probe, ProbeTable, from_scalars, to_scalars
from lightning_landscape.probing import lightning_compat
from lightning_landscape.probing.freezing import Frozen
from lightning_landscape.probing.gradients import (
    Gradient,
    accumulation_factor,
    is_finite,
    loss_scale,
    read_gradient,
    unscaling_factor,
)
from lightning_landscape.probing.parameters import (
    Swap,
    copied,
    inner_product_and_distance,
    measure_step,
    named_parameters,
    optimized_parameters,
)
from lightning_landscape.probing.reference import Reference
from lightning_landscape.probing.replay import Doorstep, Loss, NotMeasurable, Replayer, scalar_loss
from lightning_landscape.probing.schedule import Schedule, evenly
from lightning_landscape.probing.store import Kept, ProbeStore

INITIAL_LOSSES = 32
"""On so many kept probes, at most, the loss at x_0 is evaluated"""

Guard = Callable[[Callable[..., None]], Callable[..., None]]


@dataclass(slots=True)
class Window:
    """The micro-batches of one optimiser step, as far as they have come."""

    step: int
    moments: list[Frozen] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    arriving: Frozen | None = None
    stepping: bool = False
    epoch: int = 0
    logged_step: int = 0
    loss: float = 0.0
    gradient: Gradient | None = None
    before: dict[str, Tensor] = field(default_factory=dict)
    """x_k"""


@dataclass(slots=True)
class Fidelity:
    """How well replays at x_k reproduced the losses that training recorded there."""

    steps: list[int] = field(default_factory=list)
    max_abs: float = 0.0

    def note(self, step: int, difference: float) -> None:
        """Add a comparison."""
        if step not in self.steps:
            self.steps = sorted([*self.steps, step])
        self.max_abs = max(self.max_abs, difference if is_finite(difference) else math.inf)

    @property
    def exact(self) -> bool:
        """Whether every replay gave the recorded loss to the last bit."""
        return self.max_abs == 0


class Measurement:
    """Measures the probes of one ``fit``.

    Args:
        trainer: the trainer, in ``fit``.
        module: the module in training.
        optimizer: its optimiser.
        schedule: which steps are probed.
        store: where kept probes wait for x_p.
        loss: the user's loss; None for the module's own ``training_step``.
        loss_infimum: l, a lower bound of every mini-batch loss.
        reference: x_p; None while it is not known (the last iterate of this run).
        guard: wraps what runs inside the user's ``training_step``, so that no failure of ours reaches it.
    """

    def __init__(
        self,
        *,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        schedule: Schedule,
        store: ProbeStore,
        loss: Loss | None,
        loss_infimum: float,
        reference: Reference | None,
        guard: Guard,
    ) -> None:
        self._trainer, self._module, self._optimizer = trainer, module, optimizer
        self._loss, self._loss_infimum, self._guard = loss, loss_infimum, guard
        self.schedule, self.store, self.reference = schedule, store, reference
        self.table = ProbeTable()
        self.dropped = {"non_finite": 0, "no_loss": 0, "unevaluable": 0}
        self.fidelity = Fidelity()
        self.seconds = 0.0
        """Time spent here while training"""
        self.replayer = Replayer(trainer, module, loss)
        self._swap = Swap(module)
        self._window: Window | None = None
        self._door: Doorstep | None = None
        self._disk_full = False

    # ------------------------------------------------------------------------------------------------ while training

    def watch(self, step: int) -> list[int]:
        """Watch the batch that is about to start, if its step is due; return the steps that were thinned out."""
        with self._timed():
            dropped = [] if self._window else self.schedule.make_room(step)
            self._forget(dropped)
            if self._window or self.schedule.due(step):
                self._window = self._window or Window(step)
                self.look_away()
                self._door = Doorstep(self._module, self._guard(self._enter), self._guard(self._leave))
        return dropped

    def look_away(self) -> None:
        """Stop watching ``training_step``."""
        if self._door is not None:
            self._door.leave()
            self._door = None

    def abandon(self) -> None:
        """Leave the run as if there were no measurement: at an interrupt, a failure, or the end."""
        self._window = None
        self.look_away()
        self._swap.recover()

    @property
    def watching(self) -> bool:
        """Whether a window is being measured."""
        return self._window is not None

    @property
    def gradient_taken(self) -> bool:
        """Whether the window has come to the optimiser's step."""
        return self._window is not None and self._window.stepping

    def _enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        with self._timed():
            if self._window is None:
                return
            try:
                self._window.arriving = self.replayer.moment(args, kwargs)
            except TypeError as error:
                raise MisconfigurationException(
                    f"LandscapeMonitor cannot keep this batch to evaluate its loss again: {error}. Supported is anything that "
                    "can be pickled or deep-copied; let the data loader yield tensors and plain containers, without locks, "
                    "open files, generators or tensors that carry a graph"
                ) from error

    def _leave(self, output: Any) -> None:
        with self._timed():
            window = self._window
            if window is None or window.arriving is None:
                return
            moment, window.arriving = window.arriving, None
            if self._module.automatic_optimization:
                try:
                    loss = scalar_loss(output)
                except TypeError as error:
                    raise MisconfigurationException(f"LandscapeMonitor, step {window.step}: {error}") from error
                if loss is None:
                    return
                window.losses.append(float(loss))
            window.moments.append(moment)

    def read_gradient(self) -> None:
        """Take x_k and g_k: everything is accumulated and nothing has moved."""
        window = self._window
        if window is None:
            return
        self.look_away()
        window.stepping = True
        if window.arriving is not None:  # manual optimisation steps inside training_step
            window.moments.append(window.arriving)
            window.arriving = None
        with self._timed():
            parameters = optimized_parameters(self._module, self._optimizer)
            window.epoch = self._trainer.current_epoch
            window.logged_step = lightning_compat.batches_that_stepped(self._trainer)
            if window.moments and self._loss is None:
                window.loss = sum(window.losses) / len(window.losses)
                factor = unscaling_factor(self._trainer, self._optimizer)
                factor *= accumulation_factor(self._trainer, len(window.losses))
                window.gradient = read_gradient(parameters, factor)
            elif window.moments:
                scale = loss_scale(self._trainer)
                with self.replayer.silence():
                    window.loss, raw = self.replayer.mean_loss_and_gradient(window.moments, parameters, scale)
                window.gradient = Gradient(raw, 1 / (scale * len(window.moments)))
            if window.gradient is not None and window.gradient.raw:
                window.before = copied(parameters)
                self._check_first(window)

    def _check_first(self, window: Window) -> None:
        """Refuse, before the first step is made, what the first window shows."""
        if self.schedule.kept:
            return
        if window.loss < self._loss_infimum:
            raise MisconfigurationException(
                f"LandscapeMonitor found the loss {window.loss:.6g} at step {window.step}, below loss_infimum="
                f"{self._loss_infimum:g}; supported is a lower bound of every mini-batch loss: pass a smaller loss_infimum="
            )
        if self.reference is None:
            self.store.note_size(self._kept(window))
            self._require_room()

    def _require_room(self) -> None:
        capacity = self.store.capacity
        if capacity is not None and capacity < 2:
            raise MisconfigurationException(
                f"LandscapeMonitor needs {self.store.largest / 2**20:.1f} MiB a probe on disk and may use "
                f"{self.store.budget / 2**20:.1f} MiB; supported are budgets of two probes or more: raise store_gib=, set "
                "dirpath= to a disk with more room, or pass reference= a file, with which nothing but one point is stored"
            )

    def finish(self) -> Probe | None:
        """Complete the window after the optimiser's step; return its row, or None where it is not measurable."""
        window = self._window
        if window is None:
            return None
        self._window = None
        self.look_away()
        with self._timed():
            if window.gradient is None or not window.gradient.raw:
                self._miss(window.step, "no_loss")
                return None
            probe = self._measure(window, window.gradient)
            if probe is not None and not self.schedule.kept:
                self._check_replay(window)
            if probe is not None and self.reference is not None:
                probe = self._evaluated_now(probe, window, window.gradient)
            if probe is None:
                self._miss(window.step, "non_finite")
            else:
                self._keep(probe, window)
            return probe

    def _measure(self, window: Window, gradient: Gradient) -> Probe | None:
        after = named_parameters(self._module)
        measures = measure_step(window.before, after, gradient.raw, gradient.factor)
        if not is_finite(window.loss, *measures):
            return None
        return Probe(
            step=window.step,
            epoch=window.epoch,
            loss=window.loss,
            reference_loss=None,
            loss_infimum=self._loss_infimum,
            inner_product=None,
            grad_sq_norm=measures.grad_sq_norm,
            sq_distance=None,
            step_size=measures.step_size,
            step_residual=measures.residual,
            initial_loss=None,
            logged_step=window.logged_step,
        )

    def _check_replay(self, window: Window) -> None:
        """Replay the first probe at x_k; where that is not exact without autograd, try with it."""
        with self.replayer.silence(), self._swap.to(window.before):
            difference = abs(self.replayer.mean_loss(window.moments) - window.loss)
            if difference != 0 and not self.replayer.gradients_enabled:
                self.replayer.gradients_enabled = True
                again = abs(self.replayer.mean_loss(window.moments) - window.loss)
                self.replayer.gradients_enabled = again < difference
                difference = min(again, difference)
        self.fidelity.note(window.step, difference)

    def _evaluated_now(self, probe: Probe, window: Window, gradient: Gradient) -> Probe | None:
        assert self.reference is not None
        there = self.reference.parameters
        product, distance = inner_product_and_distance(window.before, there, gradient.raw, gradient.factor)
        with self.replayer.silence(), self._swap.to(there):
            loss = self.replayer.mean_loss(window.moments)
        if not is_finite(product, distance, loss):
            return None
        (row,) = ProbeTable([probe]).replaced(probe.step, reference_loss=loss, inner_product=product, sq_distance=distance)
        return row

    def _keep(self, probe: Probe, window: Window) -> None:
        self.schedule.keep(probe.step)
        self.table = self.table.merged([probe])
        if self.reference is None:
            self._write(probe.step, self._kept(window))
            self.schedule.limit(self.store.capacity or 2)
            return
        chosen = evenly(self.schedule.kept, INITIAL_LOSSES)
        for step in self.schedule.kept:
            if step not in chosen and step != self.schedule.kept[0]:
                self.store.drop(step)
        if probe.step in chosen:
            first = probe.step == self.schedule.kept[0]
            with suppress(OSError):  # the row is complete; only its loss at x_0 will not be known
                self.store.write(probe.step, Kept(window.moments, window.before if first else None, None, self._others(window)))

    def _kept(self, window: Window) -> Kept:
        return Kept(window.moments, window.before, window.gradient, self._others(window))

    def _others(self, window: Window) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in named_parameters(self._module).items() if n not in window.before}

    def _write(self, step: int, kept: Kept) -> None:
        """Write to the store; where the disk is full, thin the table once and try again.

        Raises:
            OSError: if the disk is full nevertheless; the probe is counted as one that cannot be evaluated.
        """
        try:
            self.store.write(step, kept)
            self._disk_full = False
        except OSError as error:
            if self._disk_full or len(self.schedule.kept) < 3:
                self._lose(step, "unevaluable")
                raise OSError(error.errno, f"{error.strerror}, while storing the probe of step {step}") from error
            self._disk_full = True
            self._forget(self.schedule.thin())
            if step in self.schedule.kept:
                self._write(step, kept)

    def _forget(self, steps: Iterable[int]) -> None:
        gone = set(steps)
        if gone:
            self.table = ProbeTable(probe for probe in self.table if probe.step not in gone)
            for step in gone:
                self.store.drop(step)

    def _miss(self, step: int, why: str) -> None:
        self.dropped[why] += 1
        self.schedule.skip(step)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    # ------------------------------------------------------------------------------------------------------- at the end

    def current_parameters(self) -> dict[str, Tensor]:
        """Return a copy of the optimiser's parameters as they are now."""
        return copied(optimized_parameters(self._module, self._optimizer))

    def evaluate(self, reference: Reference, track: Callable[[Sequence[int], str], Iterable[int]]) -> None:
        """Fill the columns that need x_p, and the loss at x_0, row by row: what is done is in `table` at any time.

        Args:
            reference: x_p.
            track: shows progress over steps.
        """
        self.reference = reference
        waiting = [probe.step for probe in self.table if not probe.evaluated]
        with self.replayer.silence():
            for step in sorted({waiting[0], waiting[len(waiting) // 2], waiting[-1]}) if waiting else []:
                self._try(step, self._check_stored)
            waiting = [step for step in waiting if step in self.schedule.kept]
            with self._swap.to(reference.parameters):
                for step in track(waiting, "probes at x_p"):
                    self._try(step, self._evaluate_stored)
            self._evaluate_initial(track)

    def _try(self, step: int, evaluate: Callable[[int], None]) -> None:
        """Evaluate a stored probe; a row that cannot be evaluated is dropped and counted."""
        try:
            evaluate(step)
        except NotMeasurable:
            self._lose(step, "unevaluable")

    def _lose(self, step: int, why: str) -> None:
        """Take a kept row out of the table and count it."""
        self.dropped[why] += 1
        self.schedule.kept = [kept for kept in self.schedule.kept if kept != step]
        self._forget([step])

    def _check_stored(self, step: int) -> None:
        (probe,) = (probe for probe in self.table if probe.step == step)
        with self._swap.to(self._here(step)):
            self.fidelity.note(step, abs(self.replayer.mean_loss(self.store.moments(step)) - probe.loss))

    def _here(self, step: int) -> dict[str, Tensor]:
        """Return every stored parameter of a step, as far as the module still has it."""
        here = self.store.parameters(step)
        return {name: here[name] for name in named_parameters(self._module) if name in here}

    def _others_at(self, step: int, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what else than ``trained`` was stored at a step: a target network, as it was then."""
        there = named_parameters(self._module)
        return {n: value for n, value in self.store.others(step).items() if n in there and n not in trained}

    def _evaluate_stored(self, step: int) -> None:
        assert self.reference is not None
        there, here, gradient = self.reference.parameters, self._here(step), self.store.gradient(step)
        missing = [name for name in there if name not in here]
        if missing:
            raise NotMeasurable(f"the values of {missing} at step {step} were not stored")
        device = self._module.device
        product, distance = inner_product_and_distance(
            {name: here[name].to(device) for name in there}, there, _on(gradient.raw, device), gradient.factor
        )
        with self._swap.to(self._others_at(step, there)):
            loss = self.replayer.mean_loss(self.store.moments(step))
        if is_finite(product, distance, loss):
            self.table = self.table.replaced(step, reference_loss=loss, inner_product=product, sq_distance=distance)
        else:
            self._lose(step, "non_finite")

    def _evaluate_initial(self, track: Callable[[Sequence[int], str], Iterable[int]]) -> None:
        assert self.reference is not None
        if not self.schedule.kept or self.schedule.kept[0] not in self.store:
            return
        first = self._here(self.schedule.kept[0])
        start = {name: first[name] for name in self.reference.parameters if name in first}
        chosen = [step for step in evenly(self.schedule.kept, INITIAL_LOSSES) if step in self.store]
        with self._swap.to(start):
            for step in track(chosen, "probes at x_0"):
                with self._swap.to(self._others_at(step, start)):
                    loss = self.replayer.mean_loss(self.store.moments(step))
                self.table = self.table.replaced(step, initial_loss=loss if is_finite(loss) else None)

    # ------------------------------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain numbers and text."""
        return {
            "rows": [to_scalars(probe) for probe in self.table],
            "stride": self.schedule.stride,
            "next_step": self.schedule.next_step,
            "dropped": dict(self.dropped),
            "digests": {str(step): list(known) for step, known in self.store.digests.items()},
            "fidelity": {"steps": list(self.fidelity.steps), "max_abs": self.fidelity.max_abs},
            "gradients_enabled": self.replayer.gradients_enabled,
            "seconds": self.seconds,
        }

    def adopt(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from a checkpoint: link the probes before it from the store in ``folder``, which is not changed."""
        rows = ProbeTable(from_scalars(row) for row in state["rows"])
        kept = [probe.step for probe in rows]
        self.schedule.kept, self.schedule.stride = list(kept), state["stride"]
        self.schedule.next_step = state["next_step"]
        there = {step for step in kept if self.store.adopt(folder, step, state["digests"].get(str(step), []))}
        # the run may have gone on after the checkpoint and thinned its table before it ended: then so do we
        while len(kept) > 2 and not there.issuperset(kept) and there.issuperset(kept[::2]):
            self.schedule.thin()
            kept = list(self.schedule.kept)
        usable = [probe for probe in rows if probe.step in kept and (probe.evaluated or probe.step in there)]
        self.schedule.kept = [probe.step for probe in usable]
        self.table = ProbeTable(usable)
        for step in there.difference(self.schedule.kept):
            self.store.drop(step)
        self.dropped = dict(state["dropped"])
        self.dropped["unevaluable"] += len(kept) - len(usable)
        self.fidelity = Fidelity(list(state["fidelity"]["steps"]), state["fidelity"]["max_abs"])
        self.replayer.gradients_enabled = state["gradients_enabled"]
        self.seconds = state["seconds"]


def _on(tensors: Mapping[str, Tensor], device: Any) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
