"""Memory that is used again: never while anybody has a tensor in it."""

import gc
import itertools
import sys
import threading

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape import LandscapeMonitor
from lightning_landscape.recording.window import Window
from lightning_landscape.store import memory
from lightning_landscape.store.memory import PAGE, Layout, Memory
from tests.helpers.modules import Plain, loader

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
    copies = Memory(most=2).on_host(tensors)
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
    memory = Memory(most=1)
    held = hold(memory.copied({"x": torch.arange(10.0)}))
    for fill in range(5):
        memory.copied({"x": torch.full((10,), -1.0 - fill)})
    gc.collect()
    values = held["x"] if isinstance(held, dict) else held
    assert torch.equal(values.reshape(-1), torch.arange(10.0)[-values.numel() :])


def test_memory_is_lent_again_when_nobody_has_a_view():
    memory, tensors = Memory(most=2), {"x": torch.randn(3000), "y": torch.randn(7).double()}
    where = set()
    for _ in range(10):
        x, g = memory.copied(tensors), memory.copied(tensors)
        where |= {x["x"].data_ptr(), g["x"].data_ptr()}
        del x, g
    assert len(where) == 2


def test_no_piece_is_lent_to_two_threads():
    memory, wrong = Memory(most=2), []

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
    memory = Memory(most=2)
    held = [memory.copied({"x": torch.randn(PAGE)}) for _ in range(5)]
    assert len(memory._places) == 2
    del held
    memory.copied({"x": torch.randn(100 * PAGE)})  # too large for what there is: one of those goes
    assert sorted(place.size // PAGE for place in memory._places) == [5, 401]


def test_a_copy_does_not_follow_the_original_and_needs_no_gradient():
    parameter = torch.nn.Parameter(torch.zeros(3))
    copy = Memory(most=2).copied({"p": parameter})["p"]
    with torch.no_grad():
        parameter += 1
    assert copy.tolist() == [0, 0, 0]
    assert not copy.requires_grad
    assert type(copy) is torch.Tensor


def test_other_memory_formats_are_copied_in_the_order_of_their_elements():
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    copy = Memory(most=1).copied({"x": images})["x"]
    assert copy.is_contiguous()
    assert torch.equal(copy, images)


def test_what_no_file_can_hold_is_copied_all_the_same_while_training():
    wide = torch.randn(3, dtype=torch.complex128)
    assert torch.equal(Memory(most=1).copied({"x": wide})["x"], wide)
    with pytest.raises(TypeError, match="complex128"):
        Memory(most=1).on_host({"x": wide})


def test_a_header_that_does_not_fit_is_refused():
    layout = Layout((("x", torch.float32, torch.Size([2])),))
    assert len(layout.header({}, nbytes=layout.before)) == layout.before
    with pytest.raises(ValueError, match="header"):
        layout.header({"long": "x" * PAGE}, nbytes=layout.before)


def test_a_run_uses_the_same_two_pieces_for_all_of_its_probes(tmp_path, monkeypatch):
    where, hold = [], Window.hold_gradient

    def noting(window):
        hold(window)
        window._store.wait()  # else the writing of the one before may still need its own
        where.append(
            (
                min(v.data_ptr() for v in window.before.values()),
                min(v.data_ptr() for v in window.gradient.raw.values()),
            )
        )

    monkeypatch.setattr(Window, "hold_gradient", noting)
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(Plain(), loader())
    assert len(where) > 5
    assert (
        len({place for pair in where for place in pair}) <= 4
    )  # the first two, and two while those were written
    assert len(set(where[2:])) <= 2


class Counts(pl.Callback):
    """Notes after each step how many pieces were made until then."""

    def __init__(self, monkeypatch):
        self.made, self.after_steps, init = 0, [], memory._Place.__init__

        def noting(place, size):
            self.made += 1
            init(place, size)

        monkeypatch.setattr(memory._Place, "__init__", noting)

    def on_train_batch_end(self, trainer, *args):
        trainer.callbacks[
            0
        ]._session.measurement.rows.store.wait()  # x_0 is needed until it is written
        self.after_steps.append(self.made)


def test_a_live_run_needs_no_third_piece(tmp_path, monkeypatch):
    """x_k, and g_k, in whose place x_{k+1} waits while the loss at x_p is evaluated: three copies with x_p."""

    def trained(folder, *others, **settings):
        monitor = LandscapeMonitor(dirpath=folder, every_n_steps=1, **settings)
        still = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[monitor, *others], **still)
        trainer.fit(Plain(), loader())
        return monitor

    trained(tmp_path / "first")
    counts, reference = (
        Counts(monkeypatch),
        tmp_path / "first" / "landscape" / "reference.safetensors",
    )
    monitor = trained(tmp_path / "second", counts, reference=str(reference))
    assert len(monitor.table) == len(counts.after_steps) > 5
    assert all(probe.evaluated for probe in monitor.table)
    assert len(set(counts.after_steps[1:])) == 1
