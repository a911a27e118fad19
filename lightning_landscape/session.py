"""One ``fit``: steps are recorded while it trains, records are evaluated, findings are reported."""

from __future__ import annotations

import math
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_landscape.evaluation.evaluation import Evaluation
from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.evaluation.reference import FINAL, Reference
from lightning_landscape.extras import SAMPLES, started
from lightning_landscape.extras.extra import FOLLOWING
from lightning_landscape.files import STORE, store_of
from lightning_landscape.loading import load
from lightning_landscape.probes import SCHEMA, Probe, ProbeTable
from lightning_landscape.recording.clock import Clock, overhead
from lightning_landscape.recording.kept import KeptProbes
from lightning_landscape.recording.record import Record
from lightning_landscape.recording.recorder import Missed, Recorder
from lightning_landscape.recording.schedule import Schedule
from lightning_landscape.reporting import tensorboard
from lightning_landscape.reporting.folder import RunFolder, free_folder, parent_folder
from lightning_landscape.reporting.preflight import Plan, expected_probes, preflight
from lightning_landscape.reporting.reporter import Reporter
from lightning_landscape.settings import Settings
from lightning_landscape.store.codecs import NATIVE, bytes_of_probe, bytes_of_start
from lightning_landscape.store.room import store_budget
from lightning_landscape.store.store import RecordStore
from lightning_landscape.training import interrupts, lightning_compat, refusals
from lightning_landscape.training.description import describe_loss, describe_run, planned_steps
from lightning_landscape.training.failures import said, warn_once
from lightning_landscape.training.part import trained_elsewhere
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.parameters import local_values, named_parameters

LIVE_SHARE = 0.005
"""Largest share of the time of training that is spent on the present iterate, without losses"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended."""

    stopped_by: str
    """What ended it"""
    steps: int
    """K, the number of steps made"""
    idle_steps: int
    """Steps of this fit that had no gradient"""
    complete: bool
    """Whether training came to its end"""


class Session:
    """Measures one ``fit`` and writes down what was measured.

    Args:
        settings: the user's.
        training: the run, when training starts.
        reference: x_p; None for the last iterate of this run.
        first_step: number of steps that the optimizer made before.
        may_be_overwritten: whether another callback may change the parameters in ``on_train_end``.

    Raises:
        MisconfigurationException: if the store would have no room.
    """

    def __init__(
        self,
        settings: Settings,
        training: Training,
        reference: Reference | None,
        *,
        first_step: int,
        may_be_overwritten: bool,
    ) -> None:
        self.settings, self.training, self.reference = settings, training, reference
        self.first_step = first_step
        self.failure: str | None = None
        """Why measuring stopped before training did"""
        self.run_id = uuid.uuid4().hex
        self._live = reference is not None
        """Whether records are evaluated right after their step"""
        self._end = _LastIterate(may_be_overwritten)
        self._present_ended = False
        """Whether nothing is evaluated at the present iterate any more"""
        self._present_seconds = 0.0

        processes, trainer = training.processes, training.trainer
        dtype = NATIVE if self._live else settings.store.dtype
        path, temporary = _place(settings, training)
        budget = _budget(settings, training, path, dtype, live=self._live)
        processes.exchange()  # nobody has refused so far: a folder is made only now
        self.extras = started(settings.extras, dtype)
        for extra in self.extras:
            extra.check(training)
        store = RecordStore(path / store_of(processes.rank), budget, dtype)
        store.shares = training.shares
        schedule = Schedule(settings.every_n_steps, settings.max_probes)
        self.kept = KeptProbes(schedule, store, processes, self.extras)
        of_samples = any(SAMPLES in extra.needs for extra in self.extras)
        self.evaluator = Evaluator(training, settings.loss, of_samples=of_samples)
        self.evaluation = Evaluation(self.evaluator, self.kept, self.extras)
        self.recorder = Recorder(
            training,
            schedule,
            memory=store.memory,
            others_changed=store.others_changed,
            loss_infimum=settings.loss_infimum,
            user_loss=self.evaluator.at_present if settings.loss else None,
            following=any(FOLLOWING in extra.needs for extra in self.extras),
            every_step=settings.every_step,
        )
        self.reporter = Reporter(
            RunFolder(path, writes=processes.first),
            temporary=temporary,
            loggers=trainer.loggers,
            prefix=settings.prefix,
            extras=self.extras,
            images=settings.report.images,
            live=self._live,
            writes=processes.first,
        )
        self.clock = Clock(trainer, processes, settings.max_overhead, self.evaluation.evaluations)
        self.loss_meaning = describe_loss(training.module, settings.loss, settings.loss_infimum)
        if path.name != settings.prefix:
            rank_zero_info(
                f"LandscapeMonitor found another run in {path.parent / settings.prefix} and writes "
                f"to {path}"
            )

    # --------------------------------------------------------------------------- before training

    def say_the_plan(self) -> None:
        """Say what is measured, what it costs, and which theorems can apply; never stop a run."""
        try:
            rank_zero_info(preflight(self._plan()))
        except Exception as error:
            rank_zero_warn(f"LandscapeMonitor could not say what it will measure: {said(error)}")

    def _plan(self) -> Plan:
        settings, training, reference = self.settings, self.training, self.reference
        trainer, module = training.trainer, training.module
        steps = planned_steps(trainer) - trainer.global_step
        own, dtype = local_values(training.parameters()), settings.store.dtype
        every, most = settings.every_n_steps, settings.max_probes
        expected = expected_probes(steps, every, most)
        x_p = {"kind": FINAL} if reference is None else vars_of(reference)
        return Plan(
            run={
                **describe_run(trainer, module, training.optimizer),
                "loss": self.loss_meaning,
                "reference": x_p,
            },
            steps=steps,
            every_n_steps=every,
            max_probes=most,
            max_overhead=settings.max_overhead,
            module_parameters=sum(parameter.numel() for parameter in module.parameters()),
            probe_bytes=bytes_of_probe(own, dtype),
            base_bytes=bytes_of_start(own, dtype),
            store_bytes=self.kept.store.budget,
            folder=None if self.reporter.temporary else str(self.reporter.folder.path),
            keep_store=settings.store.keep,
            evaluations=self.evaluation.evaluations(expected[0] if expected else most),
            beside=[said for extra in self.extras if (said := extra.describe())],
            of_samples=self.evaluator.replay.of_samples,
        )

    # ---------------------------------------------------------------------------- while training

    @property
    def automatic(self) -> bool:
        """Whether optimization is automatic."""
        return self.training.module.automatic_optimization

    def watch(self, step: int, *, may_refuse: bool) -> None:
        """Watch the batch that is about to start, if its step is due."""
        recorder, kept = self.recorder, self.kept
        if not recorder.watching:
            self._seconds_before = recorder.seconds
            if kept.schedule.due(step):
                spacing = self.clock.spacing(step, recorder.seconds, len(kept.steps))
                if kept.make_room(step, spacing):
                    self.reporter.follow(kept.table)
        recorder.watch(step, may_refuse=may_refuse)

    def read_gradient(self) -> None:
        """Copy x_k and g_k before the optimizer's step; the first probe may be refused."""
        self.recorder.read_gradient()
        first = self.recorder.first
        if first is None:
            return
        with self.recorder.timed():
            if not self._live:
                self.kept.store.note_size(first)
                self.kept.store.require_room()
            self._check_first(first)

    def _check_first(self, record: Record) -> None:
        """Let the extras that evaluate ``loss=`` refuse the run."""
        if SAMPLES not in frozenset[str]().union(*(extra.needs for extra in self.extras)):
            return
        for extra in self.extras:
            with self.training.processes.agreed(), self.evaluator.session():
                extra.check_first(record, self.evaluator, self.recorder.training_loss)

    def finish_probe(self) -> dict[str, float]:
        """Complete the probe of the step that was just made; return values for a progress bar."""
        with interrupts.put_off():
            return self._finish_probe()

    def _finish_probe(self) -> dict[str, float]:
        finished = self.recorder.finish()
        if finished is None:
            return {}
        if isinstance(finished, Missed):
            self.kept.miss(finished.step, finished.why)
            return {}
        step = finished.probe.step
        with self.recorder.timed():
            self.kept.add(finished.probe)
            if self._live and self.reference is not None:
                self._evaluate_at_once(finished.record, self.reference)
            else:
                self.kept.write(finished.record)
            if step not in self.kept.steps:
                return {}
            probe = self.kept.table.at_step(step)
            share = overhead(self.recorder.seconds, self.clock.elapsed, 0.0)["training"]
            self.reporter.add(probe, self.kept.table, share)
        self.clock.note_probe(self.recorder.seconds - self._seconds_before)
        return in_brief(probe)

    def _evaluate_at_once(self, record: Record, reference: Reference) -> None:
        """Evaluate a record in memory; the user asked for it with ``reference=`` a file."""
        kept, check = self.kept, self.evaluation.fidelity
        record = self._with_others(record)
        if record.step == kept.steps[0]:
            kept.write_start(record)  # a resumed run needs x_0
        before = len(kept.steps) - 1
        x_p = reference.parameters
        if late := [name for name in record.x or () if name not in x_p]:
            raise ValueError(f"found no value of {late} in the reference: these joined x late")
        with self.evaluator.session(restored=set(x_p)):
            # numbers 0, 1, 2, 4, 8, …: each check costs a forward and a backward pass
            if before & (before - 1) == 0 and not check.check(record) and not before:
                check.found.warn()
            self.evaluation.at(record, x_p)

    def _with_others(self, record: Record) -> Record:
        """Return a record with the values of parameters that are not x, if these have moved since."""
        now, store = self.training.others(), self.kept.store
        if record.others or not now or not store.others_changed(now):
            return record
        return replace(record, others=store.newest_others())

    def evaluate_at_present(self) -> None:
        """At the end of some epochs, show some probes with the present iterate in place of x_p."""
        trainer = self.training.trainer
        epochs, kept = trainer.current_epoch + 1, len(self.kept.steps)
        if self.reference is not None or self._present_ended or not self.settings.live_at(epochs):
            return
        if epochs == trainer.max_epochs:
            return
        if not self.clock.has_room(trainer.global_step, self.recorder.seconds, kept):
            return
        try:
            with self.training.processes.agreed():
                rows = self._rows_at_present()
        except Exception as error:
            self.abandon()
            self._present_ended = True
            warn_once(
                error,
                f"LandscapeMonitor could not evaluate at the present iterate: {said(error)}. "
                "Curves live/… end; all else goes on",
            )
            return
        if self.training.processes.first:
            with interrupts.put_off():
                step = lightning_compat.batches_that_stepped(trainer)
                self.reporter.curves.at_present(rows, step)

    def _rows_at_present(self) -> ProbeTable:
        losses, before = self.settings.live_losses, self.recorder.seconds
        started = time.perf_counter()

        def go_on() -> bool:
            if losses:
                return True
            spent = self._present_seconds + time.perf_counter() - started
            late = spent > LIVE_SHARE * self.clock.elapsed
            return self.training.processes.everywhere(not late)

        with self.recorder.timed():
            rows = self.evaluation.at_present(losses=losses, go_on=go_on)
        self._present_seconds += time.perf_counter() - started
        if losses:
            self.clock.note_evaluations(self.recorder.seconds - before, len(rows))
        return rows

    def note_epoch_end(self) -> None:
        """Copy x_K where another callback may overwrite the parameters at the end (SWA, EMA)."""
        self._end.note_epoch_end(self.training)

    def abandon(self) -> None:
        """Leave the run as if nothing were measured: at an interrupt, a failure, or the end."""
        self.recorder.abandon()
        self.evaluator.recover()

    # -------------------------------------------------------------------------------- at the end

    def note_end(self, moved: bool) -> None:
        """Copy x_K at the end of training.

        Args:
            moved: whether the parameters moved since `note_epoch_end`.
        """
        self._end.note_end(self.training, moved=moved)

    def last_iterate(self, *, moved: bool) -> dict[str, Tensor]:
        """Return x_K.

        Raises:
            RuntimeError: if it could not be copied in time.
        """
        return self._end.of(self.training, moved=moved)

    def settle(self, *, together: bool) -> None:
        """Wait until the records are on disk; a failure to write is told, and ends nothing.

        Args:
            together: whether the other processes are there.
        """
        try:
            with self.training.processes.agreed() if together else nullcontext():
                if self.reference is not None:
                    self.kept.give_up_unwritten()
                elif together:
                    self.kept.settle()
                else:
                    self.kept.settle_alone()
        except (Exception, KeyboardInterrupt) as error:
            what = f"{said(error)}, while storing the last probes"
            self.failure = self.failure or what
            warn_once(error, f"LandscapeMonitor found {what}. The rest is reported")

    def discard(self) -> None:
        """Leave nothing behind: the run was refused before its first step."""
        self.kept.store.wait()
        self.reporter.discard()

    def close(self) -> None:
        """Leave the run; nothing is written after this returns."""
        self.abandon()
        with suppress(Exception):  # the run is over, whatever it is
            self.kept.store.wait()

    # --------------------------------------------------------------------------- stop and resume

    def state(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint holds of this run: plain values.

        Args:
            step: number of steps that the optimizer made.
        """
        return {
            "schema": SCHEMA,
            "step": step,
            "global_step": self.training.trainer.global_step,
            "run_id": self.run_id,
            "folder": str(self.reporter.folder.path.absolute()),
            "reference": self._reference_identity(),
            "processes": self.training.processes.size,
            "fidelity": self.evaluation.fidelity.found.state(),
            "gradients_enabled": self.evaluator.replay.gradients_enabled,
            "extras": {type(extra).__name__: extra.state() for extra in self.extras},
            **self.clock.state(),
            **self.recorder.state(),
            **self.kept.state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with the probes before the checkpoint, if they can be evaluated."""
        folder, processes = Path(state["folder"]), self.training.processes
        reason = processes.of_first(lambda: self._reason_for_a_new_table(state, folder))
        if reason is not None:
            rank_zero_info(
                f"LandscapeMonitor: {reason}; a new table starts at step {self.first_step}"
            )
            return
        self._adopt(state, folder / store_of(processes.rank))
        if (folder / STORE).exists():
            rank_zero_info(
                f"LandscapeMonitor goes on from {folder / STORE}, which is not changed; remove it "
                "when all is well"
            )
        self.run_id = state["run_id"]
        if not self.clock.adopt(state):
            self.recorder.seconds = 0.0  # without a clock, there is no time of training beside it
        self.reporter.follow(self.kept.table)
        if folder.parent != self.reporter.folder.path.parent.absolute():
            # a new log folder: its curves start with the old ones
            self.reporter.curves.repeat(self.kept.table)

    def _adopt(self, state: Mapping[str, Any], store: Path) -> None:
        self.recorder.adopt(state)
        self.kept.adopt(state, store)
        self.evaluation.fidelity.found = self.evaluation.fidelity.found.of(state["fidelity"])
        self.evaluator.replay.gradients_enabled = state["gradients_enabled"]
        for extra in self.extras:
            known = state["extras"].get(type(extra).__name__)
            if known is not None:
                extra.adopt(known)
                extra.leave_only(self.kept.steps)

    def _reason_for_a_new_table(self, state: Mapping[str, Any], folder: Path) -> str | None:
        if state["schema"] != SCHEMA:
            return f"the checkpoint holds schema {state['schema']}, supported is {SCHEMA}"
        size = self.training.processes.size
        refusals.check_same_processes(state.get("processes", 1), size, self.settings.prefix)
        if state["reference"] != self._reference_identity():
            return "the checkpoint was measured against another reference"
        if self.reference is None and not (folder / STORE).exists() and _is_complete(folder):
            return (
                "the checkpoint is of a finished run whose store was removed "
                "(Store(keep=True) keeps it)"
            )
        return None

    def _reference_identity(self) -> str:
        return FINAL if self.reference is None else str(self.reference.sha256)


class _LastIterate:
    """x_K, taken before anybody else can change it.

    Args:
        may_be_overwritten: whether another callback may change the parameters in ``on_train_end``.
    """

    def __init__(self, may_be_overwritten: bool) -> None:
        self._may_be_overwritten, self._lost, self._ended = may_be_overwritten, False, False
        self._copy: dict[str, Tensor] | None = None

    def note_epoch_end(self, training: Training) -> None:
        if self._may_be_overwritten:
            self._copy, self._lost = None, True  # the copy of an earlier epoch is no x_K
            self._copy = training.present()
            self._lost = False

    def note_end(self, training: Training, *, moved: bool) -> None:
        if not self._lost and (self._copy is None or moved):
            self._copy = training.present()
        self._ended = True

    def of(self, training: Training, *, moved: bool) -> dict[str, Tensor]:
        if self._lost:
            raise RuntimeError(
                "the last iterate could not be copied before other callbacks may have changed it"
            )
        if self._copy is not None and (self._ended or not moved):
            return self._copy
        return training.present()


def _place(settings: Settings, training: Training) -> tuple[Path, Path | None]:
    """Return the run's folder, and the temporary folder around it under ``fast_dev_run``."""
    trainer, of_first = training.trainer, training.processes.of_first
    writes_nothing = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    temporary = Path(of_first(tempfile.mkdtemp)) if writes_nothing else None
    parent = temporary or parent_folder(trainer, settings.dirpath)
    return Path(of_first(lambda: str(free_folder(parent, settings.prefix)))), temporary


def _budget(settings: Settings, training: Training, path: Path, dtype: str, *, live: bool) -> int:
    """Return the bytes that the store may use; refuse a budget without room for two probes."""
    x, module = training.parameters(), training.module
    moving = trained_elsewhere(module, training.trainer.optimizers, x)
    others = {n: p for n, p in named_parameters(module).items() if n not in x} if moving else {}
    stored = not live and training.measures
    return store_budget(path, settings.store.gib, x, others, dtype, stored=stored)


def declare_results(trainer: Trainer, settings: Settings) -> None:
    """Tell loggers, before training, which results there will be; never stop a run."""
    try:
        hparams = lightning_compat.declared_hyperparameters(trainer)
        layout = settings.report.layout
        tensorboard.declare(trainer.loggers, settings.prefix, with_layout=layout, hparams=hparams)
    except Exception as error:
        rank_zero_warn(
            f"LandscapeMonitor could not declare its results to the loggers: {said(error)}"
        )


def in_brief(probe: Probe) -> dict[str, float]:
    """Return two values for a progress bar: the gradient's norm, and cosine or smoothness."""
    values = {"grad_norm": math.sqrt(probe.grad_sq_norm)}
    if probe.inner_product is None or probe.sq_distance is None:
        excess = probe.loss - probe.loss_infimum
        smoothness = probe.grad_sq_norm / (2 * excess) if excess > 0 else math.nan
        return {**values, "smoothness": smoothness}
    size = math.sqrt(probe.grad_sq_norm * probe.sq_distance)
    return {**values, "cosine": probe.inner_product / size if size > 0 else math.nan}


def vars_of(reference: Reference) -> dict[str, Any]:
    """Return the part of a reference that is shown."""
    return {"kind": reference.kind, "path": reference.path}


def _is_complete(folder: Path) -> bool:
    try:
        summary = load(folder).summary
    except (OSError, ValueError):
        return False
    return summary is not None and bool(summary["run"]["complete"])
