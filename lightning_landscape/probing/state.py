"""What a module and its trainer are at a moment, beside parameters: to put back for a replay, and to leave as it was.

A loss may depend on buffers, on training flags, on any plain Python attribute of any submodule, on random numbers and on
the trainer's counters. `capture` takes those of a training step in a form that can be stored, `put_back` sets them, and
`untouched` makes a block of code that does so invisible afterwards, down to the identity of every list and tensor.
"""

from __future__ import annotations

import argparse
import collections
import copy
import random
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_landscape.probing import lightning_compat

# bookkeeping of torch and Lightning, which no forward pass depends on; parameters and buffers are handled by themselves
_INTERNAL = frozenset(
    {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_trainer", "_fabric", "_compiler_ctx"}
    | {"training_step", "log", "log_dict", "print", "_is_full_backward_hook", "_load_state_dict_post_hooks"}
)
_SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range, slice)
_CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque, collections.OrderedDict, collections.Counter)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the plain Python attributes of one module, its training flag among them, without torch's hooks."""
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in _INTERNAL and not name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
    }


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "dtype")


def _is_random(value: Any) -> bool:
    """Return whether a value is a random number generator that a module keeps for itself."""
    return isinstance(value, (torch.Generator, random.Random)) or type(value).__module__ == "numpy.random._generator"


def _storable(value: Any, depth: int = 0) -> bool:
    """Return whether a value consists of nothing but numbers, text, tensors, arrays, generators and containers of them."""
    if isinstance(value, _SCALARS) or type(value) is Tensor:
        return True
    if _is_array(value):
        return not value.dtype.hasobject
    if type(value) in _CONTAINERS and depth < 32:
        items = (*value.keys(), *value.values()) if isinstance(value, dict) else value
        return all(_storable(item, depth + 1) for item in items)
    return (isinstance(value, Enum) and type(value).__module__ != "__main__") or _is_random(value)


def capture(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the state on which the loss of the next forward may depend; it aliases live tensors: freeze it at once.

    Attributes that hold anything else than numbers, text, tensors, arrays, generators and containers of these are named but
    not taken: a replay finds them as they are then. States of torchmetrics are not taken either: no loss depends on them.
    """
    modules = {}
    for path, submodule in module.named_modules():
        attributes = _attributes(submodule)
        kept = {} if isinstance(submodule, Metric) else {k: v for k, v in attributes.items() if _storable(v)}
        modules[path] = {"names": sorted(attributes), "attributes": kept, "buffers": dict(submodule._buffers)}
    return {
        "modules": modules,
        "random": read_random_state(module.device),
        "counters": lightning_compat.read_counters(trainer),
    }


def put_back(trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
    """Set module, random numbers and counters to a captured state, thawed afresh; to be called inside `untouched`."""
    for path, submodule in module.named_modules():
        if path in state["modules"]:
            _put_back_module(submodule, state["modules"][path])
    write_random_state(state["random"], module.device)
    lightning_compat.write_counters(trainer, state["counters"])


def _put_back_module(module: nn.Module, state: dict[str, Any]) -> None:
    for name in _attributes(module):
        if name not in state["names"] and not isinstance(module, Metric):
            del module.__dict__[name]
    module.__dict__.update(state["attributes"])
    for name in [name for name in module._buffers if name not in state["buffers"]]:
        del module._buffers[name]
    for name, value in state["buffers"].items():
        module._buffers[name] = _in_place(module._buffers.get(name), value)


def _in_place(current: Tensor | None, value: Tensor | None) -> Tensor | None:
    """Write ``value`` into the tensor that is there, where it fits: compiled code and views may hold on to it."""
    if current is None or value is None or current.shape != value.shape or current.dtype != value.dtype:
        return value
    if not torch.equal(current, value.to(current.device)):
        with torch.no_grad():
            current.copy_(value)
    return current


# -------------------------------------------------------------------------------------------------------- random numbers


def read_random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's, the device's, Python's and (where it is in use) numpy's global generators."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if device.type not in ("cpu", "meta"):
        state["device"] = torch.get_device_module(device).get_rng_state(device).cpu()
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def write_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the global generators to what `read_random_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "device" in state and device.type not in ("cpu", "meta"):
        torch.get_device_module(device).set_rng_state(state["device"], device)
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])


# -------------------------------------------------------------------------------------------------------------- untouched


@contextmanager
def untouched(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Whatever the block does to the module's buffers, attributes, gradients, random numbers and counters is undone.

    Inside the block the module works on copies of its containers, tensors and generators; afterwards it has the originals
    again, so that whoever else holds them (a callback, a closure) finds them unchanged.
    """
    random_state = read_random_state(module.device)
    counters, should_stop = lightning_compat.read_counters(trainer), trainer.should_stop
    belongings = _Belongings(module)
    try:
        belongings.copy()
        yield
    finally:
        belongings.restore()
        lightning_compat.write_counters(trainer, counters)
        trainer.should_stop = should_stop
        write_random_state(random_state, module.device)


@dataclass(slots=True)
class _Belongings:
    """What a module holds: taken apart into originals, which are set aside, and copies, which are there meanwhile."""

    module: nn.Module
    _attributes: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    _buffers: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    _values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _gradients: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)

    def copy(self) -> None:
        modules = list(self.module.modules())
        for module in modules:
            self._buffers.append((module._buffers, dict(module._buffers)))
            tensors = [*module._buffers.values(), *module._parameters.values()]
            self._memo.update({id(tensor): tensor for tensor in tensors if tensor is not None})
            self._memo[id(module)] = module
        for module in modules:
            self._set_aside(module)

    def _set_aside(self, module: nn.Module) -> None:
        for buffer in module._buffers.values():
            if buffer is not None:
                self._values.append((buffer, buffer.detach().clone()))
        for parameter in module._parameters.values():
            if parameter is not None:
                self._gradients.append((parameter, parameter.grad))
                parameter.grad = None
        self._replace_in(module.__dict__, _attributes(module))

    def _replace_in(self, namespace: dict[str, Any], attributes: dict[str, Any]) -> None:
        self._attributes.append((namespace, dict(namespace)))
        for name, value in attributes.items():
            namespace[name] = self._copied(value)

    def restore(self) -> None:
        for namespace, originals in (*self._attributes, *self._buffers):
            for name in [name for name in namespace if name not in originals]:
                del namespace[name]
            namespace.update(originals)
        with torch.no_grad():
            for buffer, value in self._values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def _copied(self, value: Any) -> Any:
        """Return a copy of containers (to any depth), tensors, arrays and generators; everything else is itself."""
        if isinstance(value, _SCALARS):
            return value
        if id(value) not in self._memo:
            self._memo[id(value)] = value  # a container that holds itself finds itself
            self._memo[id(value)] = self._copy_of(value)
        return self._memo[id(value)]

    def _copy_of(self, value: Any) -> Any:
        if type(value) is Tensor:
            return value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Generator):
            return _same_generator(value)
        if _is_array(value) or _is_random(value):
            return copy.deepcopy(value)
        if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            return self._hidden_module(value)
        if isinstance(value, (list, dict, set, collections.deque, tuple, frozenset)):
            return self._container(value)
        if _has_own_attributes(value):
            self._replace_in(value.__dict__, dict(value.__dict__))
        return value

    def _hidden_module(self, value: nn.Module) -> nn.Module:
        """Set aside what belongs to a module that is kept in a list or an object, where torch does not see it."""
        for module in value.modules():
            if self._memo.get(id(module)) is not module or module is value:
                self._memo[id(module)] = module
                self._buffers.append((module._buffers, dict(module._buffers)))
                self._set_aside(module)
        return value

    def _container(self, value: Any) -> Any:
        try:
            twin = copy.copy(value) if not isinstance(value, tuple) else value
        except Exception:
            return value  # a container of a kind that cannot be copied is left alone, as other objects are
        self._memo[id(value)] = twin
        if isinstance(twin, dict):
            for key, item in list(dict.items(twin)):
                dict.__setitem__(twin, key, self._copied(item))
        elif isinstance(twin, (list, collections.deque)):
            for index, item in enumerate(list(twin)):
                twin[index] = self._copied(item)
        elif isinstance(twin, tuple):
            items = [self._copied(item) for item in twin]
            if any(new is not old for new, old in zip(items, twin, strict=True)):
                return type(twin)(*items) if hasattr(twin, "_fields") else type(twin)(items)
        return twin


def _same_generator(generator: torch.Generator) -> torch.Generator:
    twin = torch.Generator(generator.device)
    twin.set_state(generator.get_state())
    return twin


def _has_own_attributes(value: Any) -> bool:
    """Return whether a value is an object of the user's own (an average meter, a namespace): one with plain attributes.

    Objects of libraries are left alone: a Trainer, a logger or a data loader is no state of a loss, and copying what it
    holds would disturb it.
    """
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        return True
    if not isinstance(getattr(value, "__dict__", None), dict) or isinstance(value, (type, types.ModuleType, Enum)):
        return False
    return not any(_is_of_library(base) for base in type(value).__mro__)


_LIBRARIES = frozenset(
    {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "numpy", "lightning_landscape"}
)


def _is_of_library(kind: type) -> bool:
    package = kind.__module__.partition(".")[0]
    if kind is object or package in ("__main__", "abc", "typing"):
        return False
    return package in _LIBRARIES or package in sys.stdlib_module_names
