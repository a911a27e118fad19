"""The end of a run: stored records are evaluated, and the findings are written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_landscape.evaluation.evaluation import Track
from lightning_landscape.evaluation.reference import (
    FINAL,
    Reference,
    last_iterate,
    last_sharded_iterate,
)
from lightning_landscape.fit.session import Session
from lightning_landscape.probes import ProbeTable
from lightning_landscape.recording.clock import overhead
from lightning_landscape.reporting.numbers import number
from lightning_landscape.reporting.progress import tracker
from lightning_landscape.reporting.reporter import making_room
from lightning_landscape.reporting.summary import summarise
from lightning_landscape.training import interrupts, lightning_compat
from lightning_landscape.training.description import describe_run
from lightning_landscape.training.failures import Interrupted, said, warn_once
from lightning_landscape.vectors.parameters import named_parameters


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


class Ending:
    """Ends one run, in all its processes.

    Args:
        session: the run.
        outcome: how training ended.
        evaluate: whether to evaluate. Where processes may be gone, only what is known is written.
    """

    def __init__(self, session: Session, outcome: Outcome, *, evaluate: bool) -> None:
        self._session, self._outcome, self._together = session, outcome, evaluate
        self._training, self._processes = session.training, session.training.processes
        self._failure = session.failure
        self._bytes: int | None = None
        """On disk, of all processes, when the evaluation ended"""

    def write(self, *, moved: bool) -> tuple[ProbeTable, dict[str, Any] | None]:
        """Evaluate, write and show.

        Args:
            moved: whether the parameters moved since the end of the last epoch.

        Returns:
            The table of probes and, in the process that writes, the content of ``summary.json``.
        """
        session, started = self._session, time.perf_counter()
        elapsed = session.clock.elapsed
        final = self._last_iterate(moved=moved)
        reference = session.reference or final
        evaluated = self._together and reference is not None and self._evaluate(reference)
        complete = self._outcome.complete and self._failure is None
        removable = complete and not session.settings.store.keep
        store, reporter = session.kept.store, session.reporter
        distance = math.nan

        def write_down() -> dict[str, Any]:
            reporter.rewrite(session.kept.table)  # what is evaluated is safe on disk now
            saved = self._saved(final)
            spent = time.perf_counter() - started
            run = {
                **self._about_the_end(session.reference or saved, distance),
                "overhead": overhead(session.recorder.seconds, elapsed, spent),
                **describe_measurement(session, self._bytes),
                "id": session.run_id,
                "loss": session.loss_meaning,
                "part": session.settings.parameters,
                **describe_run(
                    self._training.trainer, self._training.module, self._training.optimizer
                ),
            }
            windows = session.settings.report.windows
            found = summarise(session.kept.table, run, windows, session.extras)
            reporter.folder.finish(session.kept.table, found)
            return found

        summary: dict[str, Any] | None = None
        with reporter.temporarily(store.folder):
            with self._in_step():
                distance = self._final_sq_distance(final, reference, evaluated=evaluated)
                if self._processes.first:
                    remove = store.remove if evaluated and removable else None
                    summary = making_room(write_down, remove)
                    with interrupts.put_off():
                        self._show(summary, evaluated=evaluated)
            if removable:
                store.remove()  # only now: every process knows that there is a report
        return session.kept.table, summary

    def _in_step(self) -> AbstractContextManager[None]:
        """Return a block in which all processes fail together; alone, if others may be gone."""
        return self._processes.agreed() if self._together else nullcontext()

    def _fail(self, error: Exception, doing: str) -> None:
        """Note why the measurement is not complete; the rest is reported."""
        self._failure = f"{said(error)}, while {doing}"
        warn_once(error, f"LandscapeMonitor found {self._failure}. The rest is reported")

    # ------------------------------------------------------------------------------- last iterate

    def _last_iterate(self, *, moved: bool) -> Reference | None:
        """Return x_K as reference, written down if asked for; None if it cannot be had."""
        session = self._session
        try:
            with self._in_step():
                values = session.last.values(moved=moved)
        except Exception as error:
            self._fail(error, "copying the last iterate")
            return None
        final = last_iterate(values, None)
        if not session.settings.store.save_reference:
            return final
        with suppress(Exception), self._in_step():  # tried again with the report: then it is told
            session.reporter.folder.rewrite(session.kept.table)
            return self._written(final)
        return final

    def _written(self, final: Reference) -> Reference:
        path, training = self._session.reporter.folder.path, self._training
        if not training.sharded:
            return last_iterate(final.parameters, path if self._processes.first else None)
        if not self._together:  # all processes together write its parts
            return final
        parameters = named_parameters(training.module)
        return last_sharded_iterate(final.parameters, parameters, path, self._processes)

    def _saved(self, final: Reference | None) -> Reference:
        """Return x_K as it is on disk; written now if that failed before the evaluation."""
        if final is None:
            return last_iterate({}, None)
        if final.path is not None or not self._session.settings.store.save_reference:
            return final
        if not self._training.sharded:
            return last_iterate(final.parameters, self._session.reporter.folder.path)
        rank_zero_warn(
            "LandscapeMonitor could not write the last iterate for a second run: there is no "
            "folder reference/"
        )
        return final

    def _final_sq_distance(
        self, final: Reference | None, reference: Reference | None, *, evaluated: bool
    ) -> float:
        if final is None or reference is None or (self._training.sharded and not evaluated):
            return math.nan
        here, there = final.parameters, reference.parameters
        if any(name not in there for name in here):
            return math.nan  # parameters that joined the optimizer late
        return self._training.products.inner_product_and_distance(here, there, {}, 1.0)[1]

    # --------------------------------------------------------------------------------- evaluation

    def _evaluate(self, reference: Reference) -> bool:
        """Evaluate at the reference; return False if an interrupt or a failure ended it."""
        try:
            self._evaluate_together(reference)
        except KeyboardInterrupt:
            self._session.abandon()
            self._failure = "Ctrl-C, while evaluating at the reference"
            rank_zero_info(
                "LandscapeMonitor: interrupted again, the rest of the probes stays unevaluated"
            )
            return False
        except Exception as error:
            self._session.abandon()
            self._fail(error, "evaluating at the reference")
            return False
        return True

    def _evaluate_together(self, reference: Reference) -> None:
        track = tracker(self._training.trainer)
        if self._processes.size == 1:
            self._complete(reference, track)
            return
        # the others wait for this process: it must not leave without telling
        with interrupts.noted() as noted, self._processes.agreed():

            def stoppable(steps: Sequence[int], what: str) -> Iterable[int]:
                for step in track(steps, what):
                    if noted:
                        raise Interrupted("Ctrl-C")
                    yield step

            self._complete(reference, stoppable)

    def _complete(self, reference: Reference, track: Track) -> None:
        session = self._session
        session.recorder.raise_noted()
        said_before = not session.evaluation.fidelity.found.exact
        session.evaluation.complete(reference.parameters, track)
        found = session.recorder.found
        rows = self._processes.exchange(found.moved_between, session.kept.store.nbytes)
        found.moved_between = int(max(row[0] for row in rows))
        self._bytes = int(sum(row[1] for row in rows))
        if not said_before:
            session.evaluation.fidelity.found.warn()

    # ------------------------------------------------------------------------------------- report

    def _about_the_end(self, reference: Reference, distance: float) -> dict[str, Any]:
        """Return the part of ``summary.json`` about the end of the run."""
        outcome, failure = self._outcome, self._failure
        stopped_by = outcome.stopped_by
        return {
            "complete": outcome.complete and failure is None,
            "stopped_by": f"{stopped_by}; the monitor: {failure}" if failure else stopped_by,
            "steps": outcome.steps,
            "idle_steps": outcome.idle_steps,
            "reference": {
                "kind": reference.kind,
                "path": reference.path,
                "sha256": reference.sha256,
                "step": outcome.steps if reference.kind == FINAL else None,
                "final_sq_distance": number(distance),
            },
        }

    def _show(self, summary: dict[str, Any], *, evaluated: bool) -> None:
        session, trainer = self._session, self._training.trainer
        steps = lightning_compat.batches_that_stepped(trainer)
        session.reporter.finish(session.kept.table, summary, steps, evaluated=evaluated)
        most, total = session.settings.max_overhead, summary["run"]["overhead"]["total"]
        if most is not None and total > most:
            rank_zero_info(
                f"LandscapeMonitor took {total:.1%} of the time, more than max_overhead={most:g}: "
                "the run was short beside its first probe and the evaluation at its end"
            )
        folder = session.kept.store.folder
        stays = not summary["run"]["complete"] or session.settings.store.keep
        if session.reporter.temporary is None and stays and folder.exists():
            rank_zero_info(
                f"LandscapeMonitor keeps {folder} to resume from a checkpoint. It holds training "
                "batches: remove it when it is not needed"
            )


def describe_measurement(session: Session, nbytes: int | None) -> dict[str, Any]:
    """Return the part of ``summary.json`` about the measurement itself.

    Args:
        session: at its end.
        nbytes: of the stores of all processes; None where it is not known.
    """
    kept, found = session.kept, session.recorder.found
    fidelity, sums = session.evaluation.fidelity.found, session.recorder.sums
    rates = found.learning_rates
    checked = bool(fidelity.steps)
    return {
        "first_step": kept.table[0].step if len(kept.table) else None,
        "probes": len(kept.table),
        "stride": kept.schedule.stride,
        "dropped": dict(kept.dropped),
        "fidelity": {
            "steps": fidelity.steps,
            "max_abs": number(fidelity.max_abs) if checked else None,
            "exact": fidelity.exact if checked else None,
            "gradient": number(fidelity.gradient),
            "autograd": session.evaluator.replay.gradients_enabled,
        },
        "store": {
            "dtype": session.settings.store.dtype,
            "bytes": nbytes or kept.store.nbytes,
        },
        # null values where parameter groups had different ones
        "learning_rates": None
        if rates is None
        else {"min": number(rates[0]), "max": number(rates[1])},
        "off_schedule": found.off_schedule,
        "moved_between": found.moved_between,
        "exact_sums": None if sums is None else _finite_sums(sums.state()),
    }


def _finite_sums(sums: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return sums as JSON holds them: those of a run that diverged are not all finite."""
    if sums is None:
        return None
    return {name: v if isinstance(v, int) else number(v) for name, v in sums.items()}
