"""The part of a run that a monitor measures: one optimiser of several, and of its parameters those of one submodule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_landscape.vectors.parameters import named_parameters, plain_name


class _Part:
    """An optimiser as far as it trains a submodule: its groups without other parameters, in all else the optimiser itself."""

    def __init__(self, whole: Optimizer, submodule: nn.Module) -> None:
        self.whole, self._submodule = whole, submodule

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups that hold parameters of the submodule, as they are now: finetuning adds some."""
        chosen = {id(parameter) for parameter in self._submodule.parameters()}
        groups = [
            {
                **group,
                "params": [parameter for parameter in group["params"] if id(parameter) in chosen],
            }
            for group in self.whole.param_groups
        ]
        return [group for group in groups if group["params"]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask before there is anything to ask
            raise AttributeError(name)
        return getattr(self.whole, name)


def part_of(optimizer: Optimizer, module: nn.Module, path: str | None) -> Optimizer:
    """Return the optimiser as far as it holds parameters of a submodule; all of it where none was chosen.

    Args:
        optimizer: the optimiser.
        module: the module in training.
        path: name of the submodule, or None.
    """
    return (
        optimizer if path is None else cast(Optimizer, _Part(optimizer, submodule_of(module, path)))
    )


def whole_of(optimizer: Optimizer) -> Optimizer:
    """Return the optimiser of which `part_of` gave a part."""
    return optimizer.whole if isinstance(optimizer, _Part) else optimizer


def choose(optimizers: Sequence[Optimizer], module: nn.Module, path: str | None) -> Optimizer:
    """Return the optimiser to measure: the only one, or the one that holds the parameters of a submodule.

    Args:
        optimizers: those of the run.
        module: the module in training.
        path: name of the submodule, or None.

    Raises:
        MisconfigurationException: if there is none, or more than one.
    """
    if path is None:
        if len(optimizers) != 1:
            raise MisconfigurationException(
                f"LandscapeMonitor found {len(optimizers)} optimizers; supported is one, or one of several by parameters=, the "
                "name of a submodule whose parameters it holds: let configure_optimizers return one, or give each player a "
                f"monitor, as LandscapeMonitor(parameters={_example(module)!r}, prefix=...)"
            )
        return optimizers[0]
    chosen = {id(parameter) for parameter in submodule_of(module, path).parameters()}
    holders = [optimizer for optimizer in optimizers if not chosen.isdisjoint(_held(optimizer))]
    if not holders:
        raise MisconfigurationException(
            f"LandscapeMonitor(parameters={path!r}) found none of the {len(chosen)} parameters of {path!r} in an optimizer "
            f"({len(optimizers)} there are); supported are submodules of which an optimizer holds parameters: name one, or let "
            "configure_optimizers hand its parameters to an optimizer"
        )
    if len(holders) > 1:
        names = " and ".join(type(optimizer).__name__ for optimizer in holders)
        raise MisconfigurationException(
            f"LandscapeMonitor(parameters={path!r}) found parameters of {path!r} in {len(holders)} optimizers, {names}; "
            "supported are submodules whose parameters one optimizer holds: name a smaller one, with a monitor for each"
        )
    return holders[0]


def submodule_of(module: nn.Module, path: str) -> nn.Module:
    """Return a submodule by its dotted name, without the marks that ``torch.compile`` leaves.

    Raises:
        MisconfigurationException: if there is none of that name.
    """
    named: list[tuple[str, nn.Module]] = list(module.named_modules(remove_duplicate=False))
    modules = {plain_name(name): part for name, part in reversed(named) if name}
    if path not in modules:
        raise MisconfigurationException(
            f"LandscapeMonitor(parameters={path!r}) found no submodule of that name in {type(module).__name__}; supported are "
            f"its submodules by dotted name, here {_listed([name for name, _ in module.named_children()])}: name one of them, "
            "or one inside of them"
        )
    return modules[path]


def trained_elsewhere(
    module: nn.Module, optimizers: Sequence[Optimizer], x: Mapping[str, nn.Parameter]
) -> list[str]:
    """Return the names of parameters in training that are not x: other players', or other parts of the module."""
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
