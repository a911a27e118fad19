"""The parameters x of a run: find them, copy them, and replace their values in place.

If parameters are sharded (FSDP2), every value here is the part that this process holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_landscape.vectors.sharding import local, reshard


def plain_name(name: str) -> str:
    """Return a parameter's name without the marks of ``torch.compile``."""
    return name.replace("_orig_mod.", "")


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters of a module by plain name.

    Do not call this between a forward pass and its backward pass, which needs the parameters that
    FSDP2 has gathered.
    """
    reshard(module.modules())
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def optimized_parameters(module: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer holds, by plain name in the module's order.

    Raises:
        MisconfigurationException: if the optimizer holds parameters that the module does not list.
    """
    # named_parameters comes first: no optimizer holds the parameters that FSDP2 has gathered.
    named = held_by(optimizer, named_parameters(module))
    held = _held(optimizer)
    if len(named) < len(held):
        raise MisconfigurationException(
            f"LandscapeMonitor found {len(held) - len(named)} parameters in "
            f"{type(optimizer).__name__} that are not registered in {type(module).__name__}; "
            "supported are the parameters that its named_parameters() lists: assign the layers "
            "that own the others to attributes of the module, or put them into an nn.ModuleList"
        )
    return named


def held_by(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer holds, by name.

    Args:
        optimizer: the optimizer.
        parameters: the candidates by name.
    """
    held = _held(optimizer)
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in held}


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


@torch.no_grad()
def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies on the same device, by name."""
    return {name: local(parameter).clone() for name, parameter in parameters.items()}


def local_values(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached values by name; they share memory with the parameters."""
    return {name: local(parameter) for name, parameter in parameters.items()}


@torch.no_grad()
def fingerprint(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return a sample of the elements of each parameter, which shows whether they were changed.

    Args:
        parameters: by name.

    Returns:
        One float64 tensor of shape ``(n,)``, with fewer than 2,048 elements of each parameter.
    """
    flat = [local(parameter).reshape(-1) for parameter in parameters.values()]
    parts = [values[:: max(1, values.numel() // 1024)] for values in flat]
    if len({(part.device, part.dtype) for part in parts}) > 1:
        parts = [part.to(parts[0].device, torch.float64) for part in parts]
    return torch.cat(parts).to(torch.float64)


@torch.no_grad()
def assign(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into parameters in place.

    Args:
        parameters: by name.
        values: the new values; parameters that they do not name stay as they are.
    """
    for name, value in values.items():
        # `data` hides the write from autograd. Under manual optimization the user may still go
        # backward through an older graph. The caller restores the values before that.
        local(parameters[name]).data.copy_(value)


class Swap:
    """Replace the values of a module's parameters inside a block, and restore them after it.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._originals: dict[str, Tensor] = {}
        """The values to restore after an interrupt, by name"""
        self._deferred: dict[str, Tensor] | None = None
        """The values that the end of `one_after_another` restores, by name; None outside of it, and
        inside a block of `to`"""

    @contextmanager
    def to(self, *values: Mapping[str, Tensor]) -> Iterator[None]:
        """Set parameters to other values inside the block. Blocks can be nested.

        Args:
            values: values by name; a later mapping overrides an earlier one.
        """
        wanted = {name: value for mapping in values for name, value in mapping.items()}
        if not wanted:
            reshard(self._module.modules())
            yield
        elif self._deferred is not None:
            with self._restored_later(wanted, self._deferred):
                yield
        else:
            with self._restored_at_once(wanted):
                yield

    @contextmanager
    def one_after_another(self) -> Iterator[None]:
        """Restore the parameters once at the end of the block, not after each block of `to`.

        After a block of `to`, the parameters keep its values. The next one first undoes them.
        """
        outer, before = self._originals, dict[str, Tensor]()
        self._deferred = before
        try:
            yield
        finally:
            self._deferred = None
            assign(named_parameters(self._module), before)
            self._originals = outer

    def recover(self) -> None:
        """Restore the parameters if an interrupt stopped the end of a block."""
        if self._originals:
            assign(named_parameters(self._module), self._originals)
            self._originals = {}

    @contextmanager
    def _restored_at_once(self, wanted: Mapping[str, Tensor]) -> Iterator[None]:
        parameters, outer = named_parameters(self._module), self._originals
        before = copied({name: parameters[name] for name in wanted})
        self._originals = {**before, **outer}
        try:
            assign(parameters, wanted)
            yield
        finally:
            assign(parameters, before)
            self._originals = outer

    @contextmanager
    def _restored_later(
        self, wanted: Mapping[str, Tensor], before: dict[str, Tensor]
    ) -> Iterator[None]:
        parameters = named_parameters(self._module)
        before.update(copied({name: parameters[name] for name in wanted if name not in before}))
        self._originals = {**before, **self._originals}
        self._deferred = None  # nested blocks restore the values that this one has set
        try:
            assign(parameters, {**before, **wanted})
            yield
        finally:
            self._deferred = before
