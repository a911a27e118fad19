"""Sums over every optimizer step: the trajectory certificate needs no estimate from probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_landscape.training.scaling import (
    accumulation_factor,
    learning_rate,
    unscaling_factor,
)
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.gradients import Gradient, copied_gradient, is_finite
from lightning_landscape.vectors.parameters import copied


@dataclass(slots=True)
class Sums:
    """Sums over the steps from ``first_step`` on."""

    first_step: int
    steps: int = 0
    step_size: float = 0.0
    """Σ η_k"""
    sq_step: float = 0.0
    """Σ η_k² G_k²"""
    residual: float = 0.0
    """Σ ‖e_k‖"""
    sq_residual: float = 0.0
    """Σ ‖e_k‖²"""
    negative_steps: int = 0
    """Number of steps with η_k < 0"""


class StepSums:
    """Measures every step: two copies of x, and three passes over it, at each.

    Args:
        training: the run, under automatic optimization.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._backward_passes = 0
        self._gradient = Gradient({}, 1.0)
        self._before: dict[str, Tensor] = {}
        self.sums: Sums | None = None
        """None before x_0, and after a step was missed"""
        self._lost = False
        self._expected = 0.0
        """About the step size that follows from the learning rate"""

    def forget_gradients(self) -> None:
        """Gradients are about to be zeroed."""
        self._backward_passes = 0

    def count_backward(self) -> None:
        """A micro-batch's gradient was added."""
        self._backward_passes += 1

    def take(self) -> None:
        """Copy x_k and g_k: everything is accumulated and nothing has moved yet."""
        trainer, optimizer = self._training.trainer, self._training.optimizer
        parameters = self._training.parameters()
        self._before, self._gradient = copied(parameters), Gradient({}, 1.0)
        if self._backward_passes:
            short = accumulation_factor(trainer, self._backward_passes)
            self._expected = (learning_rate(optimizer) or 0.0) / short
            factor = unscaling_factor(trainer, optimizer) * short
            self._gradient = copied_gradient(parameters, factor)

    def add(self, step: int, first_step: int | None) -> None:
        """Add the step that was made since `take`, if there was one.

        Args:
            step: its number.
            first_step: step of the first probe, where the sums begin; None before it.
        """
        before, self._before = self._before, {}
        if not before or first_step is None or self._lost:
            return
        if self.sums is None:
            self.sums = Sums(first_step)
        if step != self.sums.first_step + self.sums.steps:
            self.sums, self._lost = None, True
            rank_zero_warn(
                f"LandscapeMonitor(every_step=True) did not see every step before step {step}, as "
                "after resuming from a checkpoint without these sums. The sums are estimated from "
                "the probes"
            )
            return
        after = self._training.values_of(before)
        measure, g = self._training.products.step, self._gradient
        found = measure(before, after, g.raw, g.factor, expected=self._expected)
        if not is_finite(*found):  # after an overflow, no movement is along a gradient
            found = measure(before, after, {}, 1.0)
        sums = self.sums
        sums.steps += 1
        sums.step_size += found.step_size
        sums.sq_step += found.step_size**2 * found.grad_sq_norm
        sums.residual += found.residual
        sums.sq_residual += found.residual**2
        sums.negative_steps += found.step_size < 0

    def state(self) -> dict[str, Any] | None:
        """Return the sums as plain values."""
        return asdict(self.sums) if self.sums is not None else None

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of a checkpoint."""
        self.sums = Sums(**state)
