"""One ``fit``: the measurement above the waist, the folder and the curves below it."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape import interrupts
from lightning_landscape.files import STORE, store_of
from lightning_landscape.loading import load
from lightning_landscape.probes import SCHEMA, Probe, ProbeTable
from lightning_landscape.probing import checks, lightning_compat
from lightning_landscape.probing.budget import Budget, Reading
from lightning_landscape.probing.description import describe_run, planned_steps
from lightning_landscape.probing.measurement import Measurement
from lightning_landscape.probing.parameters import named_parameters, optimized_parameters
from lightning_landscape.probing.part import part_of, trained_elsewhere
from lightning_landscape.probing.processes import Processes, warn_once
from lightning_landscape.probing.reference import FINAL, Reference, last_iterate, last_sharded_iterate
from lightning_landscape.probing.schedule import Schedule
from lightning_landscape.probing.sharding import is_sharded, local
from lightning_landscape.probing.store import ProbeStore
from lightning_landscape.records import LayerRow, SecantRow, SegmentPoint
from lightning_landscape.reporting import pictures, tensorboard
from lightning_landscape.reporting.curves import RunCurves
from lightning_landscape.reporting.folder import CSV_SECONDS, RunFolder, free_folder, parent_folder
from lightning_landscape.reporting.numbers import number
from lightning_landscape.reporting.preflight import Plan, expected_probes, preflight
from lightning_landscape.reporting.progress import tracker
from lightning_landscape.reporting.summary import summarise
from lightning_landscape.reporting.text import report
from lightning_landscape.settings import Settings


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
        self._settings, self._trainer, self._module, self._optimizer = settings, trainer, module, optimizer
        self._processes = processes
        self._live = reference is not None
        self._temporary = Path(tempfile.mkdtemp()) if _writes_nothing(trainer) else None
        parent = self._temporary or parent_folder(trainer, settings.dirpath)
        path = Path(processes.of_first(str(free_folder(parent, settings.prefix))))
        trained = optimized_parameters(module, optimizer)
        moving = trained_elsewhere(module, trainer.optimizers, trained)
        others = {n: p for n, p in named_parameters(module).items() if n not in trained} if moving else {}
        stored = not self._live and (processes.first or any(map(is_sharded, trained.values())))
        budget = checks.store_budget(path, settings.store_gib, trained, others, stored=stored)
        processes.exchange()  # nobody has refused so far: a folder is made only now
        self.folder = RunFolder(path, writes=processes.first)
        self.measurement = Measurement(
            trainer=trainer,
            module=module,
            optimizer=optimizer,
            processes=processes,
            schedule=Schedule(settings.every_n_steps, settings.max_probes),
            store=ProbeStore(path / store_of(processes.rank), budget),
            loss=settings.loss,
            loss_infimum=settings.loss_infimum,
            reference=reference,
            secant=settings.secant,
            exact_sums=settings.exact_sums,
            per_layer=settings.per_layer,
            segments=settings.segments,
        )
        self._curves = RunCurves(trainer.loggers if processes.first else [], settings.prefix, live=self._live)
        self.first_step = first_step
        self.automatic = module.automatic_optimization
        self.failure: str | None = None
        """Why measuring stopped before training did"""
        self._run_id = uuid.uuid4().hex
        self._started = time.perf_counter()
        self._elapsed_before, self._clock_step = 0.0, trainer.global_step
        self._budget = self._new_budget()
        self._loss_meaning = checks.describe_loss(module, settings.loss, settings.loss_infimum)
        self._last: dict[str, Tensor] | None = None
        self._may_be_overwritten = may_be_overwritten
        self._provisional_failed = False
        self._written = time.perf_counter()
        if path.name != settings.prefix:
            rank_zero_info(f"LandscapeMonitor found another run in {parent / settings.prefix} and writes to {path}")

    def say_what_is_to_come(self) -> None:
        """Say in a few lines what is measured, what it costs, and which theorems can apply; nothing here may stop a run."""
        try:
            rank_zero_info(preflight(self._plan()))
        except Exception as error:
            rank_zero_warn(f"LandscapeMonitor could not say what it is going to measure, {type(error).__name__}: {error}")

    def _plan(self) -> Plan:
        settings, reference = self._settings, self.measurement.reference
        steps = planned_steps(self._trainer) - self._trainer.global_step
        held = optimized_parameters(self._module, self._optimizer)
        every, most = settings.every_n_steps, settings.max_probes
        expected = expected_probes(steps, every, most)
        return Plan(
            run={
                **describe_run(self._trainer, self._module, self._optimizer),
                "loss": self._loss_meaning,
                "reference": {"kind": FINAL} if reference is None else {"kind": reference.kind, "path": reference.path},
            },
            steps=steps,
            every_n_steps=every,
            max_probes=most,
            max_overhead=settings.max_overhead,
            module_parameters=sum(parameter.numel() for parameter in self._module.parameters()),
            probe_bytes=2 * sum(local(parameter).nbytes for parameter in held.values()),
            store_bytes=self.measurement.rows.store.budget,
            folder=None if self._temporary else str(self.folder.path),
            keep_store=settings.keep_store,
            evaluations=self.measurement.evaluations(expected[0] if expected else most),
        )

    # ---------------------------------------------------------------------------------------------------- while training

    def watch(self, step: int, *, may_refuse: bool) -> bool:
        """Watch the batch that is about to start, if its step is due; return whether rows were thinned out for that."""
        measurement, spacing = self.measurement, 0.0
        if not measurement.watching:
            self._seconds_before = measurement.seconds
            if self._budget is not None and measurement.schedule.due(step):
                spacing = self._largest(self._budget.spacing(self._reading(step)))
        return bool(measurement.watch(step, spacing, may_refuse=may_refuse))

    def follow(self) -> None:
        """Bring files and curves in line, after rows were thinned out or taken over from another run."""
        self.folder.rewrite(self.measurement.table)
        self._write_records()
        self._curves.restart(self.measurement.table)

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before the checkpoint that this fit goes on from included."""
        return self._elapsed_before + time.perf_counter() - self._started

    def _new_budget(self) -> Budget | None:
        share = self._settings.max_overhead
        if share is None:
            return None
        return Budget(share, self.measurement.evaluations, planned_steps(self._trainer) - self._clock_step)

    def _reading(self, step: int) -> Reading:
        kept = len(self.measurement.schedule.kept)
        return Reading(step - self._clock_step, self.elapsed, self.measurement.seconds, kept)

    def _largest(self, number: float) -> float:
        """Return the largest value of a number over the processes, which measure each their own seconds and probe together."""
        return max(row[0] for row in self._processes.exchange(number))

    @property
    def module(self) -> LightningModule:
        """The module in training."""
        return self._module

    def finish_probe(self) -> dict[str, float]:
        """Complete the probe of the step that was just made, and write it down, whole; return what a progress bar may show."""
        with interrupts.put_off():
            return self._finish_probe()

    def _finish_probe(self) -> dict[str, float]:
        unchecked = not self.measurement.fidelity.steps
        with self._processes.agreed():
            probe = self.measurement.finish()
        if unchecked:
            self._warn_of_infidelity()
        if probe is None:
            return {}
        now = time.perf_counter()
        self.folder.append(probe, self.measurement.table)
        if now - self._written > CSV_SECONDS:
            self._write_records()
        layers = (self.measurement.rows.layers or {}).get(probe.step, [])
        self._curves.add(probe, overhead=self.measurement.seconds / max(self.elapsed, 1e-9), layers=layers)
        self.measurement.seconds += time.perf_counter() - now
        if self._budget is not None:
            self._budget.note_probe(self.measurement.seconds - self._seconds_before)
            if unchecked:
                self._budget.note_replay(self.measurement.replay_seconds)
        return in_brief(probe)

    def evaluate_provisionally(self) -> None:
        """At the end of some epochs, see what the probes so far say of the present iterate; nothing of the table changes."""
        epochs, last = self._trainer.current_epoch + 1, self._trainer.max_epochs
        if self._live or self._provisional_failed or epochs == last or not self._settings.live_at(epochs):
            return
        if self._budget is not None and self._largest(self._budget.strain(self._reading(self._trainer.global_step))) > 1:
            return
        before = self.measurement.seconds
        try:
            with self._processes.agreed():
                rows = self.measurement.provisional()
        except Exception as error:
            self.measurement.abandon()
            self._processes.over, self._provisional_failed = False, True  # all know, and nothing else ends with it
            warn_once(
                error,
                f"LandscapeMonitor could not evaluate at the present iterate, {type(error).__name__}: {error}; live/… ends "
                "here, all else goes on",
            )
            return
        if self._budget is not None:
            self._budget.note_evaluations(self.measurement.seconds - before, len(rows))
        if not self._processes.first:
            return
        with interrupts.put_off():
            self._curves.provisional(rows, lightning_compat.batches_that_stepped(self._trainer))

    def note_epoch_end(self) -> None:
        """Keep x_K where another callback may overwrite the parameters before our turn comes (SWA, EMA)."""
        if self._may_be_overwritten:
            self._last = self.measurement.current_parameters()

    def _write_records(self) -> None:
        """Write the tables beside the table of probes, those that there are."""
        self._written = time.perf_counter()
        rows = self.measurement.rows
        secants, layers, segments = rows.secants, rows.layers, rows.segments
        if secants is not None:
            self.folder.write_records(SecantRow, [SecantRow(step, secants[step]) for step in sorted(secants)])
        if layers:
            self.folder.write_records(LayerRow, [row for step in sorted(layers) for row in layers[step]])
        if segments:
            self.folder.write_records(SegmentPoint, segments)

    def _warn_of_infidelity(self) -> None:
        fidelity = self.measurement.fidelity
        if not fidelity.exact:
            rank_zero_warn(
                f"LandscapeMonitor evaluated a mini-batch loss again in the state in which it was recorded and got another "
                f"value, off by {fidelity.max_abs:.3g}. Usual causes: a forward pass that is not deterministic, a state kept "
                "outside the module, a hook that edits the batch. Every number of this run is marked with it"
            )

    def discard(self) -> None:
        """Leave nothing behind: the run was refused before its first step."""
        shutil.rmtree(self._temporary or self.folder.path, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------- at the end

    def end(
        self, stopped_by: str, *, steps: int, idle_steps: int, complete: bool, evaluate: bool, moved: bool
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
        elapsed, started = self.elapsed, time.perf_counter()
        last = self._last if self._last is not None and not moved else self.measurement.current_parameters()
        reference = self.measurement.reference
        problem: Exception | None = None
        try:
            final = self._last_iterate(last, together=evaluate)
            self.folder.rewrite(self.measurement.table)
        except Exception as error:  # of the process that writes: the others wait for it to evaluate with them
            problem, final = error, last_iterate(last, None)
        reference = reference or final
        evaluated = evaluate and self._evaluate(reference)
        final_sq_distance = self._final_sq_distance(last, reference, together=evaluated)
        if not self._processes.first:
            return self._leave(complete), None
        self.folder.rewrite(self.measurement.table)  # whatever comes now, what was evaluated is on disk
        if problem is not None:
            raise problem
        self._write_records()
        run = {
            "complete": complete and self.failure is None,
            "stopped_by": stopped_by if self.failure is None else f"{stopped_by}; the monitor: {self.failure}",
            "id": self._run_id,
            "steps": steps,
            "idle_steps": idle_steps,
            "reference": {
                "kind": reference.kind,
                "path": reference.path,
                "sha256": reference.sha256,
                "step": steps if reference.kind == FINAL else None,
                "final_sq_distance": number(final_sq_distance),
            },
            "overhead": _overhead(self.measurement.seconds, elapsed, time.perf_counter() - started),
            **self._measured(),
            "part": self._settings.parameters,
            **describe_run(self._trainer, self._module, self._optimizer),
        }
        if self._settings.max_overhead is not None and run["overhead"]["total"] > self._settings.max_overhead:
            rank_zero_info(
                f"LandscapeMonitor took {run['overhead']['total']:.1%} of the time, more than max_overhead="
                f"{self._settings.max_overhead:g}: the run was short beside its first probe and the evaluation at its end"
            )
        return self._report(run, evaluated)

    def _last_iterate(self, last: dict[str, Tensor], *, together: bool) -> Reference:
        """Return x_K as reference, and write it down where that is asked for."""
        if not self._settings.save_reference:
            return last_iterate(last, None)
        if not self.measurement.sharded:
            return last_iterate(last, self.folder.path if self._processes.first else None)
        if not together:  # its parts are written by all processes together
            return last_iterate(last, None)
        return last_sharded_iterate(last, named_parameters(self._module), self.folder.path)

    def _final_sq_distance(self, last: dict[str, Tensor], reference: Reference, *, together: bool) -> float:
        if self.measurement.sharded and not together:
            return math.nan
        return self.measurement.sq_distance(last, reference)

    def _leave(self, complete: bool) -> ProbeTable:
        """End in a process that writes nothing; return the table."""
        if complete and self.failure is None and not self._settings.keep_store:
            self.measurement.rows.store.remove()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return self.measurement.table

    def _evaluate(self, reference: Reference) -> bool:
        """Evaluate at the reference; False if an interrupt ended that."""
        exact = self.measurement.fidelity.exact
        try:
            with self._processes.agreed():
                self.measurement.evaluate(reference, tracker(self._trainer))
        except KeyboardInterrupt:
            self.measurement.abandon()
            if self._processes.size > 1:  # the others wait for this one: ending is all that is left
                raise
            rank_zero_info("LandscapeMonitor: interrupted again, the rest of the probes stays unevaluated")
            return False
        except Exception as error:  # what is evaluated so far is reported
            self.measurement.abandon()
            self.failure = f"{type(error).__name__} while evaluating at the reference: {error}"
            warn_once(error, f"LandscapeMonitor could not evaluate every probe: {self.failure}. The others are reported")
            return False
        if exact:  # else it was said already
            self._warn_of_infidelity()
        return True

    def _measured(self) -> dict[str, Any]:
        """Return what ``summary.json`` says of the measurement itself."""
        measurement, fidelity = self.measurement, self.measurement.fidelity
        return {
            "first_step": measurement.table[0].step if len(measurement.table) else None,
            "probes": len(measurement.table),
            "stride": measurement.schedule.stride,
            "dropped": dict(measurement.rows.dropped),
            "loss": self._loss_meaning,
            "fidelity": {
                "steps": fidelity.steps,
                "max_abs": number(fidelity.max_abs) if fidelity.steps else None,
                "exact": fidelity.exact if fidelity.steps else None,
                "gradient": None if fidelity.gradient is None else number(fidelity.gradient),
                "autograd": measurement.replayer.gradients_enabled,
            },
            "store": {"dtype": self._settings.store_dtype, "bytes": measurement.stored_bytes or measurement.rows.store.nbytes},
            "learning_rates": _learning_rates(measurement.learning_rates),
            "off_schedule": measurement.off_schedule,
            "moved_between": measurement.moved_between,
            "exact_sums": _finite_or_null(measurement.sums.state()) if measurement.sums is not None else None,
        }

    def _report(self, run: dict[str, Any], evaluated: bool) -> tuple[ProbeTable, dict[str, Any]]:
        table, rows = self.measurement.table, self.measurement.rows
        summary = summarise(table, run, self._settings.windows, rows.secants)
        removable = run["complete"] and not self._settings.keep_store
        try:
            self.folder.finish(table, summary)
        except OSError:  # a full disk, on which the store takes the room: its probes are evaluated and in the table
            if not removable:
                raise
            rows.store.remove()
            self.folder.finish(table, summary)
        if evaluated:  # a partial evaluation writes files only: a tag is written once
            with interrupts.put_off():
                steps = lightning_compat.batches_that_stepped(self._trainer)
                self._curves.finish(table, summary, steps, rows.layers or {})
                self._show(table, summary, steps)
        if removable:
            rows.store.remove()
        rank_zero_info(f"LandscapeMonitor: {summary['verdict']}")
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return table, summary
        rank_zero_info(f"LandscapeMonitor: the table of {len(table)} probes and its summary are in {self.folder.path}")
        if rows.store.folder.exists():
            rank_zero_info(
                f"LandscapeMonitor keeps {rows.store.folder} to resume from a checkpoint; it holds training "
                "batches, remove it when it is not needed"
            )
        return table, summary

    def _show(self, table: ProbeTable, summary: dict[str, Any], steps: int) -> None:
        """Give text and pictures to the loggers that take them, and pictures to the folder."""
        loggers, prefix = self._trainer.loggers, self._settings.prefix
        tensorboard.show_text(loggers, prefix, report(summary), steps)
        if self._settings.figures:
            figures = pictures.draw(table, summary, self.measurement.rows.segments, self.folder.path)
            tensorboard.show_figures(loggers, prefix, figures, steps)

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
            "clock": {"elapsed": self.elapsed, "from_step": self._clock_step},
            "budget": self._budget.state() if self._budget is not None else None,
            **self.measurement.state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with the probes before the checkpoint, where they can be evaluated; else a new table starts."""
        folder = Path(state["folder"])
        reason = self._processes.of_first(self._reason_for_a_new_table(state, folder))
        if reason is not None:
            rank_zero_info(f"LandscapeMonitor: {reason}; a new table starts at step {self.first_step}")
            return
        self.measurement.adopt(state, folder / store_of(self._processes.rank))
        if (folder / STORE).exists():
            rank_zero_info(f"LandscapeMonitor goes on from {folder / STORE}, which is not changed; remove it when all is well")
        self._run_id = state["run_id"]
        self._adopt_clock(state)
        self.follow()
        if folder.parent != self.folder.path.parent.absolute():  # a new log folder: its curves start with the old ones
            self._curves.repeat(self.measurement.table)

    def _adopt_clock(self, state: Mapping[str, Any]) -> None:
        if state.get("clock") is None:  # of an earlier version: its seconds would be beside no training
            self.measurement.seconds = 0.0
            return
        self._elapsed_before, self._clock_step = state["clock"]["elapsed"], state["clock"]["from_step"]
        self._budget = self._new_budget()
        if self._budget is not None and state.get("budget") is not None:
            self._budget.adopt(state["budget"])

    def _reason_for_a_new_table(self, state: Mapping[str, Any], folder: Path) -> str | None:
        if state["schema"] != SCHEMA:
            return f"the checkpoint holds schema {state['schema']}, supported is {SCHEMA}"
        checks.check_same_processes(state.get("processes", 1), self._processes.size, self._settings.prefix)
        if state["reference"] != self._reference_identity():
            return "the checkpoint was measured against another reference"
        if not self._live and not (folder / STORE).exists() and _is_complete(folder):
            return "the checkpoint is of a finished run whose store was removed (keep_store=True keeps it)"
        return None

    def _reference_identity(self) -> str:
        return FINAL if self.measurement.reference is None else str(self.measurement.reference.sha256)


def declare_results(trainer: Trainer, settings: Settings) -> None:
    """Tell loggers, before training starts, what there will be to see; nothing here may stop a run."""
    try:
        hparams = lightning_compat.declared_hyperparameters(trainer)
        tensorboard.declare(trainer.loggers, settings.prefix, with_layout=settings.layout, hparams=hparams)
    except Exception as error:
        rank_zero_warn(f"LandscapeMonitor could not declare its results to the loggers: {type(error).__name__}: {error}")


def in_brief(probe: Probe) -> dict[str, float]:
    """Return two values of a probe for a progress bar: the cosine where x_p is known, and always the gradient's norm."""
    values = {"grad_norm": math.sqrt(probe.grad_sq_norm)}
    if probe.inner_product is None or probe.sq_distance is None:
        excess = probe.loss - probe.loss_infimum
        return {**values, "smoothness": probe.grad_sq_norm / (2 * excess) if excess > 0 else math.nan}
    size = math.sqrt(probe.grad_sq_norm * probe.sq_distance)
    return {**values, "cosine": probe.inner_product / size if size > 0 else math.nan}


def _overhead(spent: float, elapsed: float, finalisation: float) -> dict[str, float]:
    """Return the share of the monitor in training, the seconds of evaluation after it, and the share in both together."""
    return {
        "training": spent / max(elapsed, 1e-9),
        "finalisation_s": finalisation,
        "total": (spent + finalisation) / max(elapsed + finalisation, 1e-9),
    }


def _finite_or_null(sums: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return sums as JSON holds them: a run that diverged has some that are not finite."""
    return None if sums is None else {name: v if isinstance(v, int) else number(v) for name, v in sums.items()}


def _learning_rates(seen: tuple[float, float] | None) -> dict[str, float | None] | None:
    """Return the range of learning rates over the probes; null values where parameter groups had several."""
    return None if seen is None else {"min": number(seen[0]), "max": number(seen[1])}


def _writes_nothing(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _is_complete(folder: Path) -> bool:
    try:
        summary = load(folder).summary
    except (OSError, ValueError):
        return False
    return summary is not None and bool(summary["run"]["complete"])
