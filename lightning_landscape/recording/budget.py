"""How far apart probes must be so that the monitor keeps to a share of the time of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

RECENT = 9
"""The cost of a probe is the median over so many newest ones: the first, with all that happens once, is soon forgotten"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What clocks and counters say when a probe is due."""

    steps: int
    """Steps made since the clock started"""
    elapsed: float
    """Seconds that they took, those of the monitor included"""
    spent: float
    """Seconds of these in the monitor"""
    kept: int
    """Probes that wait for the end of training"""


@dataclass(slots=True)
class Budget:
    r"""The stride that keeps (seconds of the monitor) / (seconds of training and evaluation) under a share m.

    With U seconds in which training itself made k steps, t = U/k, and M seconds in the monitor, the share is kept to if
    M + F ≤ a U, where a = m/(1 − m) and F is what the evaluation at the end will take. One more probe costs c while training
    and e at the end. What it may cost a step is r, and so probes must be

        p/r  steps apart, p = c + e, where  r = min(a t, (a (U + h t) − M − F − p)/h)  while h ≥ k steps are to come,
        else  r = a t

    (in h steps there are up to h r/p + 1 probes, the one that is due now among them): never more than the budget's own rate,
    so that a run that is stopped keeps to it, and less where what happened once, such as a first compilation, is still to be
    made up for. From the middle on that is no reason to widen any more: it would cost half of the table and save little.
    Where the end is not known, r = a t/2 while M + F > a U.

    c is the median of the newest probes' costs. F is the number of evaluations at the end times the
    time of one: a step of training; later, the measured time of an evaluation at the present
    iterate. While only the first cost is known, a second probe is taken where it is due if the
    whole run could pay twice that cost.

    A schedule answers with doubling its stride until that is wide enough or the probe is due no longer, whatever comes first:
    it never narrows, so nothing oscillates, and each doubling is decided with the clock of its own step.

    Args:
        share: m, between 0 and 1.
        evaluations: how many evaluations a number of kept probes takes at the end.
        planned: steps that training is to make in all, counted as those of `Reading`; ``inf`` where that is not known.

    Example:
        >>> budget = Budget(0.05, evaluations=lambda kept: kept)
        >>> budget.note_probe(1.0)
        >>> budget.note_probe(1.0)
        >>> round(budget.spacing(Reading(steps=1000, elapsed=1002.0, spent=2.0, kept=2)), 1)  # (c + e)/(a t)
        36.1
    """

    share: float
    evaluations: Callable[[int], int]
    planned: float = math.inf
    costs: list[float] = field(default_factory=list)
    """Seconds of the newest probes, while training"""
    probes: int = 0
    """How many were noted in all"""
    evaluation: float | None = None
    """Seconds of one evaluation at an iterate of the run, once there was any"""

    def note_probe(self, seconds: float) -> None:
        """Take into account what a probe has cost while training."""
        self.costs = [*self.costs, seconds][-RECENT:]
        self.probes += 1

    def note_evaluations(self, seconds: float, count: int) -> None:
        """Take into account how long it took to evaluate stored probes."""
        if count:
            self.evaluation = seconds / count

    def spacing(self, now: Reading) -> float:
        """Return how many steps apart probes must be from here on; 0 where nothing is known, ``inf`` where nothing is left."""
        if not self.costs or now.steps < 1:
            return 0.0
        ahead = self.planned - now.steps
        known = 0 < ahead < math.inf
        cost, at_end, per_step = (
            median_low(self.costs),
            self._at_end(now),
            self._of_training(now) / now.steps,
        )
        if self.probes == 1 and (not known or cost <= self._left(now, ahead)):
            return 0.0
        price, rate = cost + at_end(now.kept + 1) - at_end(now.kept), self._rate * per_step
        if not known:
            rate /= 2 if self._left(now) < 0 else 1
        elif ahead >= now.steps:
            rate = min(rate, (self._left(now, ahead) - price) / ahead)
        return price / rate if rate > 0 else math.inf

    def strain(self, now: Reading) -> float:
        """Return the share of the budget of training so far that would be used up if all kept probes were evaluated twice.

        Once at an iterate of the run, now, and once at the end; above 1 there is no room for the former.
        """
        allowed = self._rate * self._of_training(now)
        return (now.spent + 2 * self._at_end(now)(now.kept)) / allowed if allowed > 0 else math.inf

    @property
    def _rate(self) -> float:
        """a: seconds of the monitor for each second of training."""
        return self.share / (1 - self.share)

    def _left(self, now: Reading, ahead: float = 0.0) -> float:
        """Return the seconds that are left for further probes, with so many steps to come."""
        training = self._of_training(now) * (1 + ahead / now.steps)
        return self._rate * training - now.spent - self._at_end(now)(now.kept)

    def _of_training(self, now: Reading) -> float:
        return max(0.0, now.elapsed - now.spent)

    def _at_end(self, now: Reading) -> Callable[[int], float]:
        """Return F as a function of the number of kept probes."""
        step = self._of_training(now) / now.steps if now.steps else math.inf
        each = step if self.evaluation is None else self.evaluation
        return lambda kept: each * self.evaluations(kept)

    # ------------------------------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain numbers."""
        return {
            "costs": list(self.costs),
            "probes": self.probes,
            "evaluation": self.evaluation,
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.costs, self.probes = list(state["costs"]), state["probes"]
        self.evaluation = state["evaluation"]
