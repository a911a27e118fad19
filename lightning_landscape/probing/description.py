"""How a run was made: what ``summary.json`` says of it beside its probes, in plain values."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer


def describe_run(trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> dict[str, Any]:
    """Return optimiser, hyper-parameters, precision, processes, accumulation and versions."""
    held = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
    return {
        "parameters": sum(parameter.numel() for parameter in held.values()),
        "optimizer": {"class": type(optimizer).__name__, "defaults": plain(optimizer.defaults)},
        "hparams": plain(module.hparams),
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("lightning-landscape", "lightning", "torch", "torchmetrics")},
        },
    }


def plain(value: Any, depth: int = 8) -> Any:
    """Return a value as strict JSON holds it; objects, and what is nested deeper than ``depth``, become their text."""
    try:
        return _plain(value, depth)
    except Exception as error:  # whatever a user's object does when it is asked for its text
        return f"{type(value).__name__} without a text: {type(error).__name__}"


def _plain(value: Any, depth: int) -> Any:
    if depth == 0:
        return type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth - 1) for item in value]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return plain(value.item(), depth - 1)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return str(value)
