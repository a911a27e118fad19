"""The parameters x of a run: which they are, copies of them, and swapping them in place.

Of sharded parameters (FSDP2) all values here are the parts that this process holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_landscape.vectors.sharding import local, reshard

Copy = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Returns detached copies by name"""


def plain_name(name: str) -> str:
    """Return a parameter's name without the marks that ``torch.compile`` leaves in it."""
    return name.replace("_orig_mod.", "")


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters of a module by their plain names; never between a forward and its backward pass."""
    reshard(module.modules())
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def optimized_parameters(module: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimiser holds, by name, in the module's order.

    Others are left out: they are neither zeroed nor unscaled by Lightning and do not move along a gradient.

    Raises:
        MisconfigurationException: if the optimiser holds parameters that are not registered in the module.
    """
    named = held_by(
        optimizer, named_parameters(module)
    )  # these at first: what FSDP2 has gathered is in no optimiser
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if len(named) < len(held):
        raise MisconfigurationException(
            f"LandscapeMonitor found {len(held) - len(named)} parameters in {type(optimizer).__name__} that are not "
            f"registered in {type(module).__name__}; supported are the module's own parameters: assign the layers that own "
            "them to attributes of the module (or to a ModuleList), so that `named_parameters()` lists them"
        )
    return named


def held_by(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Return those of the parameters that the optimiser holds."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in held}


@torch.no_grad()
def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies, on the same device, that later steps do not change."""
    return {name: local(parameter).clone() for name, parameter in parameters.items()}


def local_values(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of parameters that this process holds; they share their memory."""
    return {name: local(parameter) for name, parameter in parameters.items()}


@torch.no_grad()
def fingerprint(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return up to 1,024 elements of each parameter, as one tensor: enough to see that something moved them."""
    flat = [local(parameter).reshape(-1) for parameter in parameters.values()]
    parts = [values[:: max(1, values.numel() // 1024)] for values in flat]
    if len({(part.device, part.dtype) for part in parts}) > 1:
        parts = [part.to(parts[0].device, torch.float64) for part in parts]
    return torch.cat(parts).to(torch.float64)


@torch.no_grad()
def assign(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into parameters in place: the same tensors, so that nothing that holds them is misled.

    Through ``data``, of which autograd takes no note: whoever writes here puts the values back, and under manual optimisation
    a graph that the user goes backward through later may wait meanwhile.
    """
    for name, value in values.items():
        local(parameters[name]).data.copy_(value)


class Swap:
    """Puts other values into a module's parameters and, whatever happens in between, the original ones back.

    Args:
        module: the module whose parameters are swapped.
        copy: copies the original values, by name.
    """

    def __init__(self, module: nn.Module, copy: Copy | None = None) -> None:
        self._module, self._copy = module, copy or copied
        self._originals: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] | None = None
        """Inside of `one_after_another`, and of no block of `to`: the values before it of what was assigned in it"""

    @contextmanager
    def to(self, *values: Mapping[str, Tensor]) -> Iterator[None]:
        """Hold the parameters at ``values`` (later mappings win) inside the block; blocks can be nested."""
        wanted = {name: value for mapping in values for name, value in mapping.items()}
        if not wanted:
            reshard(self._module.modules())
            yield
        elif self._before is not None:
            with self._without_return(wanted, self._before):
                yield
        else:
            with self._and_return(wanted):
                yield

    @contextmanager
    def _and_return(self, wanted: Mapping[str, Tensor]) -> Iterator[None]:
        parameters, outer = named_parameters(self._module), self._originals
        before = self._copy(local_values({name: parameters[name] for name in wanted}))
        self._originals = {**before, **outer}
        try:
            assign(parameters, wanted)
            yield
        finally:
            assign(parameters, before)
            self._originals = outer

    @contextmanager
    def back_to(self, here: Mapping[str, Tensor]) -> Iterator[None]:
        """Put parameters back to where they are now, whatever the block does to them.

        Args:
            here: their values, by name: another copy of them is not made.
        """
        outer = self._originals
        self._originals = {**here, **outer}
        try:
            yield
        finally:
            assign(named_parameters(self._module), here)
            self._originals = outer

    @contextmanager
    def one_after_another(self) -> Iterator[None]:
        """Inside the block values are assigned without putting the originals back each time; they are back when it ends.

        Outside of any block of `to` the parameters are then those of the last one.
        """
        outer, before = self._originals, dict[str, Tensor]()
        self._before = before
        try:
            yield
        finally:
            self._before = None
            assign(named_parameters(self._module), before)
            self._originals = outer

    @contextmanager
    def _without_return(
        self, wanted: Mapping[str, Tensor], before: dict[str, Tensor]
    ) -> Iterator[None]:
        parameters = named_parameters(self._module)
        if missing := [name for name in wanted if name not in before]:
            before.update(self._copy(local_values({name: parameters[name] for name in missing})))
        self._originals = {**before, **self._originals}
        self._before = None  # blocks inside of this one put back what they found
        try:
            assign(parameters, {**before, **wanted})
            yield
        finally:
            self._before = before

    def recover(self) -> None:
        """Put the originals back if an interrupt came in the middle of putting them back."""
        if self._originals:
            assign(named_parameters(self._module), self._originals)
            self._originals = {}
