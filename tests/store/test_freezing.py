"""Freezing: a copy of anything, byte for byte, with its tensors apart."""

import collections
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.store.freezing import freeze, thaw

Pair = collections.namedtuple("Pair", ["x", "y"])


@dataclass
class Record:
    x: torch.Tensor
    names: list


def same(a, b):
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.stride() == b.stride()
            and a.requires_grad == b.requires_grad
            and torch.equal(a, b)
        )
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple, collections.deque)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b


tensors = st.sampled_from(
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.ones(3, requires_grad=True),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.tensor([1 + 2j]),
        torch.tensor([], dtype=torch.int32),
        torch.tensor([True, False]),
        torch.arange(10)[::2],
    ]
)
leaves = (
    tensors
    | st.none()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False)
    | st.just(np.arange(3))
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(collections.deque, st.lists(inner, max_size=2))
        | st.builds(Record, tensors, st.lists(st.text(), max_size=2))
    ),
    max_leaves=8,
)


@given(values)
def test_thawed_is_what_was_frozen(value):
    frozen = freeze(value)
    assert all(t.is_contiguous() and t.device.type == "cpu" for t in frozen.tensors.values())
    if not any(
        not t.is_contiguous() and torch.empty_like(t).stride() != t.stride()
        for t in find_tensors(value)
    ):
        assert same(thaw(frozen), value)


def find_tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in find_tensors(item)]
    if isinstance(value, (list, tuple, collections.deque)):
        return [t for item in value for t in find_tensors(item)]
    return find_tensors(vars(value)) if isinstance(value, Record) else []


def test_strides_with_gaps_become_dense_and_values_stay():
    value = torch.arange(10)[::2]
    assert torch.equal(thaw(freeze(value)), value)


def test_nothing_aliases_the_original_or_another_copy():
    value = {"x": torch.zeros(3), "list": [1]}
    frozen = freeze(value)
    value["x"] += 1
    value["list"].append(2)
    first, second = thaw(frozen), thaw(frozen)
    first["x"] += 5
    assert torch.equal(second["x"], torch.zeros(3))
    assert second["list"] == [1]


def test_aliases_stay_aliases():
    x = torch.ones(2)
    thawed = thaw(freeze([x, {"again": x}]))
    assert thawed[0] is thawed[1]["again"]
    assert len(freeze([x, x]).tensors) == 1


def test_generators_go_on_where_they_were():
    generators = {"torch": torch.Generator().manual_seed(3), "numpy": np.random.default_rng(4)}
    frozen = freeze(generators)
    expected = torch.rand(2, generator=generators["torch"]), generators["numpy"].random()
    thawed = thaw(frozen)
    assert torch.equal(torch.rand(2, generator=thawed["torch"]), expected[0])
    assert thawed["numpy"].random() == expected[1]


def test_what_cannot_be_pickled_is_held_as_a_copy():
    class Local:
        def __init__(self):
            self.x = torch.zeros(2)

    value = Local()
    frozen = freeze(value)
    value.x += 1
    assert torch.equal(thaw(frozen).x, torch.zeros(2))
    assert frozen.structure == b""


def test_what_can_be_neither_pickled_nor_copied_is_refused_with_both_reasons():
    with pytest.raises(
        TypeError, match=r"cannot pickle '_thread.lock' object; cannot pickle '_thread.lock'"
    ):
        freeze({"lock": threading.Lock()})
