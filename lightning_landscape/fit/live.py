"""Evaluations while training: those that the user asked for, and those that need copies alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lightning_landscape.evaluation.evaluation import Evaluation
from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.probes import ProbeTable
from lightning_landscape.recording.kept import KeptProbes
from lightning_landscape.store.record import Record

SHARE = 0.005
"""Largest share of the time of training that is spent on the present iterate without losses"""


class Live:
    """Evaluates records before training has ended.

    Args:
        evaluator: evaluates a record.
        evaluation: completes its row.
        kept: the probes.
    """

    def __init__(self, evaluator: Evaluator, evaluation: Evaluation, kept: KeptProbes) -> None:
        self._evaluator, self._evaluation, self._kept = evaluator, evaluation, kept
        self._training = evaluator.training
        self._seconds = 0.0
        """Time spent on the present iterate so far"""

    def at_once(self, record: Record, reference: Mapping[str, Tensor]) -> None:
        """Complete the row of a record right after its step; ``reference=`` a file asks for it.

        Args:
            record: in memory, the newest of the kept probes.
            reference: x_p by name.

        Raises:
            ValueError: if x_p lacks parameters that have joined x since it was read.
        """
        if late := [name for name in record.x or () if name not in reference]:
            raise ValueError(f"found no value of {late} in the reference: these joined x late")
        record, steps = self._with_others(record), self._kept.steps
        if record.step == steps[0]:
            self._kept.write_start(record)  # a resumed run needs x_0
        earlier = len(steps) - 1
        with self._evaluator.session(restored=set(reference)):
            # probes 0, 1, 2, 4, 8, …: each check costs a forward and a backward pass
            if earlier & (earlier - 1) == 0:
                fidelity = self._evaluation.fidelity
                exact_so_far = fidelity.found.exact
                if not fidelity.check(record) and exact_so_far:
                    fidelity.found.warn()
            self._evaluation.at(record, reference)

    def _with_others(self, record: Record) -> Record:
        """Return a record with the values of parameters that are not x, if these moved since."""
        present, store = self._training.others(), self._kept.store
        if record.others or not present or not store.others_changed(present):
            return record
        return replace(record, others=store.newest_others())

    def at_present(self, *, losses: bool, elapsed: float) -> ProbeTable:
        """Return some probes with the present iterate in the place of x_p.

        Args:
            losses: whether losses are evaluated, which calls the user's code. Without them, the
                time is bounded.
            elapsed: seconds of training so far.
        """
        started = time.perf_counter()

        def in_time() -> bool:
            spent = self._seconds + time.perf_counter() - started
            return self._training.processes.everywhere(losses or spent <= SHARE * elapsed)

        rows = self._evaluation.at_present(losses=losses, go_on=in_time)
        self._seconds += time.perf_counter() - started
        return rows
