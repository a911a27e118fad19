"""The seconds of a run, on from one fit to the next, and what a budget makes of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_landscape.recording.budget import Budget, Reading
from lightning_landscape.training.description import planned_steps
from lightning_landscape.training.processes import Processes


class Clock:
    """Started with training; each process has one, and they decide together.

    Args:
        trainer: the trainer, when training starts.
        processes: those of the run.
        share: the share of the time of training that the monitor may take; None for no budget.
        evaluations: how many evaluations a number of kept probes takes at the end.
    """

    def __init__(
        self,
        trainer: Trainer,
        processes: Processes,
        share: float | None,
        evaluations: Callable[[int], int],
    ) -> None:
        self._trainer, self._processes, self._share, self._evaluations = (
            trainer,
            processes,
            share,
            evaluations,
        )
        self._started, self._before, self._from_step = time.perf_counter(), 0.0, trainer.global_step
        self._budget = self._new_budget()

    def _new_budget(self) -> Budget | None:
        if self._share is None:
            return None
        return Budget(
            self._share, self._evaluations, planned_steps(self._trainer) - self._from_step
        )

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before the checkpoint that this fit goes on from included."""
        return self._before + time.perf_counter() - self._started

    def spacing(self, step: int, spent: float, kept: int) -> float:
        """Return how many steps apart probes must be from here on, at least; all processes have to call it.

        Args:
            step: the step that is about to be made.
            spent: seconds in the monitor so far.
            kept: probes that wait for the end of training.
        """
        if self._budget is None:
            return 0.0
        # each process has seconds of its own, and all probe together
        return self._processes.largest(self._budget.spacing(self._reading(step, spent, kept)))

    def has_room(self, step: int, spent: float, kept: int) -> bool:
        """Return whether all kept probes may be evaluated at an iterate of the run; all processes have to call it."""
        if self._budget is None:
            return True
        return self._processes.largest(self._budget.strain(self._reading(step, spent, kept))) <= 1

    def _reading(self, step: int, spent: float, kept: int) -> Reading:
        return Reading(step - self._from_step, self.elapsed, spent, kept)

    def note_probe(self, seconds: float) -> None:
        """Take the cost of a probe into account."""
        if self._budget is not None:
            self._budget.note_probe(seconds)

    def note_evaluations(self, seconds: float, count: int) -> None:
        """Take into account how long it took to evaluate stored probes."""
        if self._budget is not None:
            self._budget.note_evaluations(seconds, count)

    # ------------------------------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain numbers."""
        return {
            "clock": {"elapsed": self.elapsed, "from_step": self._from_step},
            "budget": self._budget.state() if self._budget is not None else None,
        }

    def adopt(self, state: Mapping[str, Any]) -> bool:
        """Go on from a checkpoint; False if it has no clock, as those of an earlier version."""
        if state.get("clock") is None:
            return False
        self._before, self._from_step = state["clock"]["elapsed"], state["clock"]["from_step"]
        self._budget = self._new_budget()
        if self._budget is not None and state.get("budget") is not None:
            self._budget.adopt(state["budget"])
        return True


def overhead(spent: float, elapsed: float, finalisation: float) -> dict[str, float]:
    """Return the share of the monitor in training, the seconds of evaluation after it, and the share in both together.

    Example:
        >>> overhead(spent=1.0, elapsed=10.0, finalisation=10.0)
        {'training': 0.1, 'finalisation_s': 10.0, 'total': 0.55}
    """
    return {
        "training": spent / max(elapsed, math.ulp(1.0)),
        "finalisation_s": finalisation,
        "total": (spent + finalisation) / max(elapsed + finalisation, math.ulp(1.0)),
    }
