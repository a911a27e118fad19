"""One ``fit``: the measurement above the waist, the folder and the curves below it."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.ending import Ending, Outcome
from lightning_landscape.evaluation.reference import FINAL, Reference
from lightning_landscape.files import STORE, store_of
from lightning_landscape.loading import load
from lightning_landscape.probes import SCHEMA, Probe, ProbeTable
from lightning_landscape.recording.clock import Clock
from lightning_landscape.recording.measurement import Measurement
from lightning_landscape.recording.schedule import Schedule
from lightning_landscape.reporting import tensorboard
from lightning_landscape.reporting.curves import RunCurves
from lightning_landscape.reporting.folder import RunFolder, free_folder, parent_folder
from lightning_landscape.reporting.preflight import Plan, expected_probes, preflight
from lightning_landscape.settings import Settings
from lightning_landscape.store.codecs import NATIVE
from lightning_landscape.store.store import ProbeStore
from lightning_landscape.training import interrupts, lightning_compat
from lightning_landscape.training import refusals as checks
from lightning_landscape.training.description import describe_run, planned_steps
from lightning_landscape.training.failures import said, warn_once
from lightning_landscape.training.part import part_of, trained_elsewhere
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.parameters import (
    local_values,
    named_parameters,
    optimized_parameters,
)
from lightning_landscape.vectors.sharding import is_sharded


class Session:
    """Measures one ``fit`` and writes down what was measured.

    Args:
        settings: what the user asked for.
        trainer: the trainer, when training starts.
        module: the module in training.
        optimizer: its optimiser.
        reference: x_p; None for the last iterate of this run.
        first_step: steps that the optimiser has made before.
        processes: those of the run; the first one alone writes, the others measure with it.
        may_be_overwritten: whether another callback may change the parameters at the end, before our turn comes.

    Raises:
        MisconfigurationException: if the store would have no room.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        reference: Reference | None,
        *,
        first_step: int,
        processes: Processes,
        may_be_overwritten: bool,
    ) -> None:
        optimizer = part_of(optimizer, module, settings.parameters)
        self._settings, self._trainer, self._module, self._optimizer = (
            settings,
            trainer,
            module,
            optimizer,
        )
        self._processes = processes
        self._live = reference is not None
        self._temporary = (
            Path(processes.of_first(tempfile.mkdtemp)) if _writes_nothing(trainer) else None
        )
        parent = self._temporary or parent_folder(trainer, settings.dirpath)
        path = Path(processes.of_first(lambda: str(free_folder(parent, settings.prefix))))
        trained = optimized_parameters(module, optimizer)
        moving = trained_elsewhere(module, trainer.optimizers, trained)
        others = (
            {n: p for n, p in named_parameters(module).items() if n not in trained}
            if moving
            else {}
        )
        stored = not self._live and (processes.first or any(map(is_sharded, trained.values())))
        codec = (
            NATIVE if self._live else settings.store_dtype
        )  # with x_p at hand x_0 alone is stored
        budget = checks.store_budget(
            path, settings.store_gib, trained, others, codec, stored=stored
        )
        processes.exchange()  # nobody has refused so far: a folder is made only now
        self.folder = RunFolder(path, writes=processes.first)
        self.measurement = Measurement(
            trainer=trainer,
            module=module,
            optimizer=optimizer,
            processes=processes,
            schedule=Schedule(settings.every_n_steps, settings.max_probes),
            store=ProbeStore(path / store_of(processes.rank), budget, codec),
            loss=settings.loss,
            loss_infimum=settings.loss_infimum,
            reference=reference,
            secant=settings.secant,
            exact_sums=settings.exact_sums,
            per_layer=settings.per_layer,
            segments=settings.segments,
            held_out=settings.held_out,
            fixed_batches=settings.fixed_batches,
            per_sample=settings.per_sample,
        )
        self._curves = RunCurves(
            trainer.loggers if processes.first else [], settings.prefix, live=self._live
        )
        self.first_step = first_step
        self.automatic = module.automatic_optimization
        self.failure: str | None = None
        """Why measuring stopped before training did"""
        self._run_id = uuid.uuid4().hex
        self._clock = Clock(trainer, processes, settings.max_overhead, self.measurement.evaluations)
        self._loss_meaning = checks.describe_loss(module, settings.loss, settings.loss_infimum)
        self._last: dict[str, Tensor] | None = None
        self._may_be_overwritten, self._lost = may_be_overwritten, False
        self._provisional_failed = False
        if path.name != settings.prefix:
            rank_zero_info(
                f"LandscapeMonitor found another run in {parent / settings.prefix} and writes to {path}"
            )

    def say_what_is_to_come(self) -> None:
        """Say in a few lines what is measured, what it costs, and which theorems can apply; nothing here may stop a run."""
        try:
            rank_zero_info(preflight(self._plan()))
        except Exception as error:
            rank_zero_warn(
                f"LandscapeMonitor could not say what it is going to measure, {type(error).__name__}: {error}"
            )

    def _plan(self) -> Plan:
        settings, reference = self._settings, self.measurement.reference
        steps = planned_steps(self._trainer) - self._trainer.global_step
        own = local_values(optimized_parameters(self._module, self._optimizer))
        encoder = self.measurement.rows.store.encoder
        every, most = settings.every_n_steps, settings.max_probes
        expected = expected_probes(steps, every, most)
        return Plan(
            run={
                **describe_run(self._trainer, self._module, self._optimizer),
                "loss": self._loss_meaning,
                "reference": {"kind": FINAL}
                if reference is None
                else {"kind": reference.kind, "path": reference.path},
            },
            steps=steps,
            every_n_steps=every,
            max_probes=most,
            max_overhead=settings.max_overhead,
            module_parameters=sum(parameter.numel() for parameter in self._module.parameters()),
            probe_bytes=2 * encoder.nbytes(own),
            base_bytes=encoder.base_bytes(own),
            store_bytes=self.measurement.rows.store.budget,
            folder=None if self._temporary else str(self.folder.path),
            keep_store=settings.keep_store,
            evaluations=self.measurement.evaluations(expected[0] if expected else most),
            held_out=0 if settings.held_out is None else 1 + settings.fixed_batches,
            per_sample=0
            if self.measurement.per_sample is None
            else self.measurement.per_sample.passes,
        )

    # ---------------------------------------------------------------------------------------------------- while training

    def watch(self, step: int, *, may_refuse: bool) -> None:
        """Watch the batch that is about to start, if its step is due."""
        measurement, spacing = self.measurement, 0.0
        if not measurement.watching:
            self._seconds_before = measurement.seconds
            if measurement.schedule.due(step):
                spacing = self._clock.spacing(
                    step, measurement.seconds, len(measurement.schedule.kept)
                )
        if measurement.watch(
            step, spacing, may_refuse=may_refuse
        ):  # rows were thinned out for that
            self.follow()

    def follow(self) -> None:
        """Bring files and curves in line, after rows were thinned out or taken over from another run."""
        self.folder.rewrite(self.measurement.table)
        self._write_beside()
        self._curves.restart(self.measurement.table)

    @property
    def module(self) -> LightningModule:
        """The module in training."""
        return self._module

    def finish_probe(self) -> dict[str, float]:
        """Complete the probe of the step that was just made, and write it down, whole; return what a progress bar may show."""
        with interrupts.put_off():
            return self._finish_probe()

    def _finish_probe(self) -> dict[str, float]:
        probe = self.measurement.finish()
        if probe is None:
            return {}
        replayed = probe.step in self.measurement.fidelity.steps
        if replayed:
            self.measurement.fidelity.warn()
        now = time.perf_counter()
        self.folder.append(probe, self.measurement.table)
        if self.folder.beside_is_due:
            self._write_beside()
        layers = (self.measurement.rows.layers or {}).get(probe.step, [])
        self._curves.add(
            probe, overhead=self.measurement.seconds / self._clock.elapsed, layers=layers
        )
        self.measurement.seconds += time.perf_counter() - now
        cost = self.measurement.seconds - self._seconds_before
        self._clock.note_probe(cost, self.measurement.replay_seconds if replayed else None)
        return in_brief(probe)

    def evaluate_provisionally(self) -> None:
        """At the end of some epochs, see what the probes so far say of the present iterate; nothing of the table changes."""
        epochs, last = self._trainer.current_epoch + 1, self._trainer.max_epochs
        if (
            self._live
            or self._provisional_failed
            or epochs == last
            or not self._settings.live_at(epochs)
        ):
            return
        before, kept = self.measurement.seconds, len(self.measurement.schedule.kept)
        if not self._clock.has_room(self._trainer.global_step, before, kept):
            return
        try:
            with self._processes.agreed():
                rows = self.measurement.provisional()
        except Exception as error:
            self.measurement.abandon()
            self._provisional_failed = True
            warn_once(
                error,
                f"LandscapeMonitor could not evaluate at the present iterate: {said(error)}; live/… ends, all else goes on",
            )
            return
        self._clock.note_evaluations(self.measurement.seconds - before, len(rows))
        if not self._processes.first:
            return
        with interrupts.put_off():
            self._curves.provisional(rows, lightning_compat.batches_that_stepped(self._trainer))

    def note_epoch_end(self) -> None:
        """Keep x_K where another callback may overwrite the parameters before our turn comes (SWA, EMA)."""
        if self._may_be_overwritten:
            self._last, self._lost = None, True  # that of an earlier epoch is none, whatever comes
            self._last = self.measurement.current_parameters()
            self._lost = False

    def _write_beside(self) -> None:
        rows = self.measurement.rows
        tables = (rows.secants, rows.layers, rows.segments, rows.held_out, rows.fixed_batches)
        self.folder.write_beside(*tables, rows.sample_records() if self._processes.first else ())

    def discard(self) -> None:
        """Leave nothing behind: the run was refused before its first step."""
        self.measurement.rows.store.wait()
        shutil.rmtree(self._temporary or self.folder.path, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------- at the end

    def settle(self, *, together: bool) -> None:
        """Wait until what was measured is on disk; what could not be written is told, and ends nothing.

        Args:
            together: whether the other processes are there.
        """
        try:
            with self._processes.agreed() if together else nullcontext():
                self.measurement.settle(together=together)
        except (Exception, KeyboardInterrupt) as error:
            self.failure = self.failure or f"{said(error)}, while storing the last probes"
            warn_once(
                error,
                f"LandscapeMonitor found {said(error)}, while storing the last probes. The rest is reported",
            )

    def close(self) -> None:
        """Leave the run; nothing is written after this returns."""
        self.measurement.abandon()
        with suppress(Exception):  # whatever it is, the run is over
            self.measurement.rows.store.wait()

    def end(
        self,
        stopped_by: str,
        *,
        steps: int,
        idle_steps: int,
        complete: bool,
        evaluate: bool,
        moved: bool,
    ) -> tuple[ProbeTable, dict[str, Any] | None]:
        """Evaluate what waits for x_p; write table, summary and the remaining curves.

        Args:
            stopped_by: what ended training.
            steps: K, updates made.
            idle_steps: those of this fit that had no gradient.
            complete: whether training came to its end.
            evaluate: whether to evaluate at all; where other processes or time may be gone it only writes what there is.
            moved: whether the parameters moved since `note_epoch_end`.

        Returns:
            The table of probes and, in the process that writes, the content of ``summary.json``.
        """
        outcome = Outcome(
            stopped_by, steps, idle_steps, complete, self._clock.elapsed, self.failure
        )
        ending = Ending(
            self._settings,
            self._trainer,
            self._module,
            self._optimizer,
            processes=self._processes,
            measurement=self.measurement,
            folder=self.folder,
            curves=self._curves,
            temporary=self._temporary,
        )

        def last() -> dict[str, Tensor]:
            if self._lost:
                raise RuntimeError(
                    "the last iterate could not be copied before other callbacks may have changed it"
                )
            return (
                self._last
                if self._last is not None and not moved
                else self.measurement.current_parameters()
            )

        about = {"id": self._run_id, "loss": self._loss_meaning, "part": self._settings.parameters}
        return ending.write(outcome, last, about, evaluate=evaluate)

    # --------------------------------------------------------------------------------------------------- stop and resume

    def state(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint holds of this run: plain values only.

        Args:
            step: steps that the optimiser has made.
        """
        return {
            "schema": SCHEMA,
            "step": step,
            "global_step": self._trainer.global_step,
            "run_id": self._run_id,
            "folder": str(self.folder.path.absolute()),
            "reference": self._reference_identity(),
            **self._clock.state(),
            **self.measurement.state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with the probes before the checkpoint, where they can be evaluated; else a new table starts."""
        folder = Path(state["folder"])
        reason = self._processes.of_first(lambda: self._reason_for_a_new_table(state, folder))
        if reason is not None:
            rank_zero_info(
                f"LandscapeMonitor: {reason}; a new table starts at step {self.first_step}"
            )
            return
        self.measurement.adopt(state, folder / store_of(self._processes.rank))
        if (folder / STORE).exists():
            rank_zero_info(
                f"LandscapeMonitor goes on from {folder / STORE}, which is not changed; remove it when all is well"
            )
        self._run_id = state["run_id"]
        if not self._clock.adopt(state):
            self.measurement.seconds = 0.0  # they would be beside no training
        self.follow()
        if (
            folder.parent != self.folder.path.parent.absolute()
        ):  # a new log folder: its curves start with the old ones
            self._curves.repeat(self.measurement.table)

    def _reason_for_a_new_table(self, state: Mapping[str, Any], folder: Path) -> str | None:
        if state["schema"] != SCHEMA:
            return f"the checkpoint holds schema {state['schema']}, supported is {SCHEMA}"
        checks.check_same_processes(
            state.get("processes", 1), self._processes.size, self._settings.prefix
        )
        if state["reference"] != self._reference_identity():
            return "the checkpoint was measured against another reference"
        if not self._live and not (folder / STORE).exists() and _is_complete(folder):
            return "the checkpoint is of a finished run whose store was removed (keep_store=True keeps it)"
        return None

    def _reference_identity(self) -> str:
        return (
            FINAL if self.measurement.reference is None else str(self.measurement.reference.sha256)
        )


def declare_results(trainer: Trainer, settings: Settings) -> None:
    """Tell loggers, before training starts, what there will be to see; nothing here may stop a run."""
    try:
        hparams = lightning_compat.declared_hyperparameters(trainer)
        tensorboard.declare(
            trainer.loggers, settings.prefix, with_layout=settings.layout, hparams=hparams
        )
    except Exception as error:
        rank_zero_warn(
            f"LandscapeMonitor could not declare its results to the loggers: {type(error).__name__}: {error}"
        )


def in_brief(probe: Probe) -> dict[str, float]:
    """Return two values of a probe for a progress bar: the cosine where x_p is known, and always the gradient's norm."""
    values = {"grad_norm": math.sqrt(probe.grad_sq_norm)}
    if probe.inner_product is None or probe.sq_distance is None:
        excess = probe.loss - probe.loss_infimum
        return {
            **values,
            "smoothness": probe.grad_sq_norm / (2 * excess) if excess > 0 else math.nan,
        }
    size = math.sqrt(probe.grad_sq_norm * probe.sq_distance)
    return {**values, "cosine": probe.inner_product / size if size > 0 else math.nan}


def _writes_nothing(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _is_complete(folder: Path) -> bool:
    try:
        summary = load(folder).summary
    except (OSError, ValueError):
        return False
    return summary is not None and bool(summary["run"]["complete"])
