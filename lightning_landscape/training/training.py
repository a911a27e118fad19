"""One training run as the monitor sees it, fixed when training starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_landscape.training.part import part_of
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.parameters import (
    copied,
    held_by,
    local_values,
    named_parameters,
    optimized_parameters,
)
from lightning_landscape.vectors.products import Products
from lightning_landscape.vectors.sharding import is_sharded, shares


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """Trainer, module, the measured optimizer, and the processes of the run.

    x are the parameters of the module that the optimizer holds.
    """

    trainer: Trainer
    module: LightningModule
    optimizer: Optimizer
    """The measured optimizer, or its part that holds the parameters of one submodule"""
    processes: Processes
    sharded: bool = False
    """Whether each process has its own part of the parameters"""
    shares: Mapping[str, float] = field(default_factory=dict)
    """By name, the factor of this process's part in a sum over all; empty unless sharded"""
    products: Products = field(default_factory=Products)
    """Inner products over the parameters"""

    @classmethod
    def of(
        cls,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        processes: Processes | None = None,
        part: str | None = None,
    ) -> Training:
        """Return a run as it is when training starts.

        Args:
            trainer: the trainer, in ``fit``.
            module: the module in training.
            optimizer: the optimizer to measure.
            processes: those of the run; by default one.
            part: dotted name of the submodule whose parameters are x; None for all of them.
        """
        processes = processes or Processes()
        optimizer = part_of(optimizer, module, part)
        parameters = named_parameters(module)
        if not any(map(is_sharded, parameters.values())):
            return cls(trainer, module, optimizer, processes)
        own = shares(parameters, processes.size)
        products = Products(processes.exchange, own)
        return cls(trainer, module, optimizer, processes, True, own, products)

    @property
    def measures(self) -> bool:
        """Whether this process keeps x_k and g_k: each where sharded, else the first one."""
        return self.sharded or self.processes.first

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are x, by name."""
        return optimized_parameters(self.module, self.optimizer)

    def present(self) -> dict[str, Tensor]:
        """Return a copy of x as it is now."""
        return copied(self.parameters())

    def values_of(self, names: Mapping[str, object]) -> dict[str, Tensor]:
        """Return present values by name, in the memory of training; of shards this process's."""
        parameters = named_parameters(self.module)
        return local_values({name: parameters[name] for name in names})

    def others(self) -> dict[str, Tensor]:
        """Return the values of the parameters that are not x, in the memory of training."""
        parameters = named_parameters(self.module)
        x = held_by(self.optimizer, parameters)
        return local_values({name: p for name, p in parameters.items() if name not in x})
