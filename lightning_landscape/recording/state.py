"""What a module and its trainer are at a moment, beside parameters: to put back for a replay, and to leave as it was.

A loss may depend on buffers, on training flags, on any plain Python attribute of any submodule, on random numbers and on
the trainer's counters. `capture` takes those of a training step in a form that can be stored, `put_back` sets them.
"""

from __future__ import annotations

import array
import collections
import collections.abc
import functools
import io
import itertools
import random
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_landscape.recording.freezing import Frozen, freeze
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.training import Training

# bookkeeping of torch and Lightning, which no forward pass depends on; parameters and buffers are handled by themselves
_INTERNAL = frozenset(
    {
        "_parameters",
        "_buffers",
        "_modules",
        "_non_persistent_buffers_set",
        "_trainer",
        "_fabric",
        "_compiler_ctx",
    }
    | {
        "training_step",
        "log",
        "log_dict",
        "print",
        "_is_full_backward_hook",
        "_load_state_dict_post_hooks",
    }
)
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_OF_TORCH = _INTERNAL.union(name for name in vars(nn.Module()) if name.endswith(_HOOKS))
"""Of these every module has about twenty: they are looked up, not looked at"""
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


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return the plain Python attributes of one module, its training flag among them, without torch's hooks."""
    if is_script(module):
        return {}
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in _OF_TORCH and not name.endswith(_HOOKS)
    }


def is_script(module: nn.Module) -> bool:
    """Return whether a module is compiled by TorchScript: its attributes are no Python attributes."""
    return isinstance(module, torch.jit.ScriptModule)


def is_array(value: Any) -> bool:
    """Return whether a value is an array or a scalar of numpy, which need not be installed."""
    return type(value).__module__ == "numpy" and hasattr(value, "dtype")


def is_random(value: Any) -> bool:
    """Return whether a value is a random number generator that a module keeps for itself."""
    if isinstance(value, random.SystemRandom):
        return False  # it has no state
    return isinstance(value, (torch.Generator, random.Random)) or type(value).__module__.startswith(
        "numpy.random"
    )


_LIBRARIES = frozenset({"torch", "numpy", "lightning", "torchmetrics"})
_HOW_TO_PICKLE = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
)
_BUILT_IN = (types.MethodDescriptorType, types.WrapperDescriptorType, types.BuiltinFunctionType)


def _pickled_by_user(value: Any) -> bool:
    """Return whether the user's code says how a value is pickled: recording must not call it."""
    return _has_users_pickling(type(value))  # type: ignore[arg-type]  # mypy: a class is not hashable


@functools.cache
def _has_users_pickling(kind: type) -> bool:
    for name in _HOW_TO_PICKLE:
        method = getattr(kind, name, None)
        if method is None or isinstance(method, _BUILT_IN):
            continue
        package = str(getattr(method, "__module__", "")).partition(".")[0]
        if package not in _LIBRARIES and package not in sys.stdlib_module_names:
            return True
    return False


def _is_scalar(value: Any) -> bool:
    return isinstance(value, SCALARS) and not _pickled_by_user(value)


def _is_plain_container(value: Any) -> bool:
    if type(value) is collections.defaultdict:
        return value.default_factory in (None, bool, int, float, str, list, dict, set)
    return type(value) in _CONTAINERS


LARGEST_ATTRIBUTE = 10_000
"""Items, at any depth, of a plain attribute that is stored with every probe; a data set on the module has more"""


def _storable(value: Any) -> bool:
    """Return whether a value consists of nothing but numbers, text, tensors, arrays, generators and containers of them."""
    layer, seen = [value], 0
    for _ in range(
        32
    ):  # layers of containers; what is nested deeper, or holds itself, is not stored
        others = [item for item in layer if not _is_scalar(item)]
        containers = [item for item in others if _is_plain_container(item)]
        if len(containers) < len(others) and not all(
            _is_plain_container(i) or _is_storable_leaf(i) for i in others
        ):
            return False
        layer = [part for item in containers for part in _parts(item)]
        seen += len(layer)
        if not layer or seen > LARGEST_ATTRIBUTE:
            return seen <= LARGEST_ATTRIBUTE
    return False


def _parts(container: Any) -> tuple[Any, ...]:
    return (
        (*container.keys(), *container.values())
        if isinstance(container, dict)
        else tuple(container)
    )


def _is_storable_leaf(value: Any) -> bool:
    if _is_scalar(value) or type(value) is Tensor:
        return True
    if is_random(value):
        return not _pickled_by_user(value)
    if is_array(value):
        return not value.dtype.hasobject
    if _pickled_by_user(value):
        return False
    return isinstance(value, Enum) and type(value).__module__ != "__main__"


def frozen_moment(
    training: Training, args: Sequence[Any], kwargs: Mapping[str, Any], others: Mapping[str, Tensor]
) -> Frozen:
    """Copy the arguments of ``training_step`` and the state in which it is called.

    Args:
        training: the run.
        args: by position.
        kwargs: by name.
        others: parameters that are not x and have moved since the window's first micro-batch.

    Raises:
        TypeError: if a batch can be neither pickled nor copied.
    """
    state = capture(training.trainer, training.module)
    return freeze({"args": tuple(args), "kwargs": dict(kwargs), "others": dict(others), **state})


def capture(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the state on which the loss of the next forward may depend; it aliases live tensors: freeze it at once.

    Attributes that hold anything else than numbers, text, tensors, arrays, generators and containers of these, or more than
    10,000 of them, are named but not taken: a replay finds them as they are then. So are those whose class says itself how
    it is pickled. States of torchmetrics are not taken either: no loss depends on them.
    """
    modules = {}
    for path, submodule in module.named_modules():
        attributes = attributes_of(submodule)
        kept = {}
        if not isinstance(submodule, Metric):
            kept = {
                name: value
                for name, value in attributes.items()
                if _is_scalar(value) or _storable(value)
            }
        buffers = {} if is_script(submodule) else dict(submodule._buffers)
        modules[path] = {"names": list(attributes), "attributes": kept, "buffers": buffers}
    return {
        "modules": modules,
        "random": read_random_state(module.device),
        "counters": lightning_compat.read_counters(trainer),
    }


def put_back(trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
    """Set module, random numbers and counters to a captured state, thawed afresh; to be called inside `untouched`."""
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
    """Write ``value`` into the tensor that is there, where it fits: compiled code and views may hold on to it."""
    if (
        current is None
        or value is None
        or current.shape != value.shape
        or current.dtype != value.dtype
    ):
        return value
    if not torch.equal(current, value.to(current.device)):
        current.data.copy_(
            value
        )  # it is put back, so autograd need not know: a graph of the user's may wait meanwhile
    return current


# -------------------------------------------------------------------------------------------------------- random numbers


def read_random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's, the device's, Python's and (where it is in use) numpy's global generators."""
    version, words, normal = random.getstate()
    # as bytes: pickled one by one, its 625 integers would take longer than all else of a small module
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, array.array("I", words).tobytes(), normal),
    }
    if device.type not in ("cpu", "meta"):
        state["device"] = torch.get_device_module(device).get_rng_state(device).cpu()
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def write_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the global generators to what `read_random_state` returned."""
    torch.set_rng_state(state["torch"])
    version, words, normal = state["python"]
    random.setstate((version, tuple(array.array("I", words)), normal))
    if "device" in state and device.type == "cuda":
        _cuda_generator(device).graphsafe_set_state(_generator_at(state["device"], device))
    elif "device" in state and device.type not in ("cpu", "meta"):
        torch.get_device_module(device).set_rng_state(state["device"], device)
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])


@contextmanager
def kept_cuda_generator(device: torch.device) -> Iterator[None]:
    """Inside the block the CUDA generator works on a copy of its state; afterwards it has its own again, as it was.

    Setting its state would tell cuDNN to draw a new seed for the dropout of recurrent layers, and so move training.
    """
    if device.type != "cuda":
        yield
        return
    generator = _cuda_generator(device)
    own = generator.graphsafe_get_state()
    generator.graphsafe_set_state(own.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(own)


def _cuda_generator(device: torch.device) -> torch.Generator:
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def _generator_at(state: Tensor, device: torch.device) -> torch.Generator:
    """Return a generator of its own at a state, from which the global one can take it over."""
    twin = torch.Generator(device)
    twin.set_state(state)
    return twin


# ------------------------------------------------------------------------------------------------------------- iterators


def iterators(module: nn.Module) -> list[str]:
    """Return the attributes that hold an iterator: what draws from it cannot be drawn again."""
    found = []
    for path, part in module.named_modules():
        for name, value in attributes_of(part).items():
            draws = hasattr(type(value), "__next__") and isinstance(value, collections.abc.Iterator)
            if draws and not isinstance(value, (itertools.count, io.IOBase)):
                found.append(f"{path}.{name}" if path else name)
    return found
