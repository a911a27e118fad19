"""Whether replays at x_k give what training recorded there: the loss, and the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.store.record import Record
from lightning_landscape.vectors.gradients import Gradient, is_finite


@dataclass(slots=True)
class Fidelity:
    """How far replays at x_k were from what training recorded there."""

    steps: list[int] = field(default_factory=list)
    """The steps that were replayed"""
    max_abs: float = 0.0
    """Largest difference of a loss"""
    gradient: float | None = None
    """Largest ‖g − ∇f_i(x_k)‖ relative to the longer of the two; None: no gradient was replayed"""

    @property
    def exact(self) -> bool:
        """Whether every replay gave the recorded loss to the last bit."""
        return self.max_abs == 0

    def note(self, step: int, difference: float) -> None:
        """Add a comparison of losses."""
        self.steps = sorted({*self.steps, step})
        self.max_abs = max(self.max_abs, difference if is_finite(difference) else math.inf)

    def note_gradient(self, difference: float) -> None:
        """Add a comparison of gradients."""
        self.gradient = max(self.gradient or 0.0, difference)

    def warn(self) -> None:
        """Warn where replays were not exact."""
        if not self.exact:
            rank_zero_warn(
                "LandscapeMonitor evaluated a mini-batch loss again, in the state in which it was "
                f"recorded, and the value is off by {self.max_abs:.3g}. Usual causes: a forward "
                "pass that is not deterministic, a state outside the module, a hook that edits the "
                "batch. Every number of this run is marked with it"
            )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Fidelity:
        """Go on from a checkpoint."""
        return cls(list(state["steps"]), state["max_abs"], state["gradient"])


class FidelityCheck:
    """Replays a record at its own x_k; to be used inside `Evaluator.session`.

    Args:
        evaluator: evaluates records.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, self._processes = evaluator, evaluator.training.processes
        self.found = Fidelity()

    def check(self, record: Record) -> bool:
        """Compare loss and gradient; return whether the loss was exact.

        Where it is not exact without autograd, in one of the processes, try with it: some kernels
        (recurrent ones, the fast path of transformers) round differently without gradients.
        """
        replay, difference = self._evaluator.replay, self._difference(record)
        if difference != 0 and not replay.gradients_enabled:
            replay.gradients_enabled = True
            again = self._difference(record)
            replay.gradients_enabled = again < difference
            difference = min(again, difference)
        self.found.note(record.step, difference)
        self._check_gradient(record)
        return difference == 0

    def _difference(self, record: Record) -> float:
        """Return how far the loss is off, in the process in which it is furthest."""
        with self._evaluator.at(record):
            off = abs(self._evaluator.replay.loss(record.moments) - record.loss)
        return self._processes.largest(off if is_finite(off) else math.inf)

    def _check_gradient(self, record: Record) -> None:
        """Compare the recorded gradient with that of the loss: a callback may have changed it."""
        try:
            with self._processes.agreed():
                _, again = self._evaluator.gradient(record)
        except Exception:
            # autograd.grad does not go through every module that backward() goes through
            return
        exact = record.gradient is not None and record.error.gradient == 0
        everywhere = self._processes.everywhere(exact or not self._evaluator.training.measures)
        if everywhere and record.gradient is not None:
            self._compare(again, record.gradient)

    def _compare(self, again: Gradient, first: Gradient) -> None:
        both = [name for name in again.raw if name in first.raw]  # some were frozen since, or freed
        left, right = ({n: g.raw[n] for n in both} for g in (again, first))
        sq_change = self._evaluator.training.products.sq_change
        size = max(sq_change(left, again.factor, {}, 1.0), sq_change(right, first.factor, {}, 1.0))
        change = sq_change(left, again.factor, right, first.factor)
        if is_finite(size, change):  # a loss scale that has grown since may overflow
            self.found.note_gradient(math.sqrt(change / size) if size else 0.0)
