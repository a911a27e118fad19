"""Memory that is used again: never while anybody has a tensor in it."""

import gc
import itertools
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.store.layout import PAGE, Laid, Layout
from lightning_landscape.store.memory import Memory

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.complex64,
    torch.int8,
    torch.bool,
    torch.int64,
]
TENSORS = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6
)


def drawn(kinds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        str(place): (100 * torch.randn(shape, generator=generator)).to(dtype)
        for place, (dtype, shape) in enumerate(kinds)
    }


@given(TENSORS)
def test_copies_are_equal_aligned_and_do_not_overlap(kinds):
    tensors = drawn(kinds)
    copies = Memory(most=2, large=0).on_host(tensors)
    assert list(copies) == list(tensors)
    spans = []
    for name, tensor in tensors.items():
        copy = copies[name]
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
        assert copy.data_ptr() % copy.dtype.itemsize == 0
        spans.append((copy.data_ptr(), copy.data_ptr() + copy.nbytes))
    full = sorted(span for span in spans if span[0] < span[1])
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(full))


@pytest.mark.parametrize(
    "hold", [lambda copy: copy["x"], lambda copy: copy["x"][5:].view(5, 1), dict, lambda copy: copy]
)
def test_memory_is_not_lent_again_while_a_view_of_it_is_there(hold):
    memory = Memory(most=1, large=0)
    held = hold(memory.copied({"x": torch.arange(10.0)}))
    for fill in range(5):
        memory.copied({"x": torch.full((10,), -1.0 - fill)})
    gc.collect()
    values = held["x"] if isinstance(held, dict) else held
    assert torch.equal(values.reshape(-1), torch.arange(10.0)[-values.numel() :])


def test_memory_is_lent_again_when_nobody_has_a_view():
    memory, tensors = (
        Memory(most=2, large=0),
        {"x": torch.randn(3000), "y": torch.randn(7).double()},
    )
    where = set()
    for _ in range(10):
        x, g = memory.copied(tensors), memory.copied(tensors)
        where |= {x["x"].data_ptr(), g["x"].data_ptr()}
        del x, g
    assert len(where) == 2


def test_no_piece_is_lent_to_two_threads():
    memory, wrong = Memory(most=2, large=0), []

    def use(value):
        for _ in range(2000):
            copy = memory.copied({"x": torch.full((50,), value)})["x"]
            if not bool((copy == value).all()):
                wrong.append(value)
            del copy

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=use, args=(float(number),)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_no_more_is_kept_than_was_asked_for():
    memory = Memory(most=2, large=0)
    held = [memory.copied({"x": torch.randn(PAGE)}) for _ in range(5)]
    assert len(memory._places) == 2
    del held
    memory.copied({"x": torch.randn(100 * PAGE)})  # too large for what there is: one of those goes
    assert sorted(place.size // PAGE for place in memory._places) == [5, 401]


@pytest.mark.parametrize("large", [0, 10**9])
def test_a_copy_does_not_follow_the_original_and_needs_no_gradient(large):
    parameter = torch.nn.Parameter(torch.zeros(3))
    copy = Memory(most=2, large=large).copied({"p": parameter})["p"]
    with torch.no_grad():
        parameter += 1
    assert copy.tolist() == [0, 0, 0]
    assert not copy.requires_grad
    assert type(copy) is torch.Tensor


@pytest.mark.parametrize("large", [0, 10**9])
def test_other_memory_formats_are_copied_in_the_order_of_their_elements(large):
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    copy = Memory(most=1, large=large).copied({"x": images})["x"]
    assert copy.is_contiguous()
    assert torch.equal(copy, images)


def test_what_no_file_can_hold_is_copied_all_the_same_while_training():
    wide = torch.randn(3, dtype=torch.complex128)
    assert torch.equal(Memory(most=1, large=0).copied({"x": wide})["x"], wide)
    with pytest.raises(TypeError, match="complex128"):
        Layout((("x", wide.dtype, wide.shape),))


def test_only_large_tensors_are_laid_out():
    memory = Memory(most=1, large=400)
    small, large = ({"x": torch.randn(size)} for size in (99, 100))
    assert not isinstance(memory.copied(small), Laid)
    assert isinstance(memory.copied(large), Laid)
    for tensors in (small, large):
        assert torch.equal(memory.copied(tensors)["x"], tensors["x"])
        assert memory.copied(tensors)["x"] is not tensors["x"]


def test_a_header_that_does_not_fit_is_refused():
    layout = Layout((("x", torch.float32, torch.Size([2])),))
    assert len(layout.header({}, nbytes=layout.before)) == layout.before
    with pytest.raises(ValueError, match="header"):
        layout.header({"long": "x" * PAGE}, nbytes=layout.before)
