"""One training run measured: which windows become rows of the table of probes, and when their columns are known."""

from __future__ import annotations

import copy
import functools
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.evaluation.completion import (
    INITIAL_LOSSES,
    Completion,
    Track,
    warn_held_out,
)
from lightning_landscape.evaluation.fidelity import Fidelity, FidelityCheck, There
from lightning_landscape.evaluation.reference import FINAL, Reference
from lightning_landscape.evaluation.replay import Loss, Replayer
from lightning_landscape.evaluation.stored_probes import Itself, StoredProbes
from lightning_landscape.extras.held_out import HeldOut, Source
from lightning_landscape.extras.layers import layer_rows
from lightning_landscape.extras.per_sample import MIXING, PerSample
from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.recording.every_step import StepSums
from lightning_landscape.recording.rows import Rows
from lightning_landscape.recording.schedule import Schedule, evenly
from lightning_landscape.recording.window import Window
from lightning_landscape.store.kept import Kept
from lightning_landscape.store.store import ProbeStore
from lightning_landscape.training.failures import said, warn_once
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.gradients import is_finite, loss_scale
from lightning_landscape.vectors.parameters import (
    Swap,
    copied,
    fingerprint,
    local_values,
    named_parameters,
    optimized_parameters,
)
from lightning_landscape.vectors.products import Products
from lightning_landscape.vectors.sharding import is_sharded, shares


class Measurement:
    """Measures the probes of one ``fit``, in step with the other processes of the run.

    What waits for the other processes is to be called by all of them, in a block of `Processes.agreed`; only `take_sums` and
    `count_step` (unless parameters are sharded), `forget_gradients`, `forget_batches` and `check_nothing_moved` wait for none.

    Args:
        trainer: the trainer, in ``fit``.
        module: the module in training.
        optimizer: its optimiser.
        processes: those of the run.
        schedule: which steps are probed.
        store: where kept probes wait for x_p.
        loss: the user's loss; None for the module's own ``training_step``.
        loss_infimum: l, a lower bound of every mini-batch loss.
        reference: x_p; None while it is not known (the last iterate of this run).
        secant: whether each probe's mini-batch gradient is taken at x_{k+1} too.
        exact_sums: whether every step is measured for the sums over steps.
        per_layer: whether the parts of the module are told apart.
        segments: from how many iterates, x_0 among them, the loss on the line to x_p is evaluated.
        held_out: where batches are from that did not make the trajectory; None for none.
        fixed_batches: how many of the first of those are evaluated at every probe.
        per_sample: whether the loss is one of single samples, evaluated too; "mixing" where they depend on each other.
    """

    def __init__(
        self,
        *,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        processes: Processes,
        schedule: Schedule,
        store: ProbeStore,
        loss: Loss | None,
        loss_infimum: float,
        reference: Reference | None,
        secant: bool = False,
        exact_sums: bool = False,
        per_layer: bool = False,
        segments: int = 0,
        held_out: Source | None = None,
        fixed_batches: int = 0,
        per_sample: bool | str = False,
    ) -> None:
        self._trainer, self._module, self._optimizer, self._processes = (
            trainer,
            module,
            optimizer,
            processes,
        )
        self._loss_infimum, self.reference = loss_infimum, reference
        parameters = named_parameters(module)
        self.sharded = any(map(is_sharded, parameters.values()))
        """Whether each process has its own part of the parameters"""
        self._products = Products()
        if self.sharded:
            store.encoder.shares = shares(parameters, processes.size)
            self._products = Products(processes, store.encoder.shares)
        self.rows = Rows(schedule, store, processes, secant=secant, per_layer=per_layer)
        self.seconds = 0.0
        """Time spent here while training"""
        self.replay_seconds = 0.0
        """Time of the first evaluation of a loss"""
        self.replayer = Replayer(trainer, module, loss, processes, self.sharded, bool(per_sample))
        self._checks = FidelityCheck(
            trainer, module, optimizer, self.replayer, processes, self._products
        )
        self._swap = Swap(module, store.memory.copied)
        stored = StoredProbes(
            module,
            store,
            self.replayer,
            self._swap,
            processes,
            self._products,
            sharded=self.sharded,
        )
        self._stores_iterates = stored.measures
        self._held_out: HeldOut | None = None
        if held_out is not None:
            self._held_out = HeldOut(
                trainer,
                module,
                optimizer,
                held_out,
                fixed=fixed_batches,
                replayer=self.replayer,
                processes=processes,
                products=self._products,
                measures=stored.measures,
            )
        self.per_sample: PerSample | None = None
        """Evaluates single samples, where that was asked for"""
        if per_sample:
            self.per_sample = PerSample(
                trainer,
                module,
                replayer=self.replayer,
                processes=processes,
                products=self._products,
                sharded=self.sharded,
                mixing=per_sample == MIXING,
            )
        self._completion = Completion(
            self.rows,
            stored,
            self._checks,
            processes,
            self._products,
            segments=segments,
            held_out=self._held_out,
            per_sample=self.per_sample,
        )
        self._window: Window | None = None
        self._problem: Exception | None = None
        """What failed in this process alone, between probes, or in the first probe's replay: told where all come together"""
        self._left: tuple[list[str], Tensor] | None = None
        """The parameters as the newest probe's step left them: their names, and elements of them"""
        self.moved_between = 0
        """Probes after whose step something else moved the parameters"""
        self.stored_bytes = 0
        """Bytes that all processes had stored when the evaluation ended"""
        self.off_schedule = 0
        """Probes whose step was not lr times the gradient: something clipped or changed it, or the optimiser is no SGD"""
        self.learning_rates: tuple[float, float] | None = None
        """The smallest and the largest learning rate over the probes; ``nan`` where parameter groups have several"""
        summing = exact_sums and (
            self.sharded or processes.first
        )  # where all have the same parameters, one adds
        self.sums = StepSums(trainer, module, optimizer, self._products) if summing else None

    @property
    def schedule(self) -> Schedule:
        """Which steps are probed."""
        return self.rows.schedule

    @property
    def table(self) -> ProbeTable:
        """The rows so far."""
        return self.rows.table

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

    def watch(self, step: int, spacing: float = 0.0, *, may_refuse: bool = False) -> list[int]:
        """Watch the batch that is about to start, if its step is due; return the steps that were thinned out.

        Args:
            step: the step that is about to be made.
            spacing: steps between probes that a budget asks for, at least.
            may_refuse: whether no optimiser step was made yet.
        """
        with self._timed():
            dropped = [] if self._window else self.schedule.make_room(step, spacing)
            self.rows.forget(dropped)
            if self._window is None and self.schedule.due(step):
                self._window = Window(
                    step,
                    trainer=self._trainer,
                    module=self._module,
                    optimizer=self._optimizer,
                    store=self.rows.store,
                    replayer=self.replayer,
                    processes=self._processes,
                    timed=self._timing,
                    may_refuse=may_refuse,
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
            now = (
                fingerprint({name: parameters[name] for name in names})
                if here
                else left.new_zeros(0)
            )
            same = here and (
                torch.equal(now, left) or torch.allclose(now, left, rtol=0, atol=0, equal_nan=True)
            )
            self.moved_between += not same

    def look_away(self) -> None:
        """Stop watching ``training_step`` until the next batch."""
        if self._window is not None:
            self._window.look_away()

    def forget_gradients(self) -> None:
        """Note that gradients are about to be zeroed."""
        if self._window is not None and not self._window.stepping:
            self._window.forget_gradients()

    def forget_batches(self) -> None:
        """Note that the step which is about to be made is of no batch; its probe is missed."""
        if self._window is not None:
            self._window.forget_batches()

    def abandon(self) -> None:
        """Leave the run as if there were no measurement: at an interrupt, a failure, or the end."""
        self.look_away()
        self._window = None
        self._swap.recover()

    def note(self, problem: Exception) -> None:
        """Remember what failed while the others, or training, go on: all stop together where a probe is taken or finished."""
        self._problem = self._problem or problem

    def _raise_noted(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def read_gradient(self) -> None:
        """Take x_k and g_k: everything is accumulated and nothing has moved."""
        if self._window is None:
            return
        with self._timed():
            self._raise_noted()
            self._window.take()
            if self._window.measurable and not self.schedule.kept:
                self._check_first(self._window)
                if self._replays_before_steps:
                    self._check_replay(self._window, self._there_before(self._window))
            if self._problem is None:
                self._window.hold_gradient()

    def _check_first(self, window: Window) -> None:
        """Refuse, before the first step is made, what the first window shows."""
        if window.loss < self._loss_infimum:
            raise MisconfigurationException(
                f"LandscapeMonitor found the loss {window.loss:.6g} at step {window.step}, below loss_infimum="
                f"{self._loss_infimum:g}; supported is a lower bound of every mini-batch loss: pass a smaller loss_infimum="
            )
        if self.reference is None:
            self.rows.store.note_size(self._kept(window))
            self.rows.store.require_room()
        if self.per_sample is not None and self._completion.takes_samples:
            self._check_samples(self.per_sample, window)

    def _check_samples(self, per_sample: PerSample, window: Window) -> None:
        """See what the first probe's samples are; what is refused before the first step costs the samples alone after it."""
        trained = self._processes_mean(window.training_loss)
        try:
            with self._processes.agreed(), self.replayer.silence():
                per_sample.check(window.moments[0], window.loss, trained)
        except Exception as error:
            if window.may_refuse:
                raise
            self._completion.give_samples_up(error, window.step)

    def _processes_mean(self, value: float | None) -> float | None:
        known = self._processes.everywhere(value is not None)
        return self._processes.mean(value) if known and value is not None else None

    def finish(self) -> Probe | None:
        """Complete the window after the optimiser's step; return its row, or None where it is not measurable."""
        window, self._window = self._window, None
        if window is None:
            return None
        window.look_away()
        with self._timed():
            self._raise_noted()
            if not window.measurable:
                self.rows.miss(window.step, "no_loss")
                return None
            after = window.after()
            self._left = (list(after), fingerprint(after))
            probe = self._measure(window, after)
            if probe is not None and not self.schedule.kept and not self._replays_before_steps:
                self._check_replay(window, self._there_after(window))
                self._raise_noted()
            change = (
                self._change_or_nan(window)
                if probe is not None and self.rows.secants is not None
                else math.nan
            )
            if probe is not None and self.reference is not None:
                probe = self._at_reference(probe, window, self.reference)
            if probe is None:
                self.rows.miss(window.step, "non_finite")
            else:
                self._keep(probe, window)
                if self._held_out is not None and self.reference is not None:
                    self._hold_out(window, self.reference)
                if self._completion.takes_samples and self.reference is not None:
                    self._take_samples(window, self.reference)
                if self.rows.secants is not None and is_finite(change):
                    self.rows.secants[probe.step] = change
            return probe

    def _change_or_nan(self, window: Window) -> float:
        """Return the change of the gradient; where it cannot be had, the secants are given up and nothing else."""
        parameters = optimized_parameters(self._module, self._optimizer)
        scale = loss_scale(self._trainer)
        try:
            with (
                self._processes.agreed(),
                self.replayer.silence(),
                self._swap.to(self._others_of(window)),
            ):
                _, there = self.replayer.mean_loss_and_gradient(window.moments, parameters, scale)
        except Exception as error:
            self.rows.secants = None
            warn_once(
                error,
                f"LandscapeMonitor(secant=True) could not take the gradient again, {said(error)}. Supported are modules that "
                "torch.autograd.grad goes through (checkpointing with use_reentrant=False); all else goes on",
            )
            return math.nan
        here, there = window.gradient, self.replayer.averaged(there, parameters)
        factor = self.replayer.gradient_factor(window.moments, scale)
        return self._products.sq_change(there, factor, here.raw, here.factor)

    def _others_of(self, window: Window) -> Mapping[str, Tensor]:
        """Return the parameters that the optimiser does not hold as the loss saw them, where they are not so any more.

        What the window did not copy was as it was stored last; since then a hook may have moved it (a teacher, an average).
        """
        now = local_values(
            {n: p for n, p in named_parameters(self._module).items() if n not in window.before}
        )
        store = self.rows.store
        others = window.others or (
            store.newest_others() if now and store.others_changed(now) else {}
        )
        return {
            n: value for n, value in others.items() if n in now
        }  # what has joined the optimiser since is x, and moves

    def take_sums(self) -> None:
        """Copy x_k and g_k for the sums over all steps."""
        if self.sums is not None:
            with self._timed():
                self.sums.take()

    def count_step(self, step: int) -> None:
        """Add the step that was just made to the sums over all steps, if these are asked for."""
        if self.sums is not None:
            with self._timed():
                self.sums.add(step, self.schedule.kept[0] if self.schedule.kept else None)

    def _measure(self, window: Window, after: Mapping[str, Tensor]) -> Probe | None:
        lr = window.lr * window.share if window.lr is not None else math.nan
        gradient = window.gradient
        measures = self._products.step(
            window.before, after, gradient.raw, gradient.factor, expected=lr
        )
        self._check_agreement(window.step, measures.grad_sq_norm, measures.step_size)
        if not is_finite(window.loss, *measures):
            return None
        rounding = (
            measures.residual / math.sqrt(measures.grad_sq_norm)
            if measures.grad_sq_norm
            else math.inf
        )
        self._note_learning_rate(math.nan if window.lr is None else window.lr)
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

    def _check_agreement(self, step: int, *measures: float) -> None:
        """See whether all processes have the same gradient and made the same step; sharded ones have added theirs up.

        Raises:
            ValueError: if they have not: then there is no one x_k.
        """
        rows = self._processes.exchange(step, *measures)
        for own, row in zip(rows[0], zip(*rows, strict=True), strict=True):
            if not all(
                value == own or abs(value - own) <= 1e-5 * abs(own) or value != value
                for value in row
            ):
                raise ValueError(
                    f"found processes with different gradients or steps at step {step}: {row}; supported are strategies that "
                    "keep the parameters of all processes the same"
                )

    def _note_learning_rate(self, lr: float) -> None:
        low, high = self.learning_rates or (lr, lr)
        several = math.isnan(low + lr)
        self.learning_rates = (math.nan, math.nan) if several else (min(low, lr), max(high, lr))

    @property
    def _replays_before_steps(self) -> bool:
        """Whether the first probe is replayed before its step: neither x_{k+1} nor another gradient has to be kept meanwhile.

        Not where graphs of CUDA may have been captured: they leave gradients in memory that another forward pass takes.
        """
        return not (
            self._module.device.type == "cuda" and "torch._inductor.cudagraph_trees" in sys.modules
        )

    def _there_before(self, window: Window) -> There:
        """Return what puts the module to x_k before the step, where it is: no copy is made."""
        others = self._others_of(window)

        @contextmanager
        def there() -> Iterator[None]:
            with self._swap.back_to(window.before), self._swap.to(others):
                yield

        return there

    def _there_after(self, window: Window) -> There:
        """Return what puts the module to x_k after the step."""
        others = self._others_of(window)
        return lambda: self._swap.to(others, window.before)

    def _check_replay(self, window: Window, there: There) -> None:
        """Replay the first probe at x_k: its loss, and its gradient; a failure is noted, and told when the step has been made.

        Args:
            window: the probe's.
            there: puts the module to x_k.
        """
        size = self._products.sq_change(window.gradient.raw, window.gradient.factor, {}, 1.0)
        if not self._processes.everywhere(is_finite(window.loss, size)):
            return  # no probe
        try:
            with (
                self._processes.agreed(),
                self.replayer.silence(put_back={*self._others_of(window), *window.before}),
            ):
                started = time.perf_counter()
                self._checks.loss(window.step, window.local_loss, window.moments, there)
                self.replay_seconds = time.perf_counter() - started
                self._checks.gradient(window.gradient, window.moments, there)
        except Exception as error:  # nobody is to be refused for it
            self._swap.recover()
            traceback.clear_frames(
                error.__traceback__
            )  # else what the replay has made stays there while the step is made
            self.note(error.with_traceback(None))

    def _at_reference(self, probe: Probe, window: Window, reference: Reference) -> Probe | None:
        """Fill the columns that need x_p, while x_k and g_k are at hand."""
        there, x = reference.parameters, window.before
        raw, factor = window.gradient.raw, window.gradient.factor
        product, distance = self._products.inner_product_and_distance(x, there, raw, factor)
        layers = []
        if self.rows.layers is not None and self._stores_iterates:
            layers = layer_rows(probe, x, there, window.gradient, self._products)
        if self._held_out is None and not self._completion.takes_samples:
            del raw
            window.let_go_of_gradient()  # x_{k+1} takes its place
        others = self._others_of(window)
        with self.replayer.silence(put_back={*others, *there}), self._swap.to(others, there):
            loss = self._processes.mean(self.replayer.mean_loss(window.moments))
        if not is_finite(product, distance, loss):
            return None
        if self.rows.layers is not None and self._stores_iterates:
            self.rows.layers[probe.step] = layers
        return probe.with_values(reference_loss=loss, inner_product=product, sq_distance=distance)

    def _hold_out(self, window: Window, reference: Reference) -> None:
        """Evaluate held-out batches while x_k is at hand; where that cannot be, they are given up and nothing else."""
        try:
            with self._processes.agreed(), self._at_itself(window) as itself:
                self._completion.hold_out(window.step, itself, window.before, reference)
        except Exception as error:
            self._held_out = None
            warn_held_out(error, window.step)

    def _take_samples(self, window: Window, reference: Reference) -> None:
        """Evaluate single samples while x_k is at hand; where that cannot be, they are given up and nothing else."""
        try:
            with self._processes.agreed(), self._at_itself(window) as itself:
                self._completion.take_samples(window.step, itself, reference)
        except Exception as error:
            self._completion.give_samples_up(error, window.step)

    @contextmanager
    def _at_itself(self, window: Window) -> Iterator[Itself]:
        """Return a block in which other losses of a step may be evaluated; parameters are put back when it ends."""
        x = {**self._others_of(window), **window.before}
        with self.replayer.silence(put_back=x), self._swap.one_after_another():
            yield Itself(
                window.moments,
                x,
                list(window.gradient.raw),
                lambda *values: self._swap.to(x, *values),
            )

    def _keep(self, probe: Probe, window: Window) -> None:
        self.rows.add(probe)
        if self.reference is None:
            self.rows.write(probe.step, self._kept(window))
            capacity = self.rows.store.capacity
            least = self._processes.smallest(math.inf if capacity is None else capacity)
            if math.isfinite(least):
                self.schedule.limit(int(least))
        else:
            self._keep_for_initial_loss(window)

    def _kept(self, window: Window) -> Kept:
        """Return what this process stores of a window."""
        kept = window.kept(parameters=self._stores_iterates, gradient=self._stores_iterates)
        earlier = len(self.schedule.kept) - 1
        return replace(
            kept, natively=earlier & (earlier - 1) == 0
        )  # numbers 0, 1, 2, 4, …, which a thinning leaves in time

    def _keep_for_initial_loss(self, window: Window) -> None:
        """With x_p at hand the row is complete but for its loss at x_0: keep x_0, and the batches chosen for it."""
        first, chosen = self.schedule.kept[0], evenly(self.schedule.kept, INITIAL_LOSSES)
        for step in self.schedule.kept:
            if step not in chosen:
                self.rows.drop_stored(step)
        if window.step in chosen:
            start = window.step == first and self._stores_iterates
            self.rows.write_if_there_is_room(
                window.step, window.kept(parameters=start, gradient=False)
            )

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def _timing(self, function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def timed(*args: Any) -> None:
            with self._timed():
                function(*args)

        return timed

    # ------------------------------------------------------------------------------------------------------- at the end

    def current_parameters(self) -> dict[str, Tensor]:
        """Return a copy of the optimiser's parameters as they are now."""
        return copied(optimized_parameters(self._module, self._optimizer))

    def settle(self, *, together: bool) -> None:
        """Wait until what was measured is on disk; see to what could not be written.

        Args:
            together: whether the other processes are there.

        Raises:
            OSError: if the disk is full; what is lost by it is counted.
        """
        if self.reference is not None:
            self.rows.give_up_unwritten()
        elif together:
            self.rows.settle()
        else:
            self.rows.settle_alone()

    def evaluate(self, reference: Reference, track: Track) -> None:
        """Fill the columns that need x_p, row by row: what is done is in `table` at any time.

        Args:
            reference: x_p.
            track: shows progress over steps.
        """
        self._raise_noted()
        shared = set.intersection(*map(set, self._processes.of_each(self.schedule.kept)))
        for step in [
            step for step in self.schedule.kept if step not in shared
        ]:  # a failure may have come in between
            self.rows.lose(step, "unevaluable")
        with self.replayer.silence():
            self._completion.at(reference, track)
        rows = self._processes.exchange(self.moved_between, self.rows.store.nbytes)
        self.moved_between, self.stored_bytes = (
            int(max(row[0] for row in rows)),
            int(sum(row[1] for row in rows)),
        )

    def sq_distance(self, here: Mapping[str, Tensor], reference: Reference) -> float:
        """Return ‖x − x_p‖² for parameters x by name; ``nan`` where the reference does not have them all."""
        if any(name not in reference.parameters for name in here):
            return math.nan  # parameters that joined the optimiser late
        return self._products.inner_product_and_distance(here, reference.parameters, {}, 1.0)[1]

    def evaluations(self, kept: int) -> int:
        """Return how many evaluations of a loss so many kept probes take when training ends, at most."""
        return self._completion.evaluations(kept, live=self.reference is not None)

    def provisional(self) -> ProbeTable:
        """Return some of the probes kept so far, evaluated at the current iterate in the place of x_p."""
        with self._timed(), self.replayer.silence():
            return self._completion.provisional(
                Reference(self.current_parameters(), FINAL, None, None)
            )

    # ------------------------------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain numbers and text. What it tells of is on disk then, where that can be."""
        self.rows.store.wait()
        return {
            **self.rows.state(),
            "processes": self._processes.size,
            "fidelity": asdict(self.fidelity),
            "gradients_enabled": self.replayer.gradients_enabled,
            "about_samples": None
            if self.per_sample is None
            else copy.deepcopy(self.per_sample.about),
            "seconds": self.seconds,
            "off_schedule": self.off_schedule,
            "moved_between": self.moved_between,
            "learning_rates": None if self.learning_rates is None else list(self.learning_rates),
            "exact_sums": self.sums.state() if self.sums is not None else None,
        }

    def adopt(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from a checkpoint: link the probes before it from the store in ``folder``, which is not changed."""
        self.rows.adopt(state, folder)
        known = state["fidelity"]
        self._checks.found = Fidelity(list(known["steps"]), known["max_abs"], known.get("gradient"))
        self.replayer.gradients_enabled = state["gradients_enabled"]
        if self.per_sample is not None:
            self.per_sample.adopt(state.get("about_samples"))
        self.seconds = state["seconds"]
        self.off_schedule, self.moved_between = (
            state.get("off_schedule", 0),
            state.get("moved_between", 0),
        )
        rates = state.get("learning_rates")
        self.learning_rates = None if rates is None else (rates[0], rates[1])
        if self.sums is not None and state.get("exact_sums") is not None:
            self.sums.adopt(state["exact_sums"])
