"""How a run was made: what ``summary.json`` says of it beside its probes, in plain values."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_landscape.training.part import trained_elsewhere, whole_of
from lightning_landscape.vectors.parameters import optimized_parameters


def describe_run(trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> dict[str, Any]:
    """Return optimiser, hyper-parameters, precision, processes, accumulation and versions.

    Args:
        trainer: the trainer.
        module: the module in training.
        optimizer: the measured optimiser, or the part of it that is measured.
    """
    held = {
        id(parameter): parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {
        "parameters": sum(parameter.numel() for parameter in held.values()),
        "optimizer": {
            "class": type(whole_of(optimizer)).__name__,
            "module": type(whole_of(optimizer)).__module__,
            "defaults": plain(optimizer.defaults),
            "groups": [
                plain({k: v for k, v in group.items() if k != "params"})
                for group in optimizer.param_groups
            ],
        },
        "gradient_clipping": _clipping(trainer),
        "trained_elsewhere": len(
            trained_elsewhere(module, trainer.optimizers, optimized_parameters(module, optimizer))
        ),
        "lr_schedulers": _schedulers(trainer, whole_of(optimizer)),
        "sampling": sampling(trainer.train_dataloader),
        "batches_per_epoch": plain(trainer.num_training_batches),
        "hparams": plain(module.hparams),
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "versions": {
            "python": platform.python_version(),
            **{
                name: _version(name)
                for name in ("lightning-landscape", "lightning", "torch", "torchmetrics")
            },
        },
    }


@functools.cache
def _version(name: str) -> str:
    return version(name)


def planned_steps(trainer: Trainer) -> float:
    """Return how many optimizer steps training is to make in all, as its counter will show; ``inf`` where that is not known."""
    try:
        steps = trainer.estimated_stepping_batches
    except MisconfigurationException:  # accumulation that changes from epoch to epoch
        return math.inf
    return steps if steps > 0 else math.inf  # Lightning says -1 of a loader without a length


def _clipping(trainer: Trainer) -> dict[str, Any] | None:
    """Return Lightning's clipping of gradients, or None."""
    if not trainer.gradient_clip_val:
        return None
    return {
        "value": plain(trainer.gradient_clip_val),
        "algorithm": plain(trainer.gradient_clip_algorithm or "norm"),
    }


def _schedulers(trainer: Trainer, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the learning rate schedulers, those of other optimisers aside, and which of them look at a measured value."""
    others = [other for other in trainer.optimizers if other is not optimizer]
    of = [(c, getattr(c.scheduler, "optimizer", None)) for c in trainer.lr_scheduler_configs]
    configured = [c for c, scheduled in of if not any(scheduled is other for other in others)]
    return [
        {"class": type(c.scheduler).__name__, "reduce_on_plateau": bool(c.reduce_on_plateau)}
        for c in configured
    ]


def sampling(loader: Any) -> str:
    """Return how mini-batches are drawn: "with_replacement", "reshuffled", "sequential", or "unknown".

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampling(DataLoader([1.0, 2.0], shuffle=True)), sampling(DataLoader([1.0, 2.0]))
        ('reshuffled', 'sequential')
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return "unknown"
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return "unknown"  # the user's own, which may shuffle
    sampler = loader.sampler
    if isinstance(sampler, (RandomSampler, WeightedRandomSampler)):
        return "with_replacement" if sampler.replacement else "reshuffled"
    if (
        isinstance(sampler, SubsetRandomSampler) or getattr(sampler, "shuffle", False) is True
    ):  # also torch's distributed one
        return "reshuffled"
    plainly = isinstance(sampler, SequentialSampler) or getattr(sampler, "shuffle", True) is False
    return "sequential" if plainly else "unknown"


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


def describe_loss(module: nn.Module, loss: Any, infimum: float) -> dict[str, Any]:
    """Return what f_i means in this run."""
    modules = list(module.modules())
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    drops = [m for m in modules if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    return {
        "source": "training_step"
        if loss is None
        else getattr(loss, "__qualname__", type(loss).__qualname__),
        "infimum": infimum,
        "training_mode": module.training,
        "batch_norm": any(m.training or m.running_mean is None for m in norms),
        "dropout": any(m.training for m in drops),
    }
