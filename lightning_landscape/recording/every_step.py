"""Sums over every optimiser step, for the certificate of the trajectory: exact where probes give estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.vectors.gradients import (
    Gradient,
    accumulation_factor,
    is_finite,
    learning_rate,
    read_gradient,
    unscaling_factor,
)
from lightning_landscape.vectors.parameters import (
    copied,
    local_values,
    named_parameters,
    optimized_parameters,
)
from lightning_landscape.vectors.products import Products


@dataclass(slots=True)
class Sums:
    """Over the steps from ``first_step`` on."""

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
    """Steps with η_k < 0"""


class StepSums:
    """Measures every step: x_k and g_k are copied at each, which costs two copies of the parameters and three passes over them.

    Args:
        trainer: the trainer, in ``fit``.
        module: the module in training, under automatic optimisation.
        optimizer: its optimiser.
        products: measures steps.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer, products: Products
    ) -> None:
        self._trainer, self._module, self._optimizer, self._products = (
            trainer,
            module,
            optimizer,
            products,
        )
        self._backward_passes = 0
        self._gradient = Gradient({}, 1.0)
        self._before: dict[str, Tensor] = {}
        self.sums: Sums | None = None
        """None before x_0, and where a step was missed"""
        self._lost = False
        self._expected = 0.0
        """What η is likely to be"""

    def forget_gradients(self) -> None:
        """Note that gradients are about to be zeroed."""
        self._backward_passes = 0

    def count_backward(self) -> None:
        """Note that a micro-batch's gradient was added."""
        self._backward_passes += 1

    def take(self) -> None:
        """Copy x_k and g_k: everything is accumulated and nothing has moved yet."""
        parameters = optimized_parameters(self._module, self._optimizer)
        self._before, self._gradient = copied(parameters), Gradient({}, 1.0)
        if self._backward_passes:
            short = accumulation_factor(self._trainer, self._backward_passes)
            self._expected = (learning_rate(self._optimizer) or 0.0) / short
            factor = unscaling_factor(self._trainer, self._optimizer) * short
            self._gradient = read_gradient(parameters, factor)

    def add(self, step: int, first_step: int | None) -> None:
        """Add the step that was made since `take`, if there was one.

        Args:
            step: its number.
            first_step: the step of the first probe, from which on the sums run; None before it.
        """
        before, self._before = self._before, {}
        if not before or first_step is None or self._lost:
            return
        if self.sums is None:
            self.sums = Sums(first_step)
        if step != self.sums.first_step + self.sums.steps:
            self.sums, self._lost = None, True
            rank_zero_warn(
                f"LandscapeMonitor(exact_sums=True) did not see every step before step {step}, as where a run goes on from a "
                "checkpoint without its sums; they are estimated from the probes"
            )
            return
        parameters = named_parameters(self._module)
        after = local_values({name: parameters[name] for name in before})
        measures = self._products.step(
            before, after, self._gradient.raw, self._gradient.factor, expected=self._expected
        )
        if not is_finite(
            *measures
        ):  # an overflow: what moved nevertheless was not along a gradient
            measures = self._products.step(before, after, {}, 1.0)
        self.sums.steps += 1
        self.sums.step_size += measures.step_size
        self.sums.sq_step += measures.step_size**2 * measures.grad_sq_norm
        self.sums.residual += measures.residual
        self.sums.sq_residual += measures.residual**2
        self.sums.negative_steps += measures.step_size < 0

    def state(self) -> dict[str, Any] | None:
        """Return the sums as plain values."""
        return asdict(self.sums) if self.sums is not None else None

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of a checkpoint."""
        self.sums = Sums(**state)
