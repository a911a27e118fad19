"""The end of a run: what waits for x_p is evaluated, table, summary, pictures and the remaining curves are written."""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.evaluation.reference import (
    FINAL,
    Reference,
    last_iterate,
    last_sharded_iterate,
)
from lightning_landscape.probes import ProbeTable
from lightning_landscape.recording.clock import overhead
from lightning_landscape.recording.measurement import Measurement
from lightning_landscape.reporting import pictures, tensorboard
from lightning_landscape.reporting.curves import RunCurves
from lightning_landscape.reporting.folder import RunFolder, remove_empty
from lightning_landscape.reporting.numbers import number
from lightning_landscape.reporting.progress import tracker
from lightning_landscape.reporting.summary import summarise
from lightning_landscape.reporting.text import report
from lightning_landscape.settings import Settings
from lightning_landscape.training import interrupts, lightning_compat
from lightning_landscape.training.description import describe_measurement, describe_run
from lightning_landscape.training.failures import Interrupted, said, warn_once
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.parameters import named_parameters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended."""

    stopped_by: str
    """What ended it"""
    steps: int
    """K, updates made"""
    idle_steps: int
    """Those of this fit that had no gradient"""
    complete: bool
    """Whether training came to its end"""
    elapsed: float
    """Seconds of training, the monitor's included"""
    failure: str | None
    """Why measuring stopped before training did"""


class Ending:
    """Ends one run in all its processes.

    Args:
        settings: what the user asked for.
        trainer: the trainer.
        module: the module.
        optimizer: its optimiser, or the part of it that is measured.
        processes: those of the run; the first one alone writes.
        measurement: what was measured.
        folder: where the run is written.
        curves: the run in its loggers.
        temporary: a folder around all that is removed afterwards (fast_dev_run); None for none.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        *,
        processes: Processes,
        measurement: Measurement,
        folder: RunFolder,
        curves: RunCurves,
        temporary: Path | None,
    ) -> None:
        self._settings, self._trainer, self._module, self._optimizer = (
            settings,
            trainer,
            module,
            optimizer,
        )
        self._processes, self._measurement, self._folder, self._curves = (
            processes,
            measurement,
            folder,
            curves,
        )
        self._temporary = temporary
        self._failure: str | None = None
        self._together = True
        """Whether the other processes are there"""

    def write(
        self,
        outcome: Outcome,
        last: Callable[[], dict[str, Tensor]],
        about: dict[str, Any],
        *,
        evaluate: bool,
    ) -> tuple[ProbeTable, dict[str, Any] | None]:
        """Evaluate, write and show.

        Args:
            outcome: how training ended.
            last: returns x_K by name.
            about: what else ``summary.json`` says of the run.
            evaluate: whether to evaluate at all; where other processes or time may be gone it only writes what there is.

        Returns:
            The table of probes and, in the process that writes, the content of ``summary.json``.
        """
        started, measurement = time.perf_counter(), self._measurement
        self._failure, self._together = outcome.failure, evaluate
        final = self._last_iterate(last)
        reference = measurement.reference or final
        evaluated = evaluate and reference is not None and self._evaluate(reference)
        removable = outcome.complete and self._failure is None and not self._settings.keep_store
        summary: dict[str, Any] | None = None

        def write_down() -> dict[str, Any]:
            self._folder.rewrite(
                measurement.table
            )  # whatever comes now, what was evaluated is on disk
            rows = measurement.rows
            tables = (rows.secants, rows.layers, rows.segments, rows.held_out, rows.fixed_batches)
            self._folder.write_beside(*tables, rows.sample_records())
            saved = self._saved(final)
            run = {
                **self._run(outcome, measurement.reference or saved, final_sq_distance),
                "overhead": overhead(
                    measurement.seconds, outcome.elapsed, time.perf_counter() - started
                ),
                **describe_measurement(measurement, self._settings.store_dtype),
                **about,
                **describe_run(self._trainer, self._module, self._optimizer),
            }
            fixed = [row for step in sorted(rows.fixed_batches) for row in rows.fixed_batches[step]]
            held_out = rows.held_out.values()
            found = summarise(
                measurement.table,
                run,
                self._settings.windows,
                rows.secants,
                held_out,
                fixed,
                rows.accuracies,
                rows.per_sample,
                None if measurement.per_sample is None else measurement.per_sample.about,
            )
            self._folder.finish(measurement.table, found)
            return found

        with self._temporarily(), self._in_step():
            final_sq_distance = self._final_sq_distance(final, reference, together=evaluated)
            if self._processes.first:
                summary = self._making_room(write_down, evaluated and removable)
                self._report(summary, evaluated, removable)
        if removable:
            measurement.rows.store.remove()  # only now: every process knows that there is a report
        return measurement.table, summary

    def _in_step(self) -> AbstractContextManager[None]:
        """Return a block in which all processes fail together; where others may be gone, one of this process alone."""
        return self._processes.agreed() if self._together else nullcontext()

    def _making_room(self, write: Callable[[], T], removable: bool) -> T:
        """Call what writes files; where the disk is full the store goes, if everything in it is evaluated."""
        try:
            return write()
        except OSError as error:
            if not removable or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._measurement.rows.store.remove()
            return write()

    def _fail(self, error: Exception, doing: str) -> None:
        """Note what kept the measurement from being complete; the rest is reported."""
        self._failure = f"{said(error)}, while {doing}"
        warn_once(error, f"LandscapeMonitor found {self._failure}. The rest is reported")

    # ---------------------------------------------------------------------------------------------------- last iterate

    def _last_iterate(self, last: Callable[[], dict[str, Tensor]]) -> Reference | None:
        """Return x_K as reference, written down where that is asked for; None if it cannot be had."""
        try:
            with self._in_step():
                values = last()
        except Exception as error:
            self._fail(error, "copying the last iterate")
            return None
        final = last_iterate(values, None)
        if not self._settings.save_reference:
            return final
        with (
            suppress(Exception),
            self._in_step(),
        ):  # it is tried again when there is a report: then it is told
            self._folder.rewrite(self._measurement.table)
            return self._written(final)
        return final

    def _written(self, final: Reference) -> Reference:
        if not self._measurement.sharded:
            return last_iterate(
                final.parameters, self._folder.path if self._processes.first else None
            )
        if not self._together:  # its parts are written by all processes together
            return final
        parameters = named_parameters(self._module)
        return last_sharded_iterate(
            final.parameters, parameters, self._folder.path, self._processes
        )

    def _saved(self, final: Reference | None) -> Reference:
        """Return x_K as it is on disk, in the process that writes; written now if that has failed before the evaluation."""
        if final is None:
            return last_iterate({}, None)
        if final.path is not None or not self._settings.save_reference:
            return final
        if not self._measurement.sharded:
            return last_iterate(final.parameters, self._folder.path)
        rank_zero_warn(
            "LandscapeMonitor could not write the last iterate for a second run: there is no folder reference/"
        )
        return final

    # ------------------------------------------------------------------------------------------------------ evaluation

    def _evaluate(self, reference: Reference) -> bool:
        """Evaluate at the reference; False if an interrupt or a failure ended that."""
        try:
            self._evaluate_together(reference)
        except KeyboardInterrupt:
            self._measurement.abandon()
            self._failure = "Ctrl-C, while evaluating at the reference"
            rank_zero_info(
                "LandscapeMonitor: interrupted again, the rest of the probes stays unevaluated"
            )
            return False
        except Exception as error:  # what is evaluated so far is reported
            self._measurement.abandon()
            self._fail(error, "evaluating at the reference")
            return False
        return True

    def _evaluate_together(self, reference: Reference) -> None:
        track, said_before = tracker(self._trainer), not self._measurement.fidelity.exact
        if self._processes.size == 1:
            self._measurement.evaluate(reference, track)
            self._warn_of_replays(said_before)
            return
        with (
            interrupts.noted() as noted,
            self._processes.agreed(),
        ):  # the others wait for this process: it does not just go

            def stoppable(steps: Sequence[int], what: str) -> Iterable[int]:
                for step in track(steps, what):
                    if noted:
                        raise Interrupted("Ctrl-C")
                    yield step

            self._measurement.evaluate(reference, stoppable)
            self._warn_of_replays(said_before)

    def _warn_of_replays(self, said_before: bool) -> None:
        if not said_before:
            self._measurement.fidelity.warn()

    def _final_sq_distance(
        self, final: Reference | None, reference: Reference | None, *, together: bool
    ) -> float:
        if final is None or reference is None or (self._measurement.sharded and not together):
            return math.nan
        return self._measurement.sq_distance(final.parameters, reference)

    # ---------------------------------------------------------------------------------------------------------- report

    def _run(
        self, outcome: Outcome, reference: Reference, final_sq_distance: float
    ) -> dict[str, Any]:
        """Return what ``summary.json`` says of the end of the run."""
        failure, stopped_by = self._failure, outcome.stopped_by
        return {
            "complete": outcome.complete and failure is None,
            "stopped_by": stopped_by
            if failure is None
            else f"{stopped_by}; the monitor: {failure}",
            "steps": outcome.steps,
            "idle_steps": outcome.idle_steps,
            "reference": {
                "kind": reference.kind,
                "path": reference.path,
                "sha256": reference.sha256,
                "step": outcome.steps if reference.kind == FINAL else None,
                "final_sq_distance": number(final_sq_distance),
            },
        }

    def _say_overhead(self, total: float) -> None:
        most = self._settings.max_overhead
        if most is not None and total > most:
            rank_zero_info(
                f"LandscapeMonitor took {total:.1%} of the time, more than max_overhead={most:g}: the run was short beside its "
                "first probe and the evaluation at its end"
            )

    def _report(self, summary: dict[str, Any], evaluated: bool, removable: bool) -> None:
        """Show what was found: in the loggers, and in a few lines."""
        table, rows = self._measurement.table, self._measurement.rows
        if evaluated:  # a partial evaluation writes files only: a tag is written once
            with interrupts.put_off():
                steps = lightning_compat.batches_that_stepped(self._trainer)
                self._curves.finish(table, summary, steps, rows.layers or {})
                self._show(table, summary, steps)
        self._say_overhead(summary["run"]["overhead"]["total"])
        rank_zero_info(f"LandscapeMonitor: {summary['verdict']}")
        if self._temporary is None:
            rank_zero_info(
                f"LandscapeMonitor: the table of {len(table)} probes and its summary are in {self._folder.path}"
            )
            if not removable and rows.store.folder.exists():
                rank_zero_info(
                    f"LandscapeMonitor keeps {rows.store.folder} to resume from a checkpoint; it holds training batches, "
                    "remove it when it is not needed"
                )

    def _show(self, table: ProbeTable, summary: dict[str, Any], steps: int) -> None:
        """Give text and pictures to the loggers that take them, and pictures to the folder."""
        loggers, prefix = self._trainer.loggers, self._settings.prefix
        tensorboard.show_text(loggers, prefix, report(summary), steps)
        if self._settings.figures:
            rows = self._measurement.rows
            held_out = ProbeTable(rows.held_out.values())
            figures = pictures.draw(table, summary, rows.segments, self._folder.path, held_out)
            tensorboard.show_figures(loggers, prefix, figures, steps)

    @contextmanager
    def _temporarily(self) -> Iterator[None]:
        """Remove the temporary folder, if it is one, after the block; other machines have one at the same path."""
        try:
            yield
        finally:
            if self._temporary is not None and self._processes.first:
                shutil.rmtree(self._temporary, ignore_errors=True)
            elif self._temporary is not None:
                store = self._measurement.rows.store
                store.remove()
                remove_empty(store.folder.parent, self._temporary)
