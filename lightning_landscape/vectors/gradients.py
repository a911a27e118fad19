"""The mini-batch gradient at the moment before the optimiser's step: of its parameters, unscaled, undivided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.training.part import whole_of
from lightning_landscape.vectors.parameters import copied
from lightning_landscape.vectors.sharding import is_sharded, local_gradient


@dataclass(frozen=True, slots=True)
class Gradient:
    """g = ``factor`` · ``raw``: kept apart so that undoing a division never rounds a low-precision gradient."""

    raw: Mapping[str, Tensor]
    """By parameter name; a parameter that is missing has no gradient: frozen, or unused by this batch.

    Of a sharded parameter it is this process's part."""
    factor: float


def loss_scale(trainer: Trainer) -> float:
    """Return the factor by which a GradScaler multiplies losses now; 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def unscaling_factor(trainer: Trainer, optimizer: Optimizer) -> float:
    """Return what turns ``p.grad`` in ``on_before_optimizer_step`` into an unscaled gradient.

    There a GradScaler has unscaled already, but for optimisers that do so themselves (fused ones), and where the last
    micro-batch had no loss: then Lightning leaves both the unscaling and the step out.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    stage = scaler._per_optimizer_states.get(id(whole_of(optimizer)), {}).get("stage")
    return 1.0 if getattr(stage, "name", None) == "UNSCALED" else 1.0 / loss_scale(trainer)


def learning_rate(optimizer: Optimizer) -> float | None:
    """Return the learning rate; None where parameter groups have several."""
    rates = {float(group["lr"]) for group in optimizer.param_groups if "lr" in group}
    return rates.pop() if len(rates) == 1 else None


def accumulation_factor(trainer: Trainer, backward_passes: int) -> float:
    """Return N/k: Lightning divides every loss by N, however many micro-batches k a window really has."""
    return trainer.accumulate_grad_batches / backward_passes


def present_gradient(parameters: Mapping[str, Tensor], factor: float) -> Gradient:
    """Return ``p.grad`` of the given parameters, in its own memory where it is strided: training changes it.

    Sparse gradients become dense, of sharded ones there is this process's part.

    Args:
        parameters: by name.
        factor: of the gradient.
    """
    present = {
        name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None
    }
    return Gradient(
        {name: _dense(gradient, parameters[name]) for name, gradient in present.items()}, factor
    )


def read_gradient(parameters: Mapping[str, Tensor], factor: float) -> Gradient:
    """Return a copy of the `present_gradient`."""
    return Gradient(copied(present_gradient(parameters, factor).raw), factor)


def _dense(gradient: Tensor, parameter: Tensor) -> Tensor:
    if is_sharded(parameter):
        return local_gradient(gradient, parameter)
    return (
        gradient.detach().to_dense() if gradient.layout != parameter.layout else gradient.detach()
    )


def is_finite(*values: float) -> bool:
    """Return whether all values are finite numbers."""
    return all(math.isfinite(value) for value in values)
