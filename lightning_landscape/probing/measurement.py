"""One training run measured: which windows become rows of the table of probes, and when their columns are known."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.probes import Probe, ProbeTable, from_scalars, to_scalars
from lightning_landscape.probing.evaluation import StoredProbes
from lightning_landscape.probing.fidelity import Fidelity, FidelityCheck
from lightning_landscape.probing.gradients import is_finite, loss_scale
from lightning_landscape.probing.layers import layer_rows
from lightning_landscape.probing.parameters import (
    Swap,
    copied,
    fingerprint,
    inner_product_and_distance,
    measure_step,
    named_parameters,
    optimized_parameters,
    sq_change,
)
from lightning_landscape.probing.reference import Reference
from lightning_landscape.probing.replay import Loss, NotMeasurable, Replayer
from lightning_landscape.probing.schedule import Schedule, evenly
from lightning_landscape.probing.store import Kept, ProbeStore
from lightning_landscape.probing.sums import StepSums
from lightning_landscape.probing.window import Guard, Window
from lightning_landscape.records import LayerRow, SegmentPoint

INITIAL_LOSSES = 32
"""On so many kept probes, at most, the loss at x_0 is evaluated"""

FRACTIONS = tuple(part / 10 for part in range(11))
"""Where on a line from an iterate to x_p the loss is evaluated"""

PROVISIONAL = 64
"""So many probes, at most, are evaluated at an iterate of the run before x_p is known"""

Track = Callable[[Sequence[int], str], Iterable[int]]


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
        secant: whether each probe's mini-batch gradient is taken at x_{k+1} too.
        exact_sums: whether every step is measured for the sums over steps.
        per_layer: whether the parts of the module are told apart.
        segments: from how many iterates, x_0 among them, the loss on the line to x_p is evaluated.
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
        secant: bool = False,
        exact_sums: bool = False,
        per_layer: bool = False,
        segments: int = 0,
    ) -> None:
        self._trainer, self._module, self._optimizer = trainer, module, optimizer
        self._loss_infimum, self._guard = loss_infimum, guard
        self.schedule, self.store, self.reference = schedule, store, reference
        self.table = ProbeTable()
        self.dropped = {"non_finite": 0, "no_loss": 0, "unevaluable": 0}
        self.seconds = 0.0
        """Time spent here while training"""
        self.replay_seconds = 0.0
        """Time of the first evaluation of a loss"""
        self.replayer = Replayer(trainer, module, loss)
        self._checks = FidelityCheck(trainer, module, optimizer, self.replayer)
        self._swap = Swap(module)
        self._stored = StoredProbes(module, store, self.replayer, self._swap)
        self._window: Window | None = None
        self._disk_full = False
        self.secants: dict[int, float] | None = {} if secant else None
        """‖∇f_{i_k}(x_{k+1}) − ∇f_{i_k}(x_k)‖² by step; None where it was not asked for"""
        self._left: tuple[list[str], Tensor] | None = None
        """The parameters as the newest probe's step left them: their names, and elements of them"""
        self.moved_between = 0
        """Probes after whose step something else moved the parameters"""
        self.off_schedule = 0
        """Probes whose step was not lr times the gradient: something clipped or changed it, or the optimiser is no SGD"""
        self.learning_rates: tuple[float, float] | None = None
        """The smallest and the largest learning rate over the probes; ``nan`` where parameter groups have several"""
        self.layers: dict[int, list[LayerRow]] | None = {} if per_layer else None
        """What the parts of the module contribute, by step; None where it was not asked for"""
        self.segments: list[SegmentPoint] = []
        """Losses on the straight lines from some iterates to x_p"""
        self._lines = segments
        self.sums = StepSums(trainer, module, optimizer) if exact_sums else None

    @property
    def fidelity(self) -> Fidelity:
        """How well replays gave what training recorded."""
        return self._checks.found

    # ------------------------------------------------------------------------------------------------ while training

    @property
    def watching(self) -> bool:
        """Whether a window is being measured."""
        return self._window is not None

    @property
    def gradient_taken(self) -> bool:
        """Whether the window has come to the optimiser's step."""
        return self._window is not None and self._window.stepping

    def watch(self, step: int, spacing: float = 0.0) -> list[int]:
        """Watch the batch that is about to start, if its step is due; return the steps that were thinned out.

        Args:
            step: the step that is about to be made.
            spacing: steps between probes that a budget asks for, at least.
        """
        with self._timed():
            dropped = [] if self._window else self.schedule.make_room(step, spacing)
            self._forget(dropped)
            if self._window is None and self.schedule.due(step):
                self._window = Window(
                    step,
                    trainer=self._trainer,
                    module=self._module,
                    optimizer=self._optimizer,
                    store=self.store,
                    replayer=self.replayer,
                    guard=self._timed_and_guarded,
                )
            if self._window is not None:
                self._window.watch()
        return dropped

    def check_nothing_moved(self) -> None:
        """Note whether the parameters are still where the newest probe's step left them, when the next batch starts."""
        if self._left is None:
            return
        with self._timed():
            (names, left), self._left = self._left, None
            parameters = named_parameters(self._module)
            here = all(name in parameters for name in names)  # pruning renames them
            now = fingerprint({name: parameters[name] for name in names}) if here else left.new_zeros(0)
            self.moved_between += not (here and torch.allclose(now, left, rtol=0, atol=0, equal_nan=True))

    def look_away(self) -> None:
        """Stop watching ``training_step`` until the next batch."""
        if self._window is not None:
            self._window.look_away()

    def forget_gradients(self) -> None:
        """Note that gradients are about to be zeroed."""
        if self._window is not None and not self._window.stepping:
            self._window.forget_gradients()

    def abandon(self) -> None:
        """Leave the run as if there were no measurement: at an interrupt, a failure, or the end."""
        self.look_away()
        self._window = None
        self._swap.recover()

    def read_gradient(self) -> None:
        """Take x_k and g_k: everything is accumulated and nothing has moved."""
        if self._window is None:
            return
        with self._timed():
            self._window.take()
            if self._window.measurable and not self.schedule.kept:
                self._check_first(self._window)

    def _check_first(self, window: Window) -> None:
        """Refuse, before the first step is made, what the first window shows."""
        if window.loss < self._loss_infimum:
            raise MisconfigurationException(
                f"LandscapeMonitor found the loss {window.loss:.6g} at step {window.step}, below loss_infimum="
                f"{self._loss_infimum:g}; supported is a lower bound of every mini-batch loss: pass a smaller loss_infimum="
            )
        if self.reference is None:
            self.store.note_size(window.kept())
            self.store.require_room()

    def finish(self) -> Probe | None:
        """Complete the window after the optimiser's step; return its row, or None where it is not measurable."""
        window, self._window = self._window, None
        if window is None:
            return None
        window.look_away()
        with self._timed():
            if not window.measurable:
                self._miss(window.step, "no_loss")
                return None
            self._left = (list(window.before), fingerprint(window.after()))
            probe = self._measure(window)
            if probe is not None and not self.schedule.kept:
                self._check_replay(window)
            change = self._change_or_nan(window) if probe is not None and self.secants is not None else math.nan
            if probe is not None and self.reference is not None:
                probe = self._at_reference(probe, window, self.reference)
            if probe is None:
                self._miss(window.step, "non_finite")
            else:
                self._keep(probe, window)
                if self.secants is not None and is_finite(change):
                    self.secants[probe.step] = change
            return probe

    def _change_or_nan(self, window: Window) -> float:
        """Return the change of the gradient; where it cannot be had, the secants are given up and nothing else."""
        try:
            return self._gradient_change(window)
        except Exception as error:
            self.secants = None
            rank_zero_warn(
                f"LandscapeMonitor(secant=True) could not take the gradient again, {type(error).__name__}: {error}. Supported "
                "are modules that torch.autograd.grad goes through (checkpointing with use_reentrant=False); all else goes on"
            )
            return math.nan

    def _gradient_change(self, window: Window) -> float:
        """Return ‖∇f_{i_k}(x_{k+1}) − ∇f_{i_k}(x_k)‖²: the same mini-batch once more, where the step has led to."""
        parameters = optimized_parameters(self._module, self._optimizer)
        scale = loss_scale(self._trainer)
        with self.replayer.silence(), self._swap.to(self._others_of(window)):
            _, there = self.replayer.mean_loss_and_gradient(window.moments, parameters, scale)
        here = window.gradient
        return sq_change(there, 1 / (scale * len(window.moments)), here.raw, here.factor)

    def _others_of(self, window: Window) -> Mapping[str, Tensor]:
        """Return the parameters that the optimiser does not hold as the loss saw them, where they are not so any more.

        What the window did not copy was as it was stored last; since then a hook may have moved it (a teacher, an average).
        """
        if window.others:
            return window.others
        trained = optimized_parameters(self._module, self._optimizer)
        now = {n: p.detach() for n, p in named_parameters(self._module).items() if n not in trained}
        return self.store.newest_others() if self.store.others_changed(now) else {}

    def count_step(self, step: int) -> None:
        """Add the step that was just made to the sums over all steps, if these are asked for."""
        if self.sums is not None:
            with self._timed():
                self.sums.add(step, self.schedule.kept[0] if self.schedule.kept else None)

    def _measure(self, window: Window) -> Probe | None:
        measures = measure_step(window.before, window.after(), window.gradient.raw, window.gradient.factor)
        if not is_finite(window.loss, *measures):
            return None
        rounding = measures.residual / math.sqrt(measures.grad_sq_norm) if measures.grad_sq_norm else math.inf
        self._note_learning_rate(math.nan if window.lr is None else window.lr)
        lr = window.lr * window.share if window.lr is not None else math.nan
        if not abs(measures.step_size - lr) <= 1e-3 * abs(lr) + rounding:
            self.off_schedule += 1
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

    def _note_learning_rate(self, lr: float) -> None:
        low, high = self.learning_rates or (lr, lr)
        several = math.isnan(low + lr)
        self.learning_rates = (math.nan, math.nan) if several else (min(low, lr), max(high, lr))

    def _check_replay(self, window: Window) -> None:
        """Replay the first probe at x_k, at once: its loss, and its gradient."""
        with self.replayer.silence(), self._swap.to(self._others_of(window), window.before):
            started = time.perf_counter()
            self._checks.loss(window.step, window.loss, window.moments)
            self.replay_seconds = time.perf_counter() - started
            self._checks.gradient(window.gradient, window.moments)

    def _at_reference(self, probe: Probe, window: Window, reference: Reference) -> Probe | None:
        """Fill the columns that need x_p, while x_k and g_k are at hand."""
        there, gradient = reference.parameters, window.gradient
        product, distance = inner_product_and_distance(window.before, there, gradient.raw, gradient.factor)
        with self.replayer.silence(), self._swap.to(self._others_of(window), there):
            loss = self.replayer.mean_loss(window.moments)
        if not is_finite(product, distance, loss):
            return None
        if self.layers is not None:
            self.layers[probe.step] = layer_rows(probe, window.before, there, gradient)
        return probe.with_values(reference_loss=loss, inner_product=product, sq_distance=distance)

    def _keep(self, probe: Probe, window: Window) -> None:
        self.schedule.keep(probe.step)
        self.table = self.table.merged([probe])
        if self.reference is None:
            self._write(probe.step, window.kept())
            self.schedule.limit(self.store.capacity or 2)
        else:
            self._keep_for_initial_loss(window)

    def _keep_for_initial_loss(self, window: Window) -> None:
        """With x_p at hand the row is complete but for its loss at x_0: keep x_0, and the batches chosen for it."""
        first, chosen = self.schedule.kept[0], evenly(self.schedule.kept, INITIAL_LOSSES)
        for step in self.schedule.kept:
            if step not in chosen:
                self.store.drop(step)
        if window.step in chosen:
            with suppress(OSError):  # a full disk costs the loss at x_0 of this row, no more
                self.store.write(window.step, window.kept(parameters=window.step == first, gradient=False))

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
                for rows in (self.secants, self.layers):
                    if rows is not None:
                        rows.pop(step, None)

    def _miss(self, step: int, why: str) -> None:
        """Count a probe that could not be measured."""
        self.dropped[why] += 1
        self.schedule.skip(step)

    def _lose(self, step: int, why: str) -> None:
        """Take a kept row out of the table and count it."""
        self.dropped[why] += 1
        self.schedule.kept = [kept for kept in self.schedule.kept if kept != step]
        self._forget([step])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def _timed_and_guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def timed(*args: Any) -> None:
            with self._timed():
                function(*args)

        return self._guard(timed)

    # ------------------------------------------------------------------------------------------------------- at the end

    def current_parameters(self) -> dict[str, Tensor]:
        """Return a copy of the optimiser's parameters as they are now."""
        return copied(optimized_parameters(self._module, self._optimizer))

    def evaluate(self, reference: Reference, track: Track) -> None:
        """Fill the columns that need x_p, and the loss at x_0, row by row: what is done is in `table` at any time.

        Args:
            reference: x_p.
            track: shows progress over steps.
        """
        waiting = [probe.step for probe in self.table if not probe.evaluated]
        with self.replayer.silence():
            for step in sorted({waiting[0], waiting[len(waiting) // 2], waiting[-1]}) if waiting else []:
                self._unless_gone(step, self._check_stored)
            waiting = [step for step in waiting if step in self.schedule.kept]
            for step in track(waiting, "probes at x_p"):
                self._unless_gone(step, functools.partial(self._evaluate_stored, reference))
            self._evaluate_initial(reference, track)
            self._evaluate_segments(reference, track)

    def _unless_gone(self, step: int, evaluate: Callable[[int], None]) -> None:
        """Evaluate a stored probe; a row whose probe is gone is dropped and counted."""
        try:
            evaluate(step)
        except NotMeasurable:
            self._lose(step, "unevaluable")

    def _check_stored(self, step: int) -> None:
        with self._stored.itself(step) as (moments, gradient):
            self._checks.loss(step, self.table.at_step(step).loss, moments)
            self._checks.gradient(gradient, moments)

    def _evaluate_stored(self, reference: Reference, step: int) -> None:
        values = self._stored.at_reference(step, reference.parameters)
        if is_finite(*values):
            self.table = self.table.merged([self.table.at_step(step).with_values(**values._asdict())])
            if self.layers is not None:
                x, gradient = self._stored.iterate(step, reference.parameters), self._stored.gradient(step)
                self.layers[step] = layer_rows(self.table.at_step(step), x, reference.parameters, gradient)
        else:
            self._lose(step, "non_finite")

    def _evaluate_initial(self, reference: Reference, track: Track) -> None:
        chosen = [step for step in evenly(self.schedule.kept, INITIAL_LOSSES) if step in self.store]
        if not chosen or chosen[0] != self.schedule.kept[0]:
            return  # x_0 itself is gone
        start = self._stored.start(chosen[0], reference.parameters)
        for step in track(chosen, "probes at x_0"):
            loss = self._stored.elsewhere(step, start)
            if is_finite(loss):
                self.table = self.table.merged([self.table.at_step(step).with_values(initial_loss=loss)])

    def _evaluate_segments(self, reference: Reference, track: Track) -> None:
        """Evaluate some probes' losses on the straight lines from their iterates to x_p; the ends are known."""
        chosen = evenly(self.schedule.kept, self._lines) if self._lines else []
        for step in track([step for step in chosen if self.store.holds_iterate(step)], "lines to x_p"):
            if not self._evaluate_segment(step, reference):
                return

    def _evaluate_segment(self, step: int, reference: Reference) -> bool:
        """Evaluate one line; return whether others are worth trying."""
        try:
            inside = [self._stored.between(step, reference.parameters, fraction) for fraction in FRACTIONS[1:-1]]
        except NotMeasurable:
            return True
        except Exception as error:  # between two points that it knows a module may be where it cannot be
            rank_zero_warn(
                f"LandscapeMonitor could not evaluate the line from step {step} to x_p, {type(error).__name__}: {error}; "
                "there are no further lines, all else goes on"
            )
            return False
        probe = self.table.at_step(step)
        points = zip(FRACTIONS, [probe.loss, *inside, probe.reference_loss], strict=True)
        self.segments += [SegmentPoint(step, t, loss) for t, loss in points if loss is not None and is_finite(loss)]
        return True

    def evaluations(self, kept: int) -> int:
        """Return how many evaluations of a loss so many kept probes take when training ends, at most."""
        at_reference, lines = (kept, min(kept, self._lines)) if self.reference is None else (0, min(1, self._lines))
        return at_reference + min(kept, INITIAL_LOSSES) + lines * (len(FRACTIONS) - 2)

    def provisional(self) -> ProbeTable:
        """Return the probes kept so far, at most `PROVISIONAL` of them, evaluated at the current iterate in the place of x_p.

        What is in the store is evaluated, nothing of `table` changes.
        """
        with self._timed(), self.replayer.silence():
            there, rows = self.current_parameters(), []
            for step in evenly(self.schedule.kept, PROVISIONAL):
                with suppress(NotMeasurable):
                    values = self._stored.at_reference(step, there)
                    if is_finite(*values):
                        rows.append(self.table.at_step(step).with_values(**values._asdict()))
        return ProbeTable(rows)

    # ------------------------------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain numbers and text."""
        return {
            "rows": [to_scalars(probe) for probe in self.table],
            "stride": self.schedule.stride,
            "next_step": self.schedule.next_step,
            "dropped": dict(self.dropped),
            "digests": {str(step): list(known) for step, known in self.store.digests.items()},
            "fidelity": asdict(self.fidelity),
            "gradients_enabled": self.replayer.gradients_enabled,
            "seconds": self.seconds,
            "off_schedule": self.off_schedule,
            "moved_between": self.moved_between,
            "learning_rates": None if self.learning_rates is None else list(self.learning_rates),
            "secants": None if self.secants is None else {str(step): change for step, change in self.secants.items()},
            "layers": None if self.layers is None else [astuple(row) for rows in self.layers.values() for row in rows],
            "exact_sums": self.sums.state() if self.sums is not None else None,
        }

    def adopt(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from a checkpoint: link the probes before it from the store in ``folder``, which is not changed."""
        rows = ProbeTable(from_scalars(row) for row in state["rows"])
        self.schedule.kept = [probe.step for probe in rows]
        self.schedule.stride, self.schedule.next_step = state["stride"], state["next_step"]
        there = {step for step in self.schedule.kept if self.store.adopt(folder, step, state["digests"].get(str(step), []))}
        # the run may have gone on after the checkpoint and thinned its table before it ended: then so do we
        while len(kept := self.schedule.kept) > 2 and not there.issuperset(kept) and there.issuperset(kept[::2]):
            self.schedule.thin()
        expected = self.schedule.kept
        usable = [probe for probe in rows if probe.step in expected and (probe.evaluated or probe.step in there)]
        self.table, self.schedule.kept = ProbeTable(usable), [probe.step for probe in usable]
        for step in there.difference(self.schedule.kept):
            self.store.drop(step)
        self.dropped = {**state["dropped"], "unevaluable": state["dropped"]["unevaluable"] + len(expected) - len(usable)}
        known = state["fidelity"]
        self._checks.found = Fidelity(list(known["steps"]), known["max_abs"], known.get("gradient"))
        self.replayer.gradients_enabled = state["gradients_enabled"]
        self.seconds = state["seconds"]
        self.off_schedule, self.moved_between = state.get("off_schedule", 0), state.get("moved_between", 0)
        rates = state.get("learning_rates")
        self.learning_rates = None if rates is None else (rates[0], rates[1])
        if self.secants is not None and state.get("secants") is not None:
            self.secants = {int(k): change for k, change in state["secants"].items() if int(k) in self.schedule.kept}
        if self.layers is not None:
            for row in itertools.starmap(LayerRow, state.get("layers") or []):
                if row.step in self.schedule.kept:
                    self.layers.setdefault(row.step, []).append(row)
        if self.sums is not None and state.get("exact_sums") is not None:
            self.sums.adopt(state["exact_sums"])
