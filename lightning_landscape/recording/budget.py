"""How far apart probes must be so that the monitor stays within a share of the training time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

RECENT = 9
"""The cost of a probe is the median over this many newest probes. The first one costs more"""


@dataclass(frozen=True, slots=True)
class Reading:
    """Clocks and counters when a probe is due."""

    steps: int
    """Steps since the clock started"""
    elapsed: float
    """Seconds of these steps, including those in the monitor"""
    spent: float
    """Seconds in the monitor"""
    kept: int
    """Probes that are evaluated at the end of training"""


@dataclass(slots=True)
class Budget:
    r"""The distance between probes that keeps the monitor within a share m of all time.

    After k steps, U is the time of training itself, t = U/k the time of one step, and M the time in
    the monitor, all in seconds. F is the predicted time of the evaluation at the end. The monitor
    is within its share if M + F ≤ a U with a = m/(1 − m).

    One more probe costs p = c + e: c while training, and e at the end. If the monitor may spend r
    seconds a step, probes are p/r steps apart. With h steps to come,

        r = min(a t, (a (U + h t) − M − F − p)/h)  while h ≥ k,  else  r = a t.

    - r never exceeds the budget's own rate a t, so that a run that is stopped early is also within
      its share.
    - The second term recovers costs that occur once, such as a compilation. In h steps there are up
      to h r/p + 1 probes, hence the last p. In the second half of training a recovery would halve
      the table and save little time, so it ends there.
    - If the end is unknown, r = a t/2 while M + F > a U, else r = a t.

    c is the median cost of the newest probes. F is the number of evaluations at the end times the
    time of one evaluation. That time is first taken to be t, and later the measured time of an
    evaluation at the present iterate. While only the first cost is known, a second probe is made as
    planned if the whole run can pay that cost once more.

    A schedule doubles its stride until the stride is wide enough or the probe is no longer due. It
    never narrows, so it does not oscillate. Each doubling is decided with the clock of its own
    step.

    Args:
        share: m, between 0 and 1.
        evaluations: returns the number of evaluations at the end for a number of probes.
        planned: total number of steps, counted as in `Reading`; ``inf`` if it is unknown.

    Example:
        >>> budget = Budget(0.05, evaluations=lambda kept: kept)
        >>> budget.note_probe(1.0)
        >>> budget.note_probe(1.0)
        >>> reading = Reading(steps=1000, elapsed=1002.0, spent=2.0, kept=2)
        >>> round(budget.spacing(reading), 1)  # (c + e)/(a t)
        38.0
    """

    share: float
    evaluations: Callable[[int], int]
    planned: float = math.inf
    costs: list[float] = field(default_factory=list)
    """Seconds of the newest probes, without evaluation"""
    probes: int = 0
    """Number of all probes so far"""
    evaluation: float | None = None
    """Seconds of one evaluation; None before the first"""

    def note_probe(self, seconds: float) -> None:
        """Note the cost of a probe while training, in seconds."""
        self.costs = [*self.costs, seconds][-RECENT:]
        self.probes += 1

    def note_evaluations(self, seconds: float, count: int) -> None:
        """Note the time of ``count`` evaluations, in seconds."""
        if count:
            self.evaluation = seconds / count

    def spacing(self, now: Reading) -> float:
        """Return the smallest number of steps between probes from now on.

        It is 0 if no cost is known, and ``inf`` if no budget is left.
        """
        if not self.costs or now.steps < 1:
            return 0.0
        ahead = self.planned - now.steps
        end_is_known = 0 < ahead < math.inf
        cost, at_end = median_low(self.costs), self._at_end(now)
        if self.probes == 1 and (not end_is_known or cost <= self._left(now, ahead)):
            return 0.0
        price = cost + at_end(now.kept + 1) - at_end(now.kept)
        rate = self._rate * (self._of_training(now) / now.steps)
        if not end_is_known:
            rate /= 2 if self._left(now) < 0 else 1
        elif ahead >= now.steps:
            rate = min(rate, (self._left(now, ahead) - price) / ahead)
        return price / rate if rate > 0 else math.inf

    def strain(self, now: Reading) -> float:
        """Return the used share of the budget so far if all probes were evaluated now and again.

        Above 1 the budget allows the evaluation at the end only.
        """
        allowed = self._rate * self._of_training(now)
        return (now.spent + 2 * self._at_end(now)(now.kept)) / allowed if allowed > 0 else math.inf

    @property
    def _rate(self) -> float:
        """a, seconds of the monitor for each second of training."""
        return self.share / (1 - self.share)

    def _left(self, now: Reading, ahead: float = 0.0) -> float:
        """Return the seconds that are left for further probes, with ``ahead`` steps to come."""
        training = self._of_training(now) * (1 + ahead / now.steps)
        return self._rate * training - now.spent - self._at_end(now)(now.kept)

    def _of_training(self, now: Reading) -> float:
        return max(0.0, now.elapsed - now.spent)

    def _at_end(self, now: Reading) -> Callable[[int], float]:
        """Return F as a function of the number of probes."""
        step = self._of_training(now) / now.steps if now.steps else math.inf
        each = step if self.evaluation is None else self.evaluation
        return lambda kept: each * self.evaluations(kept)

    # ----------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return plain numbers for a checkpoint."""
        return {"costs": list(self.costs), "probes": self.probes, "evaluation": self.evaluation}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of a checkpoint."""
        self.costs, self.probes = list(state["costs"]), state["probes"]
        self.evaluation = state["evaluation"]
