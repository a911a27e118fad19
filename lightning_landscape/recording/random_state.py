"""The states of the global random number generators: read them, and set them again."""

from __future__ import annotations

import array
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def read_random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators of torch, the device, Python, and numpy if used.

    Args:
        device: the device of the module.
    """
    version, words, normal = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        # As bytes: pickling 625 integers takes longer than everything else of a small module.
        "python": (version, array.array("I", words).tobytes(), normal),
    }
    if device.type not in ("cpu", "meta"):
        state["device"] = torch.get_device_module(device).get_rng_state(device).cpu()
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def write_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the global generators to a state that `read_random_state` returned."""
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
    """Let the CUDA generator use a copy of its state inside the block, and its own state after it.

    Setting the state instead would make cuDNN draw a new seed for the dropout of recurrent layers,
    and so change the training.

    Args:
        device: any device; only CUDA needs this.
    """
    if device.type != "cuda":
        yield
        return
    generator = _cuda_generator(device)
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(state.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)


def _cuda_generator(device: torch.device) -> torch.Generator:
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def _generator_at(state: Tensor, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator
