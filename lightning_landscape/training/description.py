"""Describe how a run was made, as plain values for ``summary.json``."""

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
    """Return optimizer, hyper-parameters, precision, processes, accumulation and versions.

    Args:
        trainer: the trainer.
        module: the module in training.
        optimizer: the measured optimizer, or the measured part of it.
    """
    whole = whole_of(optimizer)
    x = optimized_parameters(module, optimizer)
    return {
        "parameters": sum(parameter.numel() for parameter in x.values()),
        "optimizer": _describe_optimizer(optimizer),
        "gradient_clipping": _clipping(trainer),
        "trained_elsewhere": len(trained_elsewhere(module, trainer.optimizers, x)),
        "lr_schedulers": _schedulers(trainer, whole),
        "sampling": sampling(trainer.train_dataloader),
        "batches_per_epoch": plain(trainer.num_training_batches),
        "hparams": plain(module.hparams),
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
    }


_PACKAGES = ("lightning-landscape", "lightning", "torch", "torchmetrics")


@functools.cache
def _version(name: str) -> str:
    return version(name)


def _describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    kind = type(whole_of(optimizer))
    return {
        "class": kind.__name__,
        "module": kind.__module__,
        "defaults": plain(optimizer.defaults),
        "groups": [
            plain({name: value for name, value in group.items() if name != "params"})
            for group in optimizer.param_groups
        ],
    }


def planned_steps(trainer: Trainer) -> float:
    """Return the total number of optimizer steps of this run; ``inf`` if it is unknown."""
    try:
        steps = trainer.estimated_stepping_batches
    except MisconfigurationException:  # the accumulation changes from epoch to epoch
        return math.inf
    return steps if steps > 0 else math.inf  # Lightning returns -1 for a loader without a length


def _clipping(trainer: Trainer) -> dict[str, Any] | None:
    """Return Lightning's gradient clipping; None if there is none."""
    if not trainer.gradient_clip_val:
        return None
    return {
        "value": plain(trainer.gradient_clip_val),
        "algorithm": plain(trainer.gradient_clip_algorithm or "norm"),
    }


def _schedulers(trainer: Trainer, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the learning rate schedulers, except those that belong to another optimizer."""
    others = [other for other in trainer.optimizers if other is not optimizer]
    configured = []
    for config in trainer.lr_scheduler_configs:
        scheduled = getattr(config.scheduler, "optimizer", None)
        if not any(scheduled is other for other in others):
            configured.append(config)
    return [
        {
            "class": type(config.scheduler).__name__,
            "reduce_on_plateau": bool(config.reduce_on_plateau),
        }
        for config in configured
    ]


def sampling(loader: Any) -> str:
    """Return how a loader draws mini-batches.

    Args:
        loader: the training loader, of any type.

    Returns:
        "with_replacement", "reshuffled", "sequential", or "unknown".

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampling(DataLoader([1.0, 2.0], shuffle=True)), sampling(DataLoader([1.0, 2.0]))
        ('reshuffled', 'sequential')
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return "unknown"
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return "unknown"  # a batch sampler of the user's may shuffle
    sampler = loader.sampler
    if isinstance(sampler, (RandomSampler, WeightedRandomSampler)):
        return "with_replacement" if sampler.replacement else "reshuffled"
    shuffle = getattr(sampler, "shuffle", None)  # an attribute of torch's DistributedSampler
    if isinstance(sampler, SubsetRandomSampler) or shuffle is True:
        return "reshuffled"
    if isinstance(sampler, SequentialSampler) or shuffle is False:
        return "sequential"
    return "unknown"


def plain(value: Any, depth: int = 8) -> Any:
    """Return a value as strict JSON can hold it; other objects become text.

    Args:
        value: any value.
        depth: levels of containers; a value that is nested deeper becomes the name of its class.
    """
    try:
        return _plain(value, depth)
    except Exception as error:  # str() of a user's object may raise anything
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
        return value if math.isfinite(value) else str(value)  # strict JSON has no nan or inf
    return str(value)


def describe_loss(module: nn.Module, loss: Any, infimum: float) -> dict[str, Any]:
    """Return how the mini-batch loss f_i is computed.

    Args:
        module: the module, in the mode in which it is trained.
        loss: the user's ``loss=``; None if f_i is the loss of ``training_step``.
        infimum: the stated lower bound of f_i.
    """
    modules = list(module.modules())
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    drops = [m for m in modules if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    name = getattr(loss, "__qualname__", type(loss).__qualname__)
    return {
        "source": "training_step" if loss is None else name,
        "infimum": infimum,
        "training_mode": module.training,
        "batch_norm": any(m.training or m.running_mean is None for m in norms),
        "dropout": any(m.training for m in drops),
    }
