"""Choose the optimizer to measure, and restrict it to the parameters of one submodule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_landscape.vectors.parameters import named_parameters, plain_name


class _Part:
    """An optimizer whose parameter groups show only the parameters of one submodule."""

    def __init__(self, whole: Optimizer, submodule: nn.Module) -> None:
        self.whole, self._submodule = whole, submodule

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups that hold parameters of the submodule, without other parameters."""
        # They are computed anew each time, because finetuning adds groups.
        chosen = {id(parameter) for parameter in self._submodule.parameters()}
        groups = [
            {**group, "params": [p for p in group["params"] if id(p) in chosen]}
            for group in self.whole.param_groups
        ]
        return [group for group in groups if group["params"]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look these up before `whole` is set
            raise AttributeError(name)
        return getattr(self.whole, name)


def part_of(optimizer: Optimizer, module: nn.Module, path: str | None) -> Optimizer:
    """Return the optimizer, restricted to the parameters of a submodule.

    Args:
        optimizer: the optimizer.
        module: the module in training.
        path: dotted name of the submodule; None for no restriction.
    """
    if path is None:
        return optimizer
    return cast(Optimizer, _Part(optimizer, submodule_of(module, path)))


def whole_of(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that `part_of` has restricted, or else the optimizer itself."""
    return optimizer.whole if isinstance(optimizer, _Part) else optimizer


def choose(optimizers: Sequence[Optimizer], module: nn.Module, path: str | None) -> Optimizer:
    """Return the optimizer to measure: the only one, or the one that trains a submodule.

    Args:
        optimizers: all optimizers of the run.
        module: the module in training.
        path: dotted name of the submodule; None to take the only optimizer.

    Raises:
        MisconfigurationException: if no optimizer fits, or several do.
    """
    if path is not None:
        return _holder(optimizers, module, path)
    if len(optimizers) != 1:
        raise MisconfigurationException(
            f"LandscapeMonitor found {len(optimizers)} optimizers; supported is one optimizer, or "
            "one of several that parameters= selects by the name of a submodule that it trains: "
            "let configure_optimizers return one, or add a monitor for each, such as "
            f"LandscapeMonitor(parameters={_example(module)!r}, prefix=...)"
        )
    return optimizers[0]


def _holder(optimizers: Sequence[Optimizer], module: nn.Module, path: str) -> Optimizer:
    """Return the one optimizer that holds parameters of a submodule."""
    chosen = {id(parameter) for parameter in submodule_of(module, path).parameters()}
    holders = [optimizer for optimizer in optimizers if not chosen.isdisjoint(_held(optimizer))]
    if not holders:
        raise MisconfigurationException(
            f"LandscapeMonitor(parameters={path!r}) found none of the {len(chosen)} parameters of "
            f"{path!r} in the {len(optimizers)} optimizers; supported are submodules that an "
            "optimizer trains: name one, or let configure_optimizers pass its parameters to an "
            "optimizer"
        )
    if len(holders) > 1:
        names = " and ".join(type(optimizer).__name__ for optimizer in holders)
        raise MisconfigurationException(
            f"LandscapeMonitor(parameters={path!r}) found parameters of {path!r} in "
            f"{len(holders)} optimizers, {names}; supported are submodules that one optimizer "
            "trains: name a smaller submodule, and add a monitor for each"
        )
    return holders[0]


def submodule_of(module: nn.Module, path: str) -> nn.Module:
    """Return a submodule by its dotted name, written without the marks of ``torch.compile``.

    Raises:
        MisconfigurationException: if the module has no submodule of that name.
    """
    named: list[tuple[str, nn.Module]] = list(module.named_modules(remove_duplicate=False))
    # Reversed, so that the outer one wins if two modules have the same plain name.
    modules = {plain_name(name): part for name, part in reversed(named) if name}
    if path not in modules:
        children = _listed([name for name, _ in module.named_children()])
        raise MisconfigurationException(
            f"LandscapeMonitor(parameters={path!r}) found no submodule of that name in "
            f"{type(module).__name__}; supported are the dotted names of its submodules: name one "
            f"of {children}, or a submodule of these"
        )
    return modules[path]


def trained_elsewhere(
    module: nn.Module, optimizers: Sequence[Optimizer], x: Mapping[str, nn.Parameter]
) -> list[str]:
    """Return the names of the trained parameters that are not x.

    Args:
        module: the module in training.
        optimizers: all optimizers of the run.
        x: the measured parameters by name.
    """
    held = {index for optimizer in optimizers for index in _held(optimizer)}
    return [
        name
        for name, parameter in named_parameters(module).items()
        if id(parameter) in held and name not in x
    ]


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _example(module: nn.Module) -> str:
    return next((name for name, _ in module.named_children()), "generator")


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + f" and {len(names) - 8} more" if len(names) > 8 else shown or "none"
