"""Refuse a run that cannot be measured, before its first optimizer step.

Each error says what was found, what is supported and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.optim import Optimizer

from lightning_landscape.training.part import choose
from lightning_landscape.vectors.sharding import is_sharded

# Strategies are known by name, because importing one would import its library (DeepSpeed, XLA).
_REFUSED = {
    "FSDPStrategy": "FSDP1 flattens and shards the parameters, so that they cannot be replaced",
    "DeepSpeedStrategy": "DeepSpeed hides parameters and gradients and makes the steps itself",
    "XLAStrategy": "XLA devices run a graph for every number that the processes exchange",
}
_SEVERAL = ("DDPStrategy", "ModelParallelStrategy")
_WAYS = (
    "supported are one process, DistributedDataParallel (strategy='ddp'), and FSDP2 or tensor "
    "parallelism (ModelParallelStrategy): train with one of these"
)


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy that hides parameters or gradients, or gives each process its own."""
    name = type(trainer.strategy).__name__
    kinds = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    for kind, reason in _REFUSED.items():
        if kind in kinds:
            raise MisconfigurationException(
                f"LandscapeMonitor found the strategy {name}: {reason}; {_WAYS}"
            )
    if trainer.world_size > 1 and not any(kind in kinds for kind in _SEVERAL):
        raise MisconfigurationException(
            f"LandscapeMonitor found {trainer.world_size} processes under the strategy {name}, and "
            f"does not know how this strategy shares parameters and gradients; {_WAYS}"
        )
    if getattr(trainer.strategy, "_model_averaging_period", None) is not None:
        raise MisconfigurationException(
            f"LandscapeMonitor found model averaging ({name}(model_averaging_period=...)): between "
            "two averages each process has other parameters; supported are processes with the same "
            "parameters: leave model_averaging_period out"
        )


def check_module(module: LightningModule, loss: Any) -> None:
    """Refuse a module whose mini-batch loss cannot be evaluated again."""
    name = type(module).__name__
    if not module.automatic_optimization and loss is None:
        raise MisconfigurationException(
            f"LandscapeMonitor found manual optimization in {name}: evaluating its training_step "
            "again would make another step; supported is a loss function beside it: pass loss=, "
            "a function of (module, batch) that returns the loss"
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise MisconfigurationException(
            f"LandscapeMonitor found training_step(dataloader_iter) in {name}, which hides the "
            "batches; supported is training_step(batch, batch_idx): let it take the batch"
        )


def check_folder(dirpath: str | os.PathLike[str]) -> None:
    """Refuse a folder that cannot be created or written to."""
    path = Path(dirpath).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return
    problem = "is not writable" if existing.is_dir() else "is not a folder"
    raise MisconfigurationException(
        f"LandscapeMonitor(dirpath={str(dirpath)!r}) found that {existing} {problem}; supported "
        "are folders that you can write to: pass another dirpath="
    )


def check_prefixes(prefixes: Sequence[str]) -> None:
    """Refuse two monitors with the same prefix, because they would mix their folders and curves."""
    repeated = sorted({prefix for prefix in prefixes if prefixes.count(prefix) > 1})
    if repeated:
        raise MisconfigurationException(
            f"LandscapeMonitor found {prefixes.count(repeated[0])} monitors with "
            f"prefix={repeated[0]!r}; supported is a different prefix for each monitor: pass "
            "prefix="
        )


def check_optimizers(
    optimizers: list[Optimizer], module: nn.Module, parameters: str | None
) -> Optimizer:
    """Return the optimizer to measure.

    Args:
        optimizers: all optimizers of the run.
        module: the module in training.
        parameters: name of the submodule whose parameters are measured; None for all of them.

    Raises:
        MisconfigurationException: if the choice is ambiguous, or if the optimizer evaluates the
            loss several times a step.
    """
    optimizer = choose(optimizers, module, parameters)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MisconfigurationException(
            f"LandscapeMonitor found {type(optimizer).__name__}, which evaluates loss and gradient "
            "at several points in each step; supported are optimizers that use one gradient a "
            "step, such as SGD and Adam: use one of these"
        )
    return optimizer


def check_parameters(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Refuse an optimizer without parameters, and complex or uninitialized parameters."""
    if not parameters:
        raise MisconfigurationException(
            f"LandscapeMonitor found no parameters in {type(optimizer).__name__}; supported is an "
            "optimizer with parameters: pass it some, or leave the monitor out"
        )
    complex_ones = [name for name, parameter in parameters.items() if parameter.is_complex()]
    if complex_ones:
        raise MisconfigurationException(
            f"LandscapeMonitor found complex parameters: {complex_ones[:5]}; supported are real "
            "parameters: store real and imaginary parts in a real parameter, and use "
            "torch.view_as_complex of it"
        )
    uninitialized = [
        name
        for name, parameter in parameters.items()
        if isinstance(parameter, nn.UninitializedParameter)
    ]
    if uninitialized:
        raise MisconfigurationException(
            f"LandscapeMonitor found uninitialized parameters: {uninitialized[:5]}; supported are "
            "parameters with a shape: call lazy modules once on a batch before fit"
        )


def check_shards(trainer: Trainer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse trained parameters that FSDP2 leaves unsharded, because they differ by process."""
    mesh = getattr(trainer.strategy, "_device_mesh", None)
    if mesh is None or mesh["data_parallel"].size() == 1:
        return
    unsharded = [
        name
        for name, parameter in parameters.items()
        if parameter.requires_grad and not is_sharded(parameter)
    ]
    if unsharded:
        raise MisconfigurationException(
            f"LandscapeMonitor found parameters that are not sharded among the "
            f"{mesh['data_parallel'].size()} data-parallel processes: {unsharded[:5]}. Their "
            "gradients are not averaged, so each process trains its own copy; supported are "
            "modules whose trained parameters are all sharded: in configure_model call "
            "fully_shard on the modules that hold these parameters, too"
        )


def check_batches(batches: float | None) -> None:
    """Refuse a run without training batches.

    Args:
        batches: number of training batches; None if it is unknown.
    """
    if batches == 0:
        raise MisconfigurationException(
            "LandscapeMonitor found no training batches; supported is a run with at least one: "
            "check the training data loader and limit_train_batches, or leave the monitor out"
        )


def check_same_processes(then: int, now: int, prefix: str) -> None:
    """Refuse to continue from a checkpoint of a run with another number of processes.

    Args:
        then: number of processes of the run that wrote the checkpoint.
        now: number of processes of this run.
        prefix: the monitor's prefix.
    """
    if then != now:
        raise MisconfigurationException(
            f"LandscapeMonitor found a checkpoint of a run with {_counted(then, 'process')}, and "
            f"{now} now: each process has recorded its own share of a mini-batch; supported is the "
            f"same number of processes: train on {_counted(then, 'device')}, or start a new table "
            f"with another prefix= than {prefix!r}"
        )


def _counted(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{plural if count > 1 else ''}"
