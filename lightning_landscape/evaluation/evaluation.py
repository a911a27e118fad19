"""The one path from a record to its row: what depends on x_p, the loss at x_0, and the extras.

When it is taken is a matter of the session: after training, for records from the store; or after
each probed step, for records in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.evaluation.extra import Extra
from lightning_landscape.evaluation.fidelity import FidelityCheck
from lightning_landscape.evaluation.probed_step import ProbedStep
from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.recording.kept import KeptProbes
from lightning_landscape.recording.schedule import evenly
from lightning_landscape.store.record import Record
from lightning_landscape.training.failures import NotMeasurable, said, warn_once
from lightning_landscape.vectors.gradients import is_finite

INITIAL_LOSSES = 32
"""Largest number of probes whose loss at x_0 is evaluated"""
PRESENT = 16
"""Largest number of probes that are evaluated at the present iterate, before x_p is known"""

Track = Callable[[Sequence[int], str], Iterable[int]]
"""Shows progress over steps under a label"""


class Evaluation:
    """Completes the rows of kept probes; all processes call the same methods in the same order.

    Args:
        evaluator: evaluates a record.
        kept: the probes; what is done is in their table at any time.
        extras: measured at each record.
    """

    def __init__(self, evaluator: Evaluator, kept: KeptProbes, extras: Sequence[Extra]) -> None:
        self._evaluator, self._kept, self.extras = evaluator, kept, extras
        self._processes = evaluator.training.processes
        self.fidelity = FidelityCheck(evaluator)
        self._start: Mapping[str, Tensor] | None = None
        """x_0 by name, in every process, while stored records are completed"""
        self._keeps_start = False

    def evaluations(self, records: int) -> int:
        """Return about how many forward passes so many records take."""
        of_extras = (
            extra.evaluations(min(records, extra.at_most or records)) for extra in self.extras
        )
        return records + min(records, INITIAL_LOSSES) + sum(of_extras)

    # ------------------------------------------------------------------------------- all records

    def complete(self, reference: Mapping[str, Tensor], track: Track) -> None:
        """Complete the rows of all stored records: after training.

        Args:
            reference: x_p by name.
            track: shows progress.
        """
        self._keeps_start = True
        self._kept.drop_unshared()
        waiting = [probe.step for probe in self._kept.table if not probe.evaluated]
        with self._evaluator.session():
            for step in first_middle_last(waiting):
                self._with_stored(step, self._check_exact)
            waiting = [step for step in waiting if step in self._kept.steps]
            following = dict(itertools.pairwise(waiting))
            for step in track(waiting, "probes at x_p"):
                self._with_stored(
                    step, lambda record: self.at(record, reference), following.get(step)
                )
        self.prune()

    def _check_exact(self, record: Record) -> None:
        """Check fidelity, unless a lossy store dtype changed x_k."""
        exact = record.error.iterate == 0
        if self._processes.everywhere(exact):
            self.fidelity.check(record)

    def _with_stored(
        self, step: int, evaluate: Callable[[Record], None], following: int | None = None
    ) -> None:
        """Evaluate a stored record; a probe whose record is gone in any process is dropped."""
        try:
            with self._processes.agreed():
                record = self._kept.store.read(step)
                if following is not None:
                    self._kept.store.expect(following)
                evaluate(record)
        except NotMeasurable:
            if not self._kept.table.at_step(step).evaluated:
                self._kept.lose(step, "unevaluable")

    # -------------------------------------------------------------------------------- one record

    def at(self, record: Record, reference: Mapping[str, Tensor]) -> None:
        """Complete the row of one record; inside of `Evaluator.session`.

        Args:
            record: from the store, or as it was just recorded.
            reference: x_p by name.
        """
        evaluator, step = self._evaluator, record.step
        loss, products = evaluator.loss(record, reference), evaluator.products(record, reference)
        if not is_finite(loss, *products):
            self._kept.lose(step, "non_finite")
            return
        probe = self._kept.table.at_step(step)
        self._kept.put(probe.with_values(reference_loss=loss, **products._asdict()))
        self._evaluate_initial(record, reference)
        for extra in self.extras:
            self._measure(extra, record, reference)

    def _evaluate_initial(self, record: Record, names: Mapping[str, Tensor]) -> None:
        """Evaluate the loss at x_0, on some of the records."""
        if record.step not in evenly(self._kept.steps, INITIAL_LOSSES):
            return
        try:
            with self._processes.agreed():
                loss = self._evaluator.loss(record, self._start_from(record, names))
        except NotMeasurable:
            return
        if is_finite(loss):
            self._kept.put(self._kept.table.at_step(record.step).with_values(initial_loss=loss))

    def _start_from(self, record: Record, names: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return x_0, the parameters of the first probe, for the names of x_p.

        Raises:
            NotMeasurable: if they are gone.
        """
        if self._start is None:
            first = self._kept.steps[0]
            read = record if record.step == first else self._kept.store.read(first)
            start = self._evaluator.iterate(read)
            found = {name: start[name] for name in names if name in start}
            if not self._keeps_start:  # while training, a copy of x_0 would stay in memory
                return found
            # the memory of a record is used again
            self._start = {name: value.detach().clone() for name, value in found.items()}
        return self._start

    def _measure(self, extra: Extra, record: Record, reference: Mapping[str, Tensor]) -> None:
        """Add an extra's rows of one record; its failure ends it, and nothing else."""
        step = record.step
        if extra.stopped_by is not None or extra.measured(step):
            return
        if extra.at_most is not None and step not in evenly(self._kept.steps, extra.at_most):
            return
        try:
            with self._processes.agreed():
                probe = self._kept.table.at_step(step)
                extra.add(step, extra.at(ProbedStep(record, probe, reference, self._evaluator)))
        except NotMeasurable:
            return
        except Exception as error:
            extra.forget(step)
            extra.stopped_by = f"{said(error)}, at step {step}"
            warn_once(error, extra.failed(said(error), step))

    def prune(self) -> None:
        """Leave losses at x_0 and rows of extras only where these probes have them in the end.

        Which probes are among a few even ones is known at the end. Before it, a record is measured
        if it is among those of the probes so far.
        """
        chosen = evenly(self._kept.steps, INITIAL_LOSSES)
        for probe in self._kept.table:
            if probe.initial_loss is not None and probe.step not in chosen:
                self._kept.put(probe.with_values(initial_loss=None))
        for extra in self.extras:
            if extra.at_most is not None:
                extra.leave_only(evenly(self._kept.steps, extra.at_most))

    # ----------------------------------------------------------------------- the present iterate

    def at_present(self, *, losses: bool, go_on: Callable[[], bool]) -> ProbeTable:
        """Return some probes with the present iterate in the place of x_p; leave the table alone.

        Args:
            losses: whether losses are evaluated as well, which calls the user's code.
            go_on: called by all processes alike before each further record: whether there is time.
        """
        present = self._evaluator.training.present()
        rows: list[Probe] = []
        if losses:
            with self._evaluator.session():
                self._present_rows(present, rows, go_on, losses=True)
        else:
            self._present_rows(present, rows, go_on, losses=False)
        return ProbeTable(rows)

    def _present_rows(
        self,
        present: Mapping[str, Tensor],
        rows: list[Probe],
        go_on: Callable[[], bool],
        *,
        losses: bool,
    ) -> None:
        for step in evenly(self._kept.steps, PRESENT):
            if rows and not go_on():
                return
            try:
                with self._processes.agreed():
                    record = self._kept.store.read(step)
                    values: dict[str, float] = self._evaluator.products(record, present)._asdict()
                    if losses:
                        values["reference_loss"] = self._evaluator.loss(record, present)
            except NotMeasurable:
                continue
            if is_finite(*values.values()):
                rows.append(self._kept.table.at_step(step).with_values(**values))


def first_middle_last(steps: Sequence[int]) -> list[int]:
    """Return the first, the middle and the last of some steps, each once.

    Example:
        >>> first_middle_last([0, 10, 20, 30, 40]), first_middle_last([5]), first_middle_last([])
        ([0, 20, 40], [5], [])
    """
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
