"""`Session`: the parts of one ``fit``, and the way of a probe through them."""

from __future__ import annotations

import math
import tempfile
import uuid
from contextlib import nullcontext, suppress
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info

from lightning_landscape.evaluation.evaluation import Evaluation
from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.evaluation.reference import FINAL, Reference
from lightning_landscape.extras import FOLLOWING, SAMPLES, Extra, started
from lightning_landscape.files import store_of
from lightning_landscape.fit.last_iterate import LastIterate
from lightning_landscape.fit.live import Live
from lightning_landscape.probes import Probe
from lightning_landscape.recording.clock import Clock, overhead
from lightning_landscape.recording.kept import KeptProbes
from lightning_landscape.recording.recorder import Missed, Recorder
from lightning_landscape.recording.schedule import Schedule
from lightning_landscape.reporting.folder import RunFolder, free_folder, parent_folder
from lightning_landscape.reporting.reporter import Reporter
from lightning_landscape.settings import Settings
from lightning_landscape.store.codecs import NATIVE
from lightning_landscape.store.record import Record
from lightning_landscape.store.room import store_budget
from lightning_landscape.store.store import RecordStore
from lightning_landscape.training import interrupts, lightning_compat
from lightning_landscape.training.description import describe_loss
from lightning_landscape.training.failures import said, warn_once
from lightning_landscape.training.part import trained_elsewhere
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.parameters import named_parameters


class Session:
    """Measures one ``fit``: makes the parts, and leads each probe through them.

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
        self.run_id = uuid.uuid4().hex
        self.failure: str | None = None
        """Why measuring stopped before training did"""
        self.last = LastIterate(training, may_be_overwritten=may_be_overwritten)
        self.loss_meaning = describe_loss(training.module, settings.loss, settings.loss_infimum)
        self._seconds_before = 0.0
        """The recorder's seconds before the newest probe"""
        self._compares = True
        """Whether probes are still compared with the present iterate"""

        live = reference is not None
        path, temporary = _place(settings, training)
        dtype = NATIVE if live else settings.store.dtype  # with x_p at hand, x_0 alone is stored
        budget = _budget(settings, training, path, dtype, live=live)
        training.processes.exchange()  # nobody has refused so far: a folder is made only now
        self.extras = started(settings.extras, dtype)
        for extra in self.extras:
            extra.check(training)
        store = RecordStore(path / store_of(training.processes.rank), budget, dtype)
        store.shares = training.shares
        schedule = Schedule(settings.every_n_steps, settings.max_probes)
        self.kept = KeptProbes(schedule, store, training.processes, self.extras)
        of_samples = any(SAMPLES in extra.needs for extra in self.extras)
        self.evaluator = Evaluator(training, settings.loss, of_samples=of_samples)
        self.evaluation = Evaluation(self.evaluator, self.kept, self.extras)
        self.live = Live(self.evaluator, self.evaluation, self.kept)
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
        trainer, writes = training.trainer, training.processes.first
        self.reporter = Reporter(
            RunFolder(path, writes=writes),
            temporary=temporary,
            loggers=trainer.loggers,
            prefix=settings.prefix,
            extras=self.extras,
            images=settings.report.images,
            live=live,
            writes=writes,
        )
        evaluations = self.evaluation.evaluations
        self.clock = Clock(trainer, training.processes, settings.max_overhead, evaluations)

    @property
    def automatic(self) -> bool:
        """Whether optimization is automatic."""
        return self.training.module.automatic_optimization

    @property
    def reference_identity(self) -> str:
        """The reference, as a checkpoint tells it from another one."""
        return FINAL if self.reference is None else str(self.reference.sha256)

    # --------------------------------------------------------------------------------- one probe

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

    def read_gradient(self, *, may_refuse: bool) -> None:
        """Copy x_k and g_k before the optimizer's step; the first probe may be refused.

        Args:
            may_refuse: whether no optimizer step was made yet.
        """
        with interrupts.put_off():  # loss= is evaluated there
            self._read_gradient(may_refuse)

    def _read_gradient(self, may_refuse: bool) -> None:
        self.recorder.read_gradient()
        first = self.recorder.first
        if first is None:
            return
        with self.recorder.timed():
            if self.reference is None:
                self.kept.store.note_size(first)
                self.kept.store.require_room()
            for extra in self.extras:
                if SAMPLES in extra.needs:
                    self._check_first(extra, first, may_refuse)

    def _check_first(self, extra: Extra, record: Record, may_refuse: bool) -> None:
        """Let an extra that evaluates ``loss=`` refuse the run; after a step, it ends alone."""
        try:
            with self.training.processes.agreed(), self.evaluator.session():
                extra.check_first(record, self.evaluator, self.recorder.training_loss)
        except MisconfigurationException as error:
            if may_refuse:
                raise
            extra.stopped_by = f"{said(error)}, at step {record.step}"
            warn_once(error, extra.failed(said(error), record.step))

    def finish_probe(self) -> dict[str, float]:
        """Complete the probe of the step that was just made; return values for a progress bar."""
        with interrupts.put_off():
            return self._finish_probe()

    def _finish_probe(self) -> dict[str, float]:
        finished, kept = self.recorder.finish(), self.kept
        if finished is None:
            return {}
        if isinstance(finished, Missed):
            kept.miss(finished.step, finished.why)
            return {}
        step = finished.probe.step
        with self.recorder.timed():
            kept.add(finished.probe)
            if self.reference is not None:
                self.live.at_once(finished.record, self.reference.parameters)
            else:
                kept.write(finished.record)
            if step not in kept.steps:  # its loss at x_p is not finite, or the disk is full
                return {}
            probe = kept.table.at_step(step)
            share = overhead(self.recorder.seconds, self.clock.elapsed, 0.0)["training"]
            self.reporter.add(probe, kept.table, share)
        self.clock.note_probe(self.recorder.seconds - self._seconds_before)
        return in_brief(probe)

    # ------------------------------------------------------------------------------ end of epoch

    def compare_with_present(self) -> None:
        """At the end of some epochs, show some probes with the present iterate in place of x_p."""
        trainer, recorder = self.training.trainer, self.recorder
        epochs = trainer.current_epoch + 1
        if self.reference is not None or not self._compares or not self.settings.live_at(epochs):
            return
        if epochs == trainer.max_epochs:
            return
        if not self.clock.has_room(trainer.global_step, recorder.seconds, len(self.kept.steps)):
            return
        try:
            with self.training.processes.agreed():
                self._compare_with_present()
        except Exception as error:
            self.abandon()
            self._compares = False
            warn_once(
                error,
                f"LandscapeMonitor could not evaluate at the present iterate: {said(error)}. "
                "Curves live/… end; all else goes on",
            )

    def _compare_with_present(self) -> None:
        losses, before = self.settings.live_losses, self.recorder.seconds
        with self.recorder.timed():
            rows = self.live.at_present(losses=losses, elapsed=self.clock.elapsed)
        if losses:
            self.clock.note_evaluations(self.recorder.seconds - before, len(rows))
        with interrupts.put_off():
            step = lightning_compat.batches_that_stepped(self.training.trainer)
            self.reporter.curves.at_present(rows, step)

    # -------------------------------------------------------------------------------- at the end

    def abandon(self) -> None:
        """Leave the run as if nothing were measured: at an interrupt, a failure, or the end."""
        self.recorder.abandon()
        self.evaluator.recover()

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


def _place(settings: Settings, training: Training) -> tuple[Path, Path | None]:
    """Return the run's folder, and the temporary folder around it under ``fast_dev_run``."""
    trainer, of_first = training.trainer, training.processes.of_first
    writes_nothing = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    temporary = Path(of_first(tempfile.mkdtemp)) if writes_nothing else None
    parent = temporary or parent_folder(trainer, settings.dirpath)
    path = Path(of_first(lambda: str(free_folder(parent, settings.prefix))))
    if path.name != settings.prefix:
        taken = path.parent / settings.prefix
        rank_zero_info(f"LandscapeMonitor found another run in {taken} and writes to {path}")
    return path, temporary


def _budget(settings: Settings, training: Training, path: Path, dtype: str, *, live: bool) -> int:
    """Return the bytes that the store may use; refuse a budget without room for two probes."""
    x, module = training.parameters(), training.module
    moving = trained_elsewhere(module, training.trainer.optimizers, x)
    others = {n: p for n, p in named_parameters(module).items() if n not in x} if moving else {}
    stored = not live and training.measures
    return store_budget(path, settings.store.gib, x, others, dtype, stored=stored)


def in_brief(probe: Probe) -> dict[str, float]:
    """Return two values for a progress bar: the gradient's norm, and cosine or smoothness."""
    values = {"grad_norm": math.sqrt(probe.grad_sq_norm)}
    if probe.inner_product is None or probe.sq_distance is None:
        excess = probe.loss - probe.loss_infimum
        smoothness = probe.grad_sq_norm / (2 * excess) if excess > 0 else math.nan
        return {**values, "smoothness": smoothness}
    size = math.sqrt(probe.grad_sq_norm * probe.sq_distance)
    return {**values, "cosine": probe.inner_product / size if size > 0 else math.nan}
