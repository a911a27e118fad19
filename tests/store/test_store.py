"""The store: what was written comes back, privately, within its budget."""

import errno
import math
import os
import shutil
import threading
import weakref
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_landscape.store import background, others
from lightning_landscape.store.freezing import freeze, thaw
from lightning_landscape.store.probe_files import MOMENTS
from lightning_landscape.store.record import CodecError, Record
from lightning_landscape.store.store import RecordStore
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.vectors.gradients import Gradient

BUDGET = 10**9


def record(step, seed=0, others=None, size=100, **more):
    g = torch.Generator().manual_seed(seed)
    x = {"w": torch.randn(size, generator=g), "b": torch.randn(2, 3, generator=g).t()}
    gradient = Gradient({"w": torch.randn(size, generator=g).bfloat16()}, 1 / 3)
    moments = [freeze({"batch": torch.randn(4, generator=g), "n": seed})]
    return Record(step, 0.5 * seed, moments, x, gradient, others, **more)


def bytes_of(one):
    tensors = [*one.x.values(), *one.gradient.raw.values()]
    return sum(t.nbytes for t in tensors) + sum(moment.nbytes for moment in one.moments)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_what_was_written_comes_back(tmp_path):
    store = RecordStore(tmp_path / "store", BUDGET)
    after = {"w": torch.full((100,), 2.0)}
    one = record(7, 3, {"frozen": torch.ones(3)}, following=after)
    store.write(one)
    assert 7 in store
    assert 8 not in store
    found = store.read(7)
    assert (found.step, found.loss, found.error) == (7, 1.5, CodecError())
    same(found.x, one.x)
    same(found.gradient.raw, one.gradient.raw)
    same(found.others, one.others)
    same(found.following, after)
    assert found.gradient.factor == 1 / 3
    (moment,) = found.moments
    assert thaw(moment)["n"] == 3
    assert torch.equal(thaw(moment)["batch"], thaw(one.moments[0])["batch"])


def test_a_process_that_stores_no_parameters(tmp_path):
    store = RecordStore(tmp_path / "store", BUDGET, "int8")
    store.write(Record(4, float("nan"), [freeze(1)]))
    assert 4 in store
    assert not store.holds_iterate(4)
    found = store.read(4)
    assert math.isnan(found.loss)
    assert (found.x, found.gradient, found.following, found.others) == (None, None, None, {})
    store.write(record(5))
    assert store.holds_iterate(5)
    same(store.read(5).x, record(5).x)


def test_a_micro_batch_that_cannot_be_pickled_stays_in_memory(tmp_path):
    class Local:
        pass

    store, held = RecordStore(tmp_path / "store", BUDGET), freeze(Local())
    assert not held.structure
    store.write(Record(0, 1.0, [held, freeze(2)]))
    assert isinstance(thaw(store.read(0).moments[0]), Local)
    later = RecordStore(tmp_path / "store", BUDGET)
    later.digests = dict(store.digests)
    with pytest.raises(NotMeasurable, match="is not the one that this run wrote"):
        later.read(0)


def test_the_store_is_private(tmp_path):
    store = RecordStore(tmp_path / "process-1", BUDGET)
    store.write(record(7, others={"frozen": torch.ones(3)}))
    store.wait()
    modes = {path: path.stat().st_mode & 0o777 for path in (store.folder, *store.folder.rglob("*"))}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())


def others_file(store, step):
    return store.folder / f"{step:012d}" / "others.safetensors"


def test_frozen_parameters_are_stored_once_while_they_do_not_change(tmp_path):
    store, frozen = RecordStore(tmp_path / "store", BUDGET), torch.zeros(5000)
    for step in range(4):
        if step == 2:
            frozen += 1
        changed = store.others_changed({"frozen": frozen})
        assert changed == (step in (0, 2))
        store.write(record(step, step, {"frozen": frozen.clone()} if changed else {}))
    store.wait()
    nodes = [others_file(store, step).stat().st_ino for step in range(4)]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    assert [float(store.read(step).others["frozen"][0]) for step in range(4)] == [0, 0, 1, 1]
    store.drop(1)
    store.drop(3)
    assert [float(store.read(step).others["frozen"][0]) for step in (0, 2)] == [0.0, 1.0]
    store.write(record(4, 4))
    assert 4 in store
    assert others_file(store, 4).stat().st_ino == nodes[2]


def test_frozen_parameters_that_do_not_change_are_read_once(tmp_path, monkeypatch):
    store, reads = RecordStore(tmp_path / "store", BUDGET), []
    for step in range(3):
        store.write(record(step, step, {} if step == 1 else {"frozen": torch.full((9,), step)}))
    store.wait()
    original = others.read_tensors
    monkeypatch.setattr(others, "read_tensors", lambda path: reads.append(path) or original(path))
    assert [float(store.read(step).others["frozen"][0]) for step in (0, 1, 2, 0)] == [0, 0, 2, 0]
    assert len(reads) == 3


def test_frozen_parameters_beyond_half_of_the_budget_are_taken_to_be_constant(tmp_path):
    store = RecordStore(tmp_path / "store", 20_000)
    assert not store.others_changed({"frozen": torch.zeros(5000)})
    assert store.others_changed({"frozen": torch.zeros(500)})
    store.write(record(0))
    assert store.read(0).others == {}


def test_capacity_counts_the_largest_probe(tmp_path):
    store = RecordStore(tmp_path / "store", 10_000)
    assert store.capacity is None
    sizes = (50, 500, 50)
    records = [record(step, step, size=size) for step, size in enumerate(sizes)]
    store.write(records[0])
    store.write(records[1])
    assert store.capacity == 10_000 // bytes_of(records[1])
    store.write(records[2])
    assert store.capacity == 10_000 // bytes_of(records[1])
    assert abs(store.nbytes - sum(map(bytes_of, records))) < 6000
    store.note_size(record(3, size=50, following={"w": torch.zeros(1000)}))
    assert store.capacity == 10_000 // (bytes_of(records[0]) + 4000)


def test_frozen_parameters_that_change_count_for_every_probe(tmp_path):
    store, one = RecordStore(tmp_path / "store", 100_000), record(0)
    for step in range(2):
        store.write(record(step, others={"frozen": torch.full((1000,), step)}))
    own = bytes_of(one)
    assert store.largest == own + 8000
    assert store.capacity == (100_000 - 8000) // (own + 8000)


def test_a_budget_without_room_for_two_probes_is_refused(tmp_path):
    for dtype, start in (("native", False), ("int8", True)):
        store = RecordStore(tmp_path / "store", 5000, dtype)
        store.require_room()
        store.note_size(record(0, size=1000))
        with pytest.raises(MisconfigurationException, match="needs .* MiB a probe") as caught:
            store.require_room()
        assert ("more for x_0" in str(caught.value)) == start


def test_what_another_run_wrote_is_not_unpickled(tmp_path):
    store = RecordStore(tmp_path / "store", BUDGET)
    store.write(record(7, 1))
    store.wait()
    other = RecordStore(tmp_path / "store", BUDGET)
    with pytest.raises(NotMeasurable, match="step 7 is not the one that this run wrote"):
        other.read(7)
    victim = tmp_path / "store" / f"{7:012d}" / MOMENTS
    with safe_open(victim, framework="pt") as file:
        header = file.metadata()
    content = load_file(victim)
    # the pickled part of the first micro-batch
    content["0"] = torch.cat([content["0"], content["0"][:1]])
    save_file(content, victim, header)
    with pytest.raises(NotMeasurable, match="is not the one that this run wrote"):
        store.read(7)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"damaged")])
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("moments", "batch"),
        *((part, part) for part in ("parameters", "gradient", "following", "others")),
    ],
)
def test_a_file_that_is_gone_or_damaged(file, said, damage, tmp_path):
    store = RecordStore(tmp_path / "store", BUDGET)
    frozen, after = {"frozen": torch.ones(3)}, {"w": torch.ones(3)}
    for step in (6, 7):
        store.write(record(step, step, frozen, following=after))
    store.wait()
    damage(store.folder / f"{7:012d}" / f"{file}.safetensors")
    for _ in range(2):
        with pytest.raises(NotMeasurable, match=f"the stored {said} of step 7 cannot be read"):
            store.read(7)
        store.expect(7)


def test_a_folder_that_is_gone(tmp_path):
    store = RecordStore(tmp_path / "store", BUDGET)
    store.write(record(7, 1))
    store.wait()
    shutil.rmtree(store.folder / f"{7:012d}")
    assert 7 not in store
    with pytest.raises(NotMeasurable, match="step 7"):
        store.read(7)


def no_links(*args):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("links", [True, False])
def test_adopting_links_or_copies_and_leaves_the_old_store_alone(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    old = RecordStore(tmp_path / "old", BUDGET)
    old.write(record(7, 1, {"frozen": torch.ones(3)}))
    old.wait()
    new = RecordStore(tmp_path / "new", BUDGET)
    assert new.adopt(old.folder, 7, old.digests[7])
    assert not new.adopt(old.folder, 9, "")
    files = [
        (store.folder / f"{7:012d}" / "gradient.safetensors").stat().st_ino for store in (old, new)
    ]
    assert (files[0] == files[1]) == links
    found = new.read(7)
    assert thaw(found.moments[0])["n"] == 1
    same(found.x, record(7, 1).x)
    same(found.others, {"frozen": torch.ones(3)})
    assert new.largest > 0
    new.drop(7)
    new.remove()
    assert thaw(old.read(7).moments[0])["n"] == 1


def test_adopting_copies_shared_files_once(tmp_path, monkeypatch):
    old, original = RecordStore(tmp_path / "old", BUDGET), os.link
    for step in range(3):
        old.write(record(step, step, {} if step else {"frozen": torch.ones(3)}))
    old.wait()

    def far(source, target):
        if str(source).startswith(str(old.folder)):
            no_links()
        original(source, target)

    monkeypatch.setattr(os, "link", far)
    new = RecordStore(tmp_path / "new", BUDGET)
    assert all(new.adopt(old.folder, step, old.digests[step]) for step in range(3))
    assert len({others_file(new, step).stat().st_ino for step in range(3)}) == 1


def test_a_full_disk_is_an_os_error_and_leaves_nothing_of_the_probe(small_disk):
    store = RecordStore(small_disk / "store", BUDGET)
    store.write(record(0, size=1000))
    store.write(record(1, size=400_000))
    store.write(record(2, size=10))  # not written: one before it could not be
    store.wait()
    assert not store.all_is_well
    unwritten = store.take_unwritten()
    assert [one.record.step for one in unwritten] == [1, 2]
    assert all(
        isinstance(one.error, OSError) and one.error.errno == errno.ENOSPC for one in unwritten
    )
    assert store.all_is_well
    assert 1 not in store
    assert sorted(path.name for path in store.folder.iterdir()) == [f"{0:012d}"]
    store.drop(0)
    store.write(record(1, size=100_000))
    assert 1 in store
    assert torch.equal(store.read(1).x["w"], record(1, size=100_000).x["w"])


def test_frozen_parameters_that_could_not_be_written_come_with_the_next_probe(
    tmp_path, monkeypatch
):
    store, original, room = RecordStore(tmp_path / "store", BUDGET), RecordStore._write_files, [2]

    def full(self, folder, one):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, folder, one)

    monkeypatch.setattr(RecordStore, "_write_files", full)
    store.write(record(0, others={"frozen": torch.zeros(50)}))
    store.write(record(1, 1))
    assert 1 in store
    moved = {"frozen": torch.ones(50)}
    assert store.others_changed(moved)
    store.write(record(2, 2, moved))
    assert not store.others_changed(moved)
    assert torch.equal(store.newest_others()["frozen"], moved["frozen"])
    store.write(record(3, 3))
    unwritten = store.take_unwritten()
    assert [one.record.step for one in unwritten] == [2, 3]
    room[0] = 100
    store.give_up(unwritten[0].record)
    assert torch.equal(store.newest_others()["frozen"], moved["frozen"])
    store.write(unwritten[1].record)
    store.write(record(4, 4))
    found = [float(store.read(step).others["frozen"][0]) for step in (0, 1, 3, 4)]
    assert found == [0.0, 0.0, 1.0, 1.0]
    assert torch.equal(store.newest_others()["frozen"], moved["frozen"])
    assert 2 not in store


def test_a_probe_that_is_dropped_before_it_is_written_is_gone(tmp_path):
    store = RecordStore(tmp_path / "store", BUDGET)
    for step in range(20):
        store.write(record(step, step, size=20_000))
        if step % 2:
            store.drop(step)
    store.wait()
    assert sorted(path.name for path in store.folder.iterdir()) == [
        f"{step:012d}" for step in range(0, 20, 2)
    ]
    for step in range(20, 24):
        store.write(record(step, step, size=100_000))
    store.remove()
    assert not store.folder.exists()


def test_an_interrupt_while_writing_waits_loses_no_record(tmp_path, monkeypatch):
    store, go, waiting = RecordStore(tmp_path / "store", BUDGET), threading.Event(), background.wait

    def interrupted(futures, **how):
        monkeypatch.setattr(background, "wait", waiting)
        go.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(
        RecordStore,
        "_write",
        lambda self, one, write=RecordStore._write: go.wait() and write(self, one),
    )
    store.write(record(0))
    store.write(record(1))
    monkeypatch.setattr(background, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(record(2))
    assert [step in store for step in range(4)] == [True, True, True, False]


def test_no_record_is_held_when_it_is_written(tmp_path):
    store, one = RecordStore(tmp_path / "store", BUDGET), record(0)
    there = weakref.ref(one.x["w"])
    store.write(one)
    del one
    store.wait()
    assert there() is None


def test_what_is_read_ahead_is_what_is_there(tmp_path):
    store = RecordStore(tmp_path / "store", BUDGET)
    store.memory.large = 1 << 12  # so that memory is lent
    held = []
    for step in range(4):
        store.write(record(step, step, size=400_000))
    for step in range(4):
        if step != 2:  # one that nobody had announced
            store.expect(step)
        held.append(store.read(step))
        if step == 1:
            store.expect(3)  # and one that is not asked for next
    for step, found in enumerate(held):  # no memory was lent twice
        expected = record(step, step, size=400_000)
        same(found.x, expected.x)
        same(found.gradient.raw, expected.gradient.raw)
        assert found.gradient.factor == 1 / 3
    store.expect(0)
    store.drop(0)
    with pytest.raises(NotMeasurable, match="step 0"):
        store.read(0)
    shutil.rmtree(store.folder / f"{1:012d}")
    store.expect(1)
    with pytest.raises(NotMeasurable, match="step 1"):
        store.read(1)
    store.expect(2)
    store.remove()
    assert not store.folder.exists()


def test_a_record_is_read_while_the_next_one_is_read_ahead(tmp_path):
    """Parameters are copied meanwhile, into the same memory."""
    store = RecordStore(tmp_path / "store", BUDGET)
    store.memory.large = 1 << 10
    for step in range(30):
        store.write(record(step, step, size=5000))
    store.expect(0)
    for step in range(30):
        found = store.read(step)
        store.expect(step + 1)
        copies = [store.memory.copied(found.x) for _ in range(5)]
        expected = record(step, step, size=5000)
        for values in (found.x, *copies):
            same(values, expected.x)
        same(found.gradient.raw, expected.gradient.raw)
