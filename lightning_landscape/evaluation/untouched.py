"""Undo every change that a replay makes to module and trainer, and keep all objects the same."""

from __future__ import annotations

import argparse
import collections
import copy
import itertools
import random
import sys
import types
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from lightning_landscape.recording.random_state import (
    kept_cuda_generator,
    read_random_state,
    write_random_state,
)
from lightning_landscape.recording.state import (
    SCALARS,
    attributes_of,
    is_array,
    is_random,
    is_script,
)
from lightning_landscape.training import lightning_compat
from lightning_landscape.vectors.parameters import named_parameters
from lightning_landscape.vectors.sharding import local, reshard

_DEEPEST = 200
"""Depth to which attributes are copied, within Python's limit of recursion"""


@contextmanager
def untouched(
    trainer: Trainer, module: LightningModule, restored: Collection[str] = ()
) -> Iterator[None]:
    """Undo every change that the block makes.

    These are changes to the parameters, buffers, gradients, flags, hooks and attributes of the
    module, to learning rates, to random numbers and to the trainer's counters.

    Inside the block the module has copies of its containers, tensors and generators. After it, the
    module has the originals again, so that other holders, such as a callback, see no change.

    Args:
        trainer: the trainer.
        module: the module.
        restored: names of parameters whose values the block itself restores. They are not copied.
    """
    belongings = _Belongings(module, _ids_of(module, restored))
    # A stack of callbacks, so that all others run if one of them fails.
    with ExitStack() as undo:
        # kept_cuda_generator restores CUDA's generator without setting its state.
        device = torch.device("cpu") if module.device.type == "cuda" else module.device
        undo.callback(write_random_state, read_random_state(device), device)
        undo.enter_context(kept_cuda_generator(module.device))
        undo.callback(setattr, trainer, "should_stop", trainer.should_stop)
        counters = lightning_compat.read_counters(trainer)
        undo.callback(lightning_compat.write_counters, trainer, counters)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                values = {name: value for name, value in group.items() if name != "params"}
                undo.callback(group.update, values)
        undo.callback(belongings.restore)
        # Before `restore`: until then the module lists the parameters that FSDP2 has gathered.
        undo.callback(reshard, list(module.modules()))
        belongings.copy()
        yield


def _ids_of(module: nn.Module, names: Collection[str]) -> set[int]:
    if not names:
        return set()
    return {id(p) for name, p in named_parameters(module).items() if name in names}


@dataclass(slots=True)
class _Belongings:
    """Attributes and tensors of a module: `copy` replaces them, and `restore` restores them."""

    module: nn.Module
    restored: AbstractSet[int] = frozenset()
    """Ids of the parameters whose values the caller restores"""
    _namespaces: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    """Dictionaries of attributes, parameters, buffers, submodules and hooks, with their contents"""
    _slots: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    """Objects with ``__slots__``, with their values by name"""
    _contents: list[tuple[Any, Any, Any]] = field(default_factory=list)
    """Containers of a user's class, with the kind that each is of and its contents"""
    _values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Parameters and buffers, with a copy of the part that this process holds"""
    _flags: list[tuple[Tensor, bool, Tensor | None]] = field(default_factory=list)
    """Parameters, with requires_grad and gradient"""
    _memo: dict[int, Any] = field(default_factory=dict)
    """The copy of each value by the id of the value; a module, parameter or buffer is its own"""
    _depth: int = 0

    def copy(self) -> None:
        modules = list(self.module.modules())
        reshard(modules)
        self._memo.update({id(module): module for module in modules})
        for module in modules:
            self._register(module)
        for module in modules:
            self._replace_in(module.__dict__, attributes_of(module))

    def _register(self, module: nn.Module) -> None:
        """Note values and flags of a module's tensors, and its registries.

        A tensor that several modules share is noted once.
        """
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in self._memo:
                self._memo[id(tensor)] = tensor
                if id(tensor) not in self.restored:
                    self._values.append((tensor, local(tensor).clone()))
                if isinstance(tensor, nn.Parameter):
                    self._flags.append((tensor, tensor.requires_grad, tensor.grad))
                    tensor.grad = None
        if not is_script(module):
            attributes = attributes_of(module)
            registries = [value for name, value in vars(module).items() if name not in attributes]
            self._namespaces += [
                (value, dict(value)) for value in registries if isinstance(value, dict)
            ]

    def _replace_in(self, namespace: dict[str, Any], attributes: dict[str, Any]) -> None:
        self._namespaces.append((namespace, dict(namespace)))
        for name, value in attributes.items():
            namespace[name] = self._copied(value)

    def restore(self) -> None:
        for namespace, originals in self._namespaces:
            for name in [name for name in namespace if name not in originals]:
                del namespace[name]
            namespace.update(originals)
        for kind, container, contents in self._contents:
            _set_contents(kind, container, contents)
        for holder, values in self._slots:
            for name, value in values.items():
                object.__setattr__(holder, name, value)
        with torch.no_grad():
            for tensor, value in self._values:
                if not torch.equal(local(tensor), value):
                    # `data` hides the write from autograd, for which the value has not changed.
                    local(tensor).data.copy_(value)
        for parameter, requires_grad, gradient in self._flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient

    def _copied(self, value: Any) -> Any:
        """Copy containers, tensors, arrays and generators at any depth, and return other values."""
        if isinstance(value, SCALARS):
            return value
        if id(value) not in self._memo and self._depth < _DEEPEST:
            self._memo[id(value)] = value  # ends the recursion if a value contains itself
            self._depth += 1
            self._memo[id(value)] = self._copy_of(value)
            self._depth -= 1
        return self._memo.get(id(value), value)

    def _copy_of(self, value: Any) -> Any:
        if type(value) is Tensor:
            return value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Generator):
            return _copied_generator(value)
        if isinstance(value, random.Random) and is_random(value):
            return _copied_random(value)
        if is_array(value) or is_random(value) or isinstance(value, itertools.count):
            return copy.deepcopy(value)
        if isinstance(value, nn.Module):
            return self._hidden_module(value)
        if isinstance(value, (list, dict, set, collections.deque, tuple, frozenset)):
            return self._container(value)
        if _is_of_user(value):  # the object stays, and its attributes are replaced by copies
            self._replace_slots(value)
            if isinstance(getattr(value, "__dict__", None), dict):
                self._replace_in(value.__dict__, dict(value.__dict__))
        return value

    def _hidden_module(self, value: nn.Module) -> nn.Module:
        """Replace the attributes of a module in a list or an object, which torch does not list."""
        hidden = [
            module for module in value.modules() if module is value or id(module) not in self._memo
        ]
        self._memo.update({id(module): module for module in hidden})
        for module in hidden:
            self._register(module)
            self._replace_in(module.__dict__, attributes_of(module))
        return value

    def _replace_slots(self, value: Any) -> None:
        names = {name for kind in type(value).__mro__ for name in _slots_of(kind)}
        values = {name: getattr(value, name) for name in names if hasattr(value, name)}
        if values:
            self._slots.append((value, values))
            for name, item in values.items():
                object.__setattr__(value, name, self._copied(item))

    def _container(self, value: Any) -> Any:
        twin: Any
        if isinstance(value, (tuple, frozenset)):
            return self._tuple(value) if isinstance(value, tuple) else value
        kind: Any = next(kind for kind in type(value).__mro__ if kind in _KINDS)
        if type(value) is not kind:  # to copy it would call its class: its contents are exchanged
            self._contents.append((kind, value, _contents(kind, value)))
            self._replace_slots(value)
            if isinstance(getattr(value, "__dict__", None), dict):
                self._replace_in(value.__dict__, dict(value.__dict__))
            twin = value
        else:
            twin = copy.copy(value)
        self._memo[id(value)] = twin  # before the items, which may contain the container
        if isinstance(twin, dict):
            for key, item in list(kind.items(twin)):
                kind.__setitem__(twin, key, self._copied(item))
        elif isinstance(twin, (list, collections.deque)):
            for index, item in enumerate(list(kind.__iter__(twin))):
                kind.__setitem__(twin, index, self._copied(item))
        return twin

    def _tuple(self, value: Any) -> Any:
        items = [self._copied(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


_KINDS = (
    collections.OrderedDict,
    collections.defaultdict,
    collections.deque,
    dict,
    list,
    set,
)


def _contents(kind: Any, value: Any) -> Any:
    """Return the contents of a container without a call to its class."""
    if issubclass(kind, dict):
        return list(kind.items(value))
    return list(kind.__iter__(value))


def _set_contents(kind: Any, container: Any, contents: Any) -> None:
    kind.clear(container)
    if issubclass(kind, dict):
        for key, value in contents:  # OrderedDict.update would call the class's __setitem__
            kind.__setitem__(container, key, value)
    elif kind is set:
        kind.update(container, contents)
    else:
        kind.extend(container, contents)


def _copied_generator(generator: torch.Generator) -> torch.Generator:
    twin = torch.Generator(generator.device)
    twin.set_state(generator.get_state())
    return twin


def _copied_random(generator: random.Random) -> random.Random:
    """Copy a generator without its class's ``__deepcopy__``, which may be code of the user's."""
    twin = random.Random.__new__(type(generator))
    vars(twin).update(vars(generator))
    random.Random.setstate(twin, random.Random.getstate(generator))
    return twin


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


# Parts of the run, on whose attributes no loss depends. Copying these would disturb the run.
_OF_THE_RUN = (Trainer, Callback, Logger, LightningDataModule, torch.optim.Optimizer)
_LIBRARIES = frozenset(
    {
        "torch",
        "lightning",
        "pytorch_lightning",
        "lightning_fabric",
        "torchmetrics",
        "numpy",
        "lightning_landscape",
    }
)
_PLAIN_OBJECTS = (
    argparse.Namespace,
    types.SimpleNamespace,
    collections.UserDict,
    collections.UserList,
    SobolEngine,
)


def _is_of_user(value: Any) -> bool:
    """Return whether a value is a plain namespace or an object of a user's class.

    Examples are an average meter and a replay buffer. Objects of libraries are left alone.
    """
    if isinstance(value, _PLAIN_OBJECTS):
        return True
    if isinstance(
        value, (type, types.ModuleType, types.FunctionType, types.MethodType, Enum, *_OF_THE_RUN)
    ):
        return False
    package = type(value).__module__.partition(".")[0]
    return package == "__main__" or (
        package not in _LIBRARIES and package not in sys.stdlib_module_names
    )
