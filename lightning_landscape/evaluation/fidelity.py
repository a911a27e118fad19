"""Whether replays at x_k give what training recorded there: the loss, and the gradient that the optimiser got."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_landscape.evaluation.replay import Replayer
from lightning_landscape.recording.freezing import Frozen
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.gradients import Gradient, is_finite, loss_scale
from lightning_landscape.vectors.parameters import optimized_parameters
from lightning_landscape.vectors.products import Products

There = Callable[[], AbstractContextManager[None]]
"""Puts the module to x_k, anew for every replay: one may move parameters that are not x (a momentum encoder)"""


@dataclass(slots=True)
class Fidelity:
    """How well replays at x_k reproduced what training recorded there."""

    steps: list[int] = field(default_factory=list)
    max_abs: float = 0.0
    """Largest difference of a loss"""
    gradient: float | None = None
    """The largest ‖g − ∇f_i(x_k)‖, beside the longer of the two; None where no gradient was replayed"""

    def note(self, step: int, difference: float) -> None:
        """Add a comparison of losses."""
        if step not in self.steps:
            self.steps = sorted([*self.steps, step])
        self.max_abs = max(self.max_abs, difference if is_finite(difference) else math.inf)

    def note_gradient(self, difference: float) -> None:
        """Add a comparison of gradients."""
        self.gradient = max(self.gradient or 0.0, difference)

    @property
    def exact(self) -> bool:
        """Whether every replay gave the recorded loss to the last bit."""
        return self.max_abs == 0

    def warn(self) -> None:
        """Say so where replays were not exact."""
        if not self.exact:
            rank_zero_warn(
                f"LandscapeMonitor evaluated a mini-batch loss again in the state in which it was recorded and got another "
                f"value, off by {self.max_abs:.3g}. Usual causes: a forward pass that is not deterministic, a state kept "
                "outside the module, a hook that edits the batch. Every number of this run is marked with it"
            )


class FidelityCheck:
    """Replays a step at its own x_k and notes how far it is off; to be used inside ``replayer.silence()``.

    Args:
        trainer: the trainer.
        module: the module.
        optimizer: its optimiser.
        replayer: evaluates losses and gradients; told where exact losses need autograd.
        processes: those of the run, which compare each its own loss.
        products: measures how far gradients are apart.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        replayer: Replayer,
        processes: Processes,
        products: Products,
    ) -> None:
        self._trainer, self._module, self._optimizer, self._replayer = (
            trainer,
            module,
            optimizer,
            replayer,
        )
        self._processes, self._products = processes, products
        self.found = Fidelity()

    def loss(self, step: int, recorded: float, moments: Sequence[Frozen], there: There) -> None:
        """Compare this process's loss; where it is not exact without autograd, in one of them, try with it.

        Some kernels (recurrent ones, the fast path of transformers) round differently when no gradient is asked for.

        Args:
            step: the step.
            recorded: the loss that training saw.
            moments: of this process's micro-batches.
            there: puts the module to x_k.
        """
        difference = self._difference(recorded, moments, there)
        if difference != 0 and not self._replayer.gradients_enabled:
            self._replayer.gradients_enabled = True
            again = self._difference(recorded, moments, there)
            self._replayer.gradients_enabled = again < difference
            difference = min(again, difference)
        self.found.note(step, difference)

    def _difference(self, recorded: float, moments: Sequence[Frozen], there: There) -> float:
        """Return how far the loss is off, in the process in which it is furthest."""
        with there():
            off = abs(self._replayer.mean_loss(moments) - recorded)
        return self._processes.largest(off if is_finite(off) else math.inf)

    def gradient(self, taken: Gradient | None, moments: Sequence[Frozen], there: There) -> None:
        """Compare the gradient that the optimiser got with that of the loss: a callback may have changed it.

        Args:
            taken: what the optimiser got; None where another process has it and compares.
            moments: of this process's micro-batches.
            there: puts the module to x_k.
        """
        parameters, scale = (
            optimized_parameters(self._module, self._optimizer),
            loss_scale(self._trainer),
        )
        try:
            with self._processes.agreed(), there():
                _, replayed = self._replayer.mean_loss_and_gradient(moments, parameters, scale)
        except Exception:
            return  # a module that only ``backward`` goes through: its losses are compared, its gradients are not
        replayed = self._replayer.averaged(replayed, parameters)
        if taken is None:
            return
        both = [
            name for name in replayed if name in taken.raw
        ]  # a part may have been frozen or unfrozen since
        again, first = {n: replayed[n] for n in both}, {n: taken.raw[n] for n in both}
        factor = self._replayer.gradient_factor(moments, scale)
        sq_change = self._products.sq_change
        size = max(sq_change(again, factor, {}, 1.0), sq_change(first, taken.factor, {}, 1.0))
        change = sq_change(again, factor, first, taken.factor)
        if is_finite(size, change):  # a loss scale that has grown since may overflow
            self.found.note_gradient(math.sqrt(change / size) if size else 0.0)
