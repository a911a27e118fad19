"""Whether replays at x_k give what training recorded there: the loss, and the gradient that the optimiser got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_landscape.probing.freezing import Frozen
from lightning_landscape.probing.gradients import Gradient, is_finite, loss_scale
from lightning_landscape.probing.parameters import optimized_parameters, sq_change
from lightning_landscape.probing.replay import Replayer


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


class FidelityCheck:
    """Replays a step at its own x_k and notes how far it is off; the module is to be there, inside ``replayer.silence()``.

    Args:
        trainer: the trainer.
        module: the module.
        optimizer: its optimiser.
        replayer: evaluates losses and gradients; told where exact losses need autograd.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer, replayer: Replayer) -> None:
        self._trainer, self._module, self._optimizer, self._replayer = trainer, module, optimizer, replayer
        self.found = Fidelity()

    def loss(self, step: int, recorded: float, moments: Sequence[Frozen]) -> None:
        """Compare the loss; where it is not exact without autograd, try with it.

        Some kernels (recurrent ones, the fast path of transformers) round differently when no gradient is asked for.
        """
        difference = abs(self._replayer.mean_loss(moments) - recorded)
        if difference != 0 and not self._replayer.gradients_enabled:
            self._replayer.gradients_enabled = True
            again = abs(self._replayer.mean_loss(moments) - recorded)
            self._replayer.gradients_enabled = again < difference
            difference = min(again, difference)
        self.found.note(step, difference)

    def gradient(self, taken: Gradient, moments: Sequence[Frozen]) -> None:
        """Compare the gradient that the optimiser got with that of the loss: a callback may have changed it."""
        parameters, scale = optimized_parameters(self._module, self._optimizer), loss_scale(self._trainer)
        try:
            _, replayed = self._replayer.mean_loss_and_gradient(moments, parameters, scale)
        except Exception:
            return  # a module that only ``backward`` goes through: its losses are compared, its gradients are not
        both = replayed.keys() & taken.raw.keys()  # a part may have been frozen or unfrozen since
        there, here, factor = {n: replayed[n] for n in both}, {n: taken.raw[n] for n in both}, 1 / (scale * len(moments))
        size = max(sq_change(there, factor, {}, 1.0), sq_change(here, taken.factor, {}, 1.0))
        change = sq_change(there, factor, here, taken.factor)
        if is_finite(size, change):  # a loss scale that has grown since may overflow
            self.found.note_gradient(math.sqrt(change / size) if size else 0.0)
