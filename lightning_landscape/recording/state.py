"""The state of a module and its trainer, without parameters: capture it, and put it back.

A loss may depend on buffers, training flags, plain Python attributes of any submodule, random
numbers and the trainer's counters. `capture` reads them for a record, and `put_back` sets them for
a replay.
"""

from __future__ import annotations

import collections
import collections.abc
import io
import itertools
import random
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_landscape.recording.pickling import has_own_pickling
from lightning_landscape.recording.random_state import read_random_state, write_random_state
from lightning_landscape.store.freezing import Frozen, freeze
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.training import Training

# Bookkeeping of torch and Lightning, on which no forward pass depends. Parameters and buffers are
# among these names because they are handled apart.
_INTERNAL = frozenset(
    {
        "_parameters",
        "_buffers",
        "_modules",
        "_non_persistent_buffers_set",
        "_trainer",
        "_fabric",
        "_compiler_ctx",
        "training_step",
        "log",
        "log_dict",
        "print",
        "_is_full_backward_hook",
        "_load_state_dict_post_hooks",
    }
)
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
# Every module has about twenty attributes for hooks: a set finds them faster than their endings.
_OF_TORCH = _INTERNAL.union(name for name in vars(nn.Module()) if name.endswith(_HOOKS))
SCALARS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    torch.Size,
    range,
    slice,
)
"""Immutable types, whose values need no copy"""
_SCALARS = frozenset(SCALARS)
"""The exact types. Their subclasses may have methods of the user's"""
_CONTAINERS = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    collections.deque,
    collections.OrderedDict,
    collections.Counter,
)
LARGEST_ATTRIBUTE = 10_000
"""Items, at any depth, of an attribute that is recorded. A data set on the module has more"""
_LAYERS = 32
"""Depth of the containers in an attribute that is recorded"""


# ------------------------------------------------------------------------------ kinds of attributes


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return the plain Python attributes of one module with its training flag, without hooks."""
    if is_script(module):
        return {}
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in _OF_TORCH and not name.endswith(_HOOKS)
    }


def is_script(module: nn.Module) -> bool:
    """Return whether TorchScript has compiled a module, so that it has no Python attributes."""
    return isinstance(module, torch.jit.ScriptModule)


def is_array(value: Any) -> bool:
    """Return whether a value is a numpy array or scalar. numpy need not be installed."""
    return type(value).__module__ == "numpy" and hasattr(value, "dtype")


def is_random(value: Any) -> bool:
    """Return whether a value is a random number generator with a state."""
    if isinstance(value, random.SystemRandom):
        return False
    if isinstance(value, (torch.Generator, random.Random)):
        return True
    return type(value).__module__.startswith("numpy.random")


def _is_plain_container(value: Any) -> bool:
    if type(value) is collections.defaultdict:
        return value.default_factory in (None, bool, int, float, str, list, dict, set)
    return type(value) in _CONTAINERS


def _is_scalar(value: Any) -> bool:
    if type(value) in _SCALARS:
        return True
    return isinstance(value, SCALARS) and not has_own_pickling(value)


def _is_storable(value: Any) -> bool:
    """Return whether a value holds only scalars, tensors, arrays, generators and containers."""
    # Layer by layer and not by recursion: an attribute may contain itself, or 10,000 items.
    layer, items = [value], 0
    for _ in range(_LAYERS):
        others = [item for item in layer if not _is_scalar(item)]
        containers = [item for item in others if _is_plain_container(item)]
        leaves = len(others) > len(containers)
        if leaves and not all(_is_plain_container(i) or _is_storable_leaf(i) for i in others):
            return False
        layer = [item for container in containers for item in _items(container)]
        items += len(layer)
        if items > LARGEST_ATTRIBUTE:
            return False
        if not layer:
            return True
    return False


def _items(container: Any) -> tuple[Any, ...]:
    if isinstance(container, dict):
        return (*container.keys(), *container.values())
    return tuple(container)


def _is_storable_leaf(value: Any) -> bool:
    if type(value) is Tensor:
        return True
    if is_random(value):
        return not has_own_pickling(value)
    if is_array(value):
        return not value.dtype.hasobject
    if has_own_pickling(value):
        return False
    return isinstance(value, Enum) and type(value).__module__ != "__main__"


# ----------------------------------------------------------------------------- capture and put back


def frozen_moment(
    training: Training, args: Sequence[Any], kwargs: Mapping[str, Any], others: Mapping[str, Tensor]
) -> Frozen:
    """Copy the arguments of ``training_step`` and the state before it.

    Args:
        training: the run.
        args: positional arguments.
        kwargs: keyword arguments by name.
        others: parameters that are not x and have changed since the first micro-batch of the step.

    Raises:
        TypeError: if a batch can be neither pickled nor copied.
    """
    state = capture(training.trainer, training.module)
    return freeze({"args": tuple(args), "kwargs": dict(kwargs), "others": dict(others), **state})


def capture(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the state on which the next loss may depend.

    The state aliases live tensors: freeze it at once.

    Some attributes are listed by name only, and a replay uses their present values. These are

    - attributes with more than 10,000 items;
    - attributes with objects other than scalars, tensors, arrays, generators and containers;
    - attributes with objects whose class defines its own pickling, because that is user code;
    - attributes of torchmetrics, on which no loss depends.
    """
    modules = {}
    for path, submodule in module.named_modules():
        attributes = attributes_of(submodule)
        recorded = {}
        if not isinstance(submodule, Metric):
            recorded = {
                name: value
                for name, value in attributes.items()
                if _is_scalar(value) or _is_storable(value)
            }
        buffers = {} if is_script(submodule) else dict(submodule._buffers)
        modules[path] = {"names": list(attributes), "attributes": recorded, "buffers": buffers}
    return {
        "modules": modules,
        "random": read_random_state(module.device),
        "counters": lightning_compat.read_counters(trainer),
    }


def put_back(trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
    """Set module, random numbers and counters to a captured state, inside a block of `untouched`.

    Args:
        trainer: the trainer.
        module: the module.
        state: a fresh copy of what `capture` returned; the module takes over its objects.
    """
    for path, submodule in module.named_modules():
        if path in state["modules"] and not is_script(submodule):
            _put_back_module(submodule, state["modules"][path])
    write_random_state(state["random"], module.device)
    lightning_compat.write_counters(trainer, state["counters"])


def _put_back_module(module: nn.Module, state: dict[str, Any]) -> None:
    for name in attributes_of(module):
        if name not in state["names"] and not isinstance(module, Metric):
            del module.__dict__[name]
    module.__dict__.update(state["attributes"])
    for name in [name for name in module._buffers if name not in state["buffers"]]:
        del module._buffers[name]
    for name, value in state["buffers"].items():
        module._buffers[name] = _in_place(module._buffers.get(name), value)


def _in_place(current: Tensor | None, value: Tensor | None) -> Tensor | None:
    """Return ``value``, written into the current tensor if shape and dtype agree."""
    # In place, because compiled code and views may hold the current tensor.
    if current is None or value is None:
        return value
    if current.shape != value.shape or current.dtype != value.dtype:
        return value
    if not torch.equal(current, value.to(current.device)):
        # `data` hides the write from autograd. `untouched` restores the buffer before the user may
        # go backward through a graph that contains it.
        current.data.copy_(value)
    return current


# ---------------------------------------------------------------------------------------- iterators


def iterators(module: nn.Module) -> list[str]:
    """Return the dotted names of attributes that hold an iterator.

    A replay cannot draw again what an iterator has given. Counters and files do not count.
    """
    found = []
    for path, submodule in module.named_modules():
        for name, value in attributes_of(submodule).items():
            draws = hasattr(type(value), "__next__") and isinstance(value, collections.abc.Iterator)
            if draws and not isinstance(value, (itertools.count, io.IOBase)):
                found.append(f"{path}.{name}" if path else name)
    return found
