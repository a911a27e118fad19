"""The columns that need x_p, filled for the stored probes once it is known, and the lines from some iterates to it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from lightning_landscape.evaluation.fidelity import FidelityCheck
from lightning_landscape.evaluation.reference import Reference
from lightning_landscape.evaluation.stored_probes import Itself, StoredProbes
from lightning_landscape.extras.held_out import HeldOut
from lightning_landscape.extras.layers import layer_rows
from lightning_landscape.extras.per_sample import PerSample
from lightning_landscape.probes import ProbeTable
from lightning_landscape.recording.rows import Rows
from lightning_landscape.recording.schedule import evenly
from lightning_landscape.records import FixedBatchRow, SegmentPoint
from lightning_landscape.training.failures import NotMeasurable, said, warn_once
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.gradients import is_finite
from lightning_landscape.vectors.products import Products

INITIAL_LOSSES = 32
"""On so many kept probes, at most, the loss at x_0 is evaluated"""

FRACTIONS = tuple(part / 10 for part in range(11))
"""Where on a line from an iterate to x_p the loss is evaluated"""

PROVISIONAL = 16
"""So many probes, at most, are evaluated at an iterate of the run before x_p is known: each takes half a step or so"""


def warn_held_out(error: Exception, step: int) -> None:
    """Say that a held-out batch could not be evaluated; all else goes on."""
    warn_once(
        error,
        f"LandscapeMonitor(held_out=...) could not evaluate a held-out batch at step {step}, {said(error)}. Supported are "
        "batches that training_step (or loss=) takes as it does those of training; there are no further ones, all else goes on",
    )


def warn_samples(error: Exception, step: int) -> None:
    """Say that single samples could not be evaluated; all else goes on."""
    warn_once(
        error,
        f"LandscapeMonitor(per_sample=...) could not evaluate the samples of step {step}, {said(error)}. Supported are losses "
        "that give as many numbers at the reference as at the iterate; there are no further ones, all else goes on",
    )


Track = Callable[[Sequence[int], str], Iterable[int]]


class Completion:
    """Completes the rows of a run; to be used inside ``replayer.silence()``, by all processes alike.

    Args:
        rows: the kept probes, filled row by row: what is done is in its table at any time.
        stored: evaluates them.
        checks: compares replays at x_k with what training recorded.
        processes: those of the run, which evaluate the same rows in the same order.
        products: measures inner products.
        segments: from how many iterates, x_0 among them, the loss on the line to x_p is evaluated.
        held_out: evaluates batches that did not make the trajectory; None for none.
        per_sample: evaluates single samples; None for none.
    """

    def __init__(
        self,
        rows: Rows,
        stored: StoredProbes,
        checks: FidelityCheck,
        processes: Processes,
        products: Products,
        *,
        segments: int,
        held_out: HeldOut | None = None,
        per_sample: PerSample | None = None,
    ) -> None:
        self._rows, self._stored, self._checks, self._processes = rows, stored, checks, processes
        self._products, self._lines, self._held_out, self._per_sample = (
            products,
            segments,
            held_out,
            per_sample,
        )

    def evaluations(self, kept: int, *, live: bool) -> int:
        """Return how many evaluations of a loss so many kept probes take, at most.

        Args:
            kept: number of probes.
            live: whether the rows were evaluated at x_p while training.
        """
        at_reference, lines = (0, min(1, self._lines)) if live else (kept, min(kept, self._lines))
        batches = 0 if self._held_out is None or live else self._held_out.batches * kept
        samples = 0 if self._per_sample is None or live else self._per_sample.passes * kept
        # of each of the batches a loss and its gradient, worth three, and the loss at x_p
        return (
            at_reference
            + min(kept, INITIAL_LOSSES)
            + lines * (len(FRACTIONS) - 2)
            + 4 * batches
            + samples
        )

    def at(self, reference: Reference, track: Track) -> None:
        """Fill the columns that need x_p, and the loss at x_0.

        Args:
            reference: x_p.
            track: shows progress over steps.
        """
        waiting = [probe.step for probe in self._rows.table if not probe.evaluated]
        known = self._stored.as_they_were(waiting)
        for step in sorted({known[0], known[len(known) // 2], known[-1]}) if known else []:
            self._unless_gone(step, self._check)
        waiting = [step for step in waiting if step in self._rows.schedule.kept]
        following = dict(itertools.pairwise(waiting))
        with self._stored.one_after_another():
            for step in track(waiting, "probes at x_p"):
                self._unless_gone(
                    step, functools.partial(self._evaluate, reference, following.get(step))
                )
        self._evaluate_initial(reference, track)
        self._evaluate_segments(reference, track)
        self._evaluate_held_out(reference, track)
        self._evaluate_samples(reference, track)

    def _unless_gone(self, step: int, evaluate: Callable[[int], None]) -> None:
        """Evaluate a stored probe; a row whose probe is gone, in any process, is dropped and counted."""
        try:
            with self._processes.agreed():
                evaluate(step)
        except NotMeasurable:
            self._rows.lose(step, "unevaluable")

    def _check(self, step: int) -> None:
        itself = self._stored.itself(step, exactly=True)
        loss, gradient = self._stored.as_recorded(step)
        self._checks.loss(step, loss, itself.moments, itself.there)
        self._checks.gradient(gradient, itself.moments, itself.there)

    def _evaluate(self, reference: Reference, following: int | None, step: int) -> None:
        values = self._stored.at_reference(step, reference.parameters, following)
        if not is_finite(*values):
            self._rows.lose(step, "non_finite")
            return
        probe = self._rows.table.at_step(step).with_values(**values._asdict())
        self._rows.put(probe)
        accuracy = self._stored.accuracy(step, reference.parameters, values)
        if accuracy is not None:
            self._rows.accuracies[step] = accuracy
        if self._rows.layers is not None and self._stored.measures:
            x, gradient = (
                self._stored.iterate(step, reference.parameters),
                self._stored.gradient(step),
            )
            self._rows.layers[step] = layer_rows(
                probe, x, reference.parameters, gradient, self._products
            )

    def _evaluate_initial(self, reference: Reference, track: Track) -> None:
        kept = self._rows.schedule.kept
        chosen = [step for step in evenly(kept, INITIAL_LOSSES) if self._stored.holds(step)]
        if not chosen or chosen[0] != kept[0]:
            return  # x_0 itself is gone
        try:
            with self._processes.agreed():
                start = self._stored.start(chosen[0], reference.parameters)
        except NotMeasurable:
            return
        with self._stored.one_after_another():
            for step in track(chosen, "probes at x_0"):
                with suppress(NotMeasurable), self._processes.agreed():
                    loss = self._stored.elsewhere(step, start)
                    if is_finite(loss):
                        self._rows.put(
                            self._rows.table.at_step(step).with_values(initial_loss=loss)
                        )

    def _evaluate_segments(self, reference: Reference, track: Track) -> None:
        """Evaluate some probes' losses on the straight lines from their iterates to x_p; the ends are known."""
        chosen = evenly(self._rows.schedule.kept, self._lines) if self._lines else []
        with self._stored.one_after_another():
            for step in track(
                [step for step in chosen if self._stored.holds_iterate(step)], "lines to x_p"
            ):
                if not self._evaluate_segment(step, reference):
                    return

    def _evaluate_segment(self, step: int, reference: Reference) -> bool:
        """Evaluate one line; return whether others are worth trying."""
        try:
            with self._processes.agreed():
                inside = self._stored.between(step, reference.parameters, FRACTIONS[1:-1])
        except NotMeasurable:
            return True
        except (
            Exception
        ) as error:  # between two points that it knows a module may be where it cannot be
            warn_once(
                error,
                f"LandscapeMonitor could not evaluate the line from step {step} to x_p, {said(error)}; there are no further "
                "lines, all else goes on",
            )
            return False
        probe = self._rows.table.at_step(step)
        points = zip(FRACTIONS, [probe.loss, *inside, probe.reference_loss], strict=True)
        self._rows.segments += [
            SegmentPoint(step, t, loss)
            for t, loss in points
            if loss is not None and is_finite(loss)
        ]
        return True

    def _evaluate_held_out(self, reference: Reference, track: Track) -> None:
        """Evaluate batches that did not make the trajectory, at every probe that has none yet."""
        if self._held_out is None:
            return
        waiting = [step for step in self._rows.schedule.kept if step not in self._rows.held_out]
        with self._stored.one_after_another():
            for step in track(
                [step for step in waiting if self._stored.holds_iterate(step)], "held-out batches"
            ):
                if not self._hold_out_stored(step, reference):
                    return

    def _hold_out_stored(self, step: int, reference: Reference) -> bool:
        """Evaluate one stored probe's held-out batches; return whether others are worth trying."""
        try:
            with self._processes.agreed():
                itself = self._stored.itself(step)
                x = (
                    self._stored.for_names(itself.x, step, reference.parameters)
                    if self._stored.measures
                    else {}
                )
                self.hold_out(step, itself, x, reference)
        except NotMeasurable:
            return True
        except Exception as error:
            warn_held_out(error, step)
            return False
        return True

    def hold_out(
        self, step: int, itself: Itself, x: Mapping[str, Tensor], reference: Reference
    ) -> None:
        """Add the rows of a probe's held-out batches; see `HeldOut.at`."""
        assert self._held_out is not None, "asked for"
        probe = self._rows.table.at_step(step)
        new, fixed = self._held_out.at(itself, x, reference.parameters)
        if is_finite(*new):
            self._rows.held_out[step] = replace(probe, **new._asdict(), initial_loss=None)
        rows = [
            FixedBatchRow(step, probe.logged_step, i, *values)
            for i, values in enumerate(fixed)
            if is_finite(*values)
        ]
        if rows:
            self._rows.fixed_batches[step] = rows

    def _evaluate_samples(self, reference: Reference, track: Track) -> None:
        """Evaluate the single samples of every probe that has none yet."""
        if self._per_sample is None:
            return
        waiting = [step for step in self._rows.schedule.kept if step not in self._rows.per_sample]
        with self._stored.one_after_another():
            for step in track(
                [step for step in waiting if self._stored.holds_iterate(step)], "single samples"
            ):
                if not self._take_stored_samples(step, reference):
                    return

    def _take_stored_samples(self, step: int, reference: Reference) -> bool:
        """Evaluate one stored probe's samples; return whether others are worth trying."""
        try:
            with self._processes.agreed():
                self.take_samples(step, self._stored.itself(step), reference)
        except NotMeasurable:
            return True
        except Exception as error:
            self.give_samples_up(error, step)
            return False
        return True

    def give_samples_up(self, error: Exception, step: int) -> None:
        """Evaluate no single samples any more, and say why."""
        assert self._per_sample is not None, "asked for"
        self._per_sample.about["stopped_by"] = f"{said(error)}, at step {step}"
        self._per_sample = None
        warn_samples(error, step)

    @property
    def takes_samples(self) -> bool:
        """Whether single samples are evaluated, and have not been given up."""
        return self._per_sample is not None

    def take_samples(self, step: int, itself: Itself, reference: Reference) -> None:
        """Add the samples of a probe; see `PerSample.at`."""
        assert self._per_sample is not None, "asked for"
        samples = self._per_sample.at(self._rows.table.at_step(step), itself, reference.parameters)
        self._rows.per_sample[step] = samples

    def provisional(self, there: Reference) -> ProbeTable:
        """Return the probes kept so far, at most `PROVISIONAL` of them, evaluated at a point in the place of x_p.

        What is in the store is evaluated, nothing of the table changes.
        """
        rows = []
        with self._stored.one_after_another():
            for step in evenly(self._rows.schedule.kept, PROVISIONAL):
                with suppress(NotMeasurable), self._processes.agreed():
                    values = self._stored.at_reference(step, there.parameters)
                    if is_finite(*values):
                        rows.append(self._rows.table.at_step(step).with_values(**values._asdict()))
        return ProbeTable(rows)
