"""The factors by which Lightning and a GradScaler change a loss and its gradient."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from lightning_landscape.training.part import whole_of


def loss_scale(trainer: Trainer) -> float:
    """Return the present scale of the GradScaler; 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def unscaling_factor(trainer: Trainer, optimizer: Optimizer) -> float:
    """Return the factor that unscales ``p.grad`` in ``on_before_optimizer_step``.

    A GradScaler has unscaled it already, with two exceptions: fused optimizers unscale in their
    own step, and Lightning skips unscaling where the last micro-batch had no loss.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    stage = scaler._per_optimizer_states.get(id(whole_of(optimizer)), {}).get("stage")
    return 1.0 if getattr(stage, "name", None) == "UNSCALED" else 1.0 / loss_scale(trainer)


def learning_rate(optimizer: Optimizer) -> float | None:
    """Return the learning rate; None where parameter groups have different ones."""
    rates = {float(group["lr"]) for group in optimizer.param_groups if "lr" in group}
    return rates.pop() if len(rates) == 1 else None


def accumulation_factor(trainer: Trainer, backward_passes: int) -> float:
    """Return N/k for a window of k micro-batches: Lightning divides every loss by N."""
    return trainer.accumulate_grad_batches / backward_passes
