"""What cannot be measured, refused before the first optimiser step: what was found, what is supported, what to do."""

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

GIB = 2**30

# by name: an import of a strategy would import what it needs
_REFUSED = {
    "FSDPStrategy": "parameters flattened and sharded by FSDP1, which cannot be swapped and put back",
    "DeepSpeedStrategy": "DeepSpeed, which keeps gradients and parameters to itself and steps on its own",
    "XLAStrategy": "XLA devices, on which every exchange of a number is a step of a graph",
}
_SEVERAL = ("DDPStrategy", "ModelParallelStrategy")
_WAYS = (
    "supported are one process, DistributedDataParallel (strategy='ddp') and FSDP2 or tensor parallelism "
    "(ModelParallelStrategy): train with one of these to measure"
)


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies on which the table would be wrong."""
    name = type(trainer.strategy).__name__
    kinds = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    for kind, why in _REFUSED.items():
        if kind in kinds:
            raise MisconfigurationException(
                f"LandscapeMonitor found the strategy {name}: {why}; {_WAYS}"
            )
    if trainer.world_size > 1 and not any(kind in kinds for kind in _SEVERAL):
        raise MisconfigurationException(
            f"LandscapeMonitor found {trainer.world_size} processes under the strategy {name}, of which it does not know how "
            f"they share parameters and gradients; {_WAYS}"
        )
    if getattr(trainer.strategy, "_model_averaging_period", None) is not None:
        raise MisconfigurationException(
            f"LandscapeMonitor found model averaging ({name}(model_averaging_period=...)): the processes have parameters of "
            "their own between averages, so there is no one x_k; supported are processes with the same parameters: leave "
            "model_averaging_period out"
        )


def check_module(module: LightningModule, loss: Any) -> None:
    """Refuse modules whose mini-batch loss cannot be evaluated again."""
    name = type(module).__name__
    if not module.automatic_optimization and loss is None:
        raise MisconfigurationException(
            f"LandscapeMonitor found manual optimization in {name}: a second call of its training_step would make a second "
            "step. Supported with manual optimization is loss=, a function of (module, batch) that returns the loss"
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise MisconfigurationException(
            f"LandscapeMonitor found training_step(dataloader_iter) in {name}, which hides its batches; supported is "
            "training_step(batch, batch_idx): let it take the batch"
        )


def check_folder(dirpath: str | os.PathLike[str]) -> None:
    """Refuse a folder that cannot be made or written to."""
    path = Path(dirpath).absolute()
    ancestor = next(parent for parent in (path, *path.parents) if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        what = "is no folder" if not ancestor.is_dir() else "is not writable"
        raise MisconfigurationException(
            f"LandscapeMonitor(dirpath={str(dirpath)!r}): {ancestor} {what}; supported are folders that this user can write "
            "to: pass another dirpath="
        )


def check_prefixes(prefixes: Sequence[str]) -> None:
    """Refuse two monitors of one name: their folders and curves would be mixed up."""
    twice = sorted({prefix for prefix in prefixes if prefixes.count(prefix) > 1})
    if twice:
        raise MisconfigurationException(
            f"LandscapeMonitor found {prefixes.count(twice[0])} monitors with prefix={twice[0]!r}; supported is a name for "
            "each: pass them different prefix="
        )


def check_optimizers(
    optimizers: list[Optimizer], module: nn.Module, parameters: str | None
) -> Optimizer:
    """Return the optimiser to measure; refuse where none is chosen, and those that evaluate the loss more than once a step."""
    optimizer = choose(optimizers, module, parameters)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MisconfigurationException(
            f"LandscapeMonitor found {type(optimizer).__name__}, which evaluates loss and gradient at several points a step; "
            "supported are optimizers that take one gradient a step, as SGD and Adam do: use one of these"
        )
    return optimizer


def check_parameters(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Refuse an optimiser without parameters, and parameters without values."""
    if not parameters:
        raise MisconfigurationException(
            f"LandscapeMonitor found no parameters in {type(optimizer).__name__}; supported is an optimizer with at least one"
        )
    complex_ones = [name for name, parameter in parameters.items() if parameter.is_complex()]
    if complex_ones:
        raise MisconfigurationException(
            f"LandscapeMonitor found complex parameters: {complex_ones[:5]}; supported are real ones: keep real and imaginary "
            "part in one real parameter and use torch.view_as_complex of it"
        )
    unready = [
        name
        for name, parameter in parameters.items()
        if isinstance(parameter, nn.UninitializedParameter)
    ]
    if unready:
        raise MisconfigurationException(
            f"LandscapeMonitor found parameters without a shape: {unready}; supported are initialised modules: run one forward "
            "pass through lazy modules before fit"
        )


def check_shards(trainer: Trainer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse parameters that nobody keeps the same: under FSDP2 those that were left out of it."""
    mesh = getattr(trainer.strategy, "_device_mesh", None)
    if mesh is None or mesh["data_parallel"].size() == 1:
        return
    whole = [
        name
        for name, parameter in parameters.items()
        if parameter.requires_grad and not is_sharded(parameter)
    ]
    if whole:
        raise MisconfigurationException(
            f"LandscapeMonitor found parameters that are not sharded among the {mesh['data_parallel'].size()} data-parallel "
            f"processes: {whole[:5]}. Nobody averages their gradients, so each process trains its own; supported are modules "
            "that are sharded whole: call fully_shard on what holds these parameters, too, in configure_model"
        )


def check_batches(batches: float | None) -> None:
    """Refuse a run without training batches; None is an unknown number."""
    if batches == 0:
        raise MisconfigurationException(
            "LandscapeMonitor found no training batches; supported is a run with at least one: check the training data loader "
            "and limit_train_batches, or leave the monitor out"
        )


def check_same_processes(then: int, now: int, prefix: str) -> None:
    """Refuse to go on from a checkpoint of another number of processes: their mini-batches were others."""
    if then != now:
        raise MisconfigurationException(
            f"LandscapeMonitor found a checkpoint of a run with {then} process{'es' if then > 1 else ''}, and {now} now: the "
            "mini-batches of its probes were divided among the processes, and would be others. Supported is the same number: "
            f"train on {then} device{'s' if then > 1 else ''}, or start a new table with another prefix= than {prefix!r}"
        )
