"""The time of a run, also across checkpoints, and the distance between probes that it allows."""

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
    """The clock of one process, which starts when it is created. All processes decide together.

    Args:
        trainer: the trainer, when training starts.
        processes: the processes of the run.
        share: largest share of all time for the monitor; None for no budget.
        evaluations: returns the number of evaluations at the end for a number of probes.
    """

    def __init__(
        self,
        trainer: Trainer,
        processes: Processes,
        share: float | None,
        evaluations: Callable[[int], int],
    ) -> None:
        self._trainer, self._processes = trainer, processes
        self._share, self._evaluations = share, evaluations
        self._started, self._from_step = time.perf_counter(), trainer.global_step
        self._before = 0.0
        """Seconds before the checkpoint from which this fit continues"""
        self._budget = self._new_budget()

    def _new_budget(self) -> Budget | None:
        if self._share is None:
            return None
        planned = planned_steps(self._trainer) - self._from_step
        return Budget(self._share, self._evaluations, planned)

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, including those before the checkpoint."""
        return self._before + time.perf_counter() - self._started

    def spacing(self, step: int, spent: float, kept: int) -> float:
        """Return the smallest number of steps between probes from now on.

        Every process must call this.

        Args:
            step: the step that is about to be made.
            spent: seconds in the monitor so far.
            kept: number of probes that are evaluated at the end of training.
        """
        if self._budget is None:
            return 0.0
        # Each process measures its own seconds, but all must probe the same steps.
        return self._processes.largest(self._budget.spacing(self._reading(step, spent, kept)))

    def has_room(self, step: int, spent: float, kept: int) -> bool:
        """Return whether the budget allows to evaluate all probes at the present iterate.

        Every process must call this. The arguments are those of `spacing`.
        """
        if self._budget is None:
            return True
        return self._processes.largest(self._budget.strain(self._reading(step, spent, kept))) <= 1

    def _reading(self, step: int, spent: float, kept: int) -> Reading:
        return Reading(step - self._from_step, self.elapsed, spent, kept)

    def note_probe(self, seconds: float) -> None:
        """Note the cost of a probe while training, in seconds."""
        if self._budget is not None:
            self._budget.note_probe(seconds)

    def note_evaluations(self, seconds: float, count: int) -> None:
        """Note the time of ``count`` evaluations, in seconds."""
        if self._budget is not None:
            self._budget.note_evaluations(seconds, count)

    # ----------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return plain numbers for a checkpoint."""
        return {
            "clock": {"elapsed": self.elapsed, "from_step": self._from_step},
            "budget": self._budget.state() if self._budget is not None else None,
        }

    def adopt(self, state: Mapping[str, Any]) -> bool:
        """Continue from the `state` of a checkpoint.

        Returns:
            False if the checkpoint has no clock, as in an earlier version.
        """
        if state.get("clock") is None:
            return False
        self._before, self._from_step = state["clock"]["elapsed"], state["clock"]["from_step"]
        self._budget = self._new_budget()
        if self._budget is not None and state.get("budget") is not None:
            self._budget.adopt(state["budget"])
        return True


def overhead(spent: float, elapsed: float, finalisation: float) -> dict[str, float]:
    """Return the monitor's share of the time.

    Args:
        spent: seconds in the monitor while training.
        elapsed: seconds of training, including the monitor.
        finalisation: seconds of the evaluation after training.

    Returns:
        ``training``, the share while training; ``finalisation_s``; and ``total``, the share of
        training and evaluation together.

    Example:
        >>> overhead(spent=1.0, elapsed=10.0, finalisation=10.0)
        {'training': 0.1, 'finalisation_s': 10.0, 'total': 0.55}
    """
    return {
        "training": spent / max(elapsed, math.ulp(1.0)),
        "finalisation_s": finalisation,
        "total": (spent + finalisation) / max(elapsed + finalisation, math.ulp(1.0)),
    }
