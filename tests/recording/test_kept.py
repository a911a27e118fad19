"""`KeptProbes`: rows and records stay together, whatever happens to the disk."""

import contextlib
import errno
import random
from types import SimpleNamespace

import pytest
import torch

from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.recording.kept import KeptProbes
from lightning_landscape.recording.schedule import Schedule, evenly
from lightning_landscape.store.freezing import freeze
from lightning_landscape.store.record import Record
from lightning_landscape.store.store import RecordStore
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.gradients import Gradient


def probe(step):
    return Probe(step, 0, 1.0 + step, None, 0.0, None, 4.0, None, 0.1, 0.0, None, step)


def record(step, size=4):
    x = {"w": torch.full((size,), float(step))}
    return Record(step, 1.0 + step, [freeze({"step": step})], x, Gradient(dict(x), 1.0))


class Rows:
    """Further rows, as an extra has them."""

    def __init__(self):
        self.steps = set()

    def forget(self, step):
        self.steps.discard(step)


@pytest.fixture
def kept(tmp_path):
    return make(tmp_path / "store")


def make(folder, stride=1, most=100, beside=(), processes=None, budget=2**30):
    store = RecordStore(folder, budget)
    return KeptProbes(Schedule(stride, most), store, processes or Processes(), beside)


def fill(kept, steps):
    for step in steps:
        kept.add(probe(step))
        kept.write(record(step))


def full_disk(monkeypatch, after):
    """Let the disk be full once so many records are there; dropping some makes room."""
    write = RecordStore._write_files

    def maybe(self, folder, one):
        stored = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
        if len(stored) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, folder, one)

    monkeypatch.setattr(RecordStore, "_write_files", maybe)


def assert_consistent(kept):
    """Rows, schedule and store hold the same steps."""
    steps = [row.step for row in kept.table]
    assert steps == kept.steps
    folders = {int(path.name) for path in kept.store.folder.iterdir() if path.name.isdigit()}
    assert folders == set(steps)
    for step in steps:
        assert torch.equal(kept.store.read(step).x["w"], record(step).x["w"])


def test_rows_and_records_are_kept_together(kept):
    fill(kept, [0, 1, 2])
    kept.settle()
    assert_consistent(kept)
    assert kept.steps == [0, 1, 2]
    kept.put(probe(1).with_values(reference_loss=0.5))
    assert kept.table.at_step(1).reference_loss == 0.5
    assert len(kept.table) == 3


@pytest.mark.parametrize("most", [2, 3, 5])
def test_a_full_table_is_thinned_as_a_naive_one(most, tmp_path):
    """The newest kept probe is never further away than a stride; step 0 stays."""
    kept, beside = make(tmp_path / "store", most=most), Rows()
    kept._beside = [beside]
    naive, stride = [], 1
    for step in range(40):
        if step >= (naive[-1] + stride if naive else 0):
            while len(naive) >= most and step >= naive[-1] + stride:
                naive, stride = naive[::2], 2 * stride
            due = not naive or step >= naive[-1] + stride
            kept.make_room(step, 0.0)
            assert kept.schedule.due(step) == due
            if due:
                naive.append(step)
                fill(kept, [step])
                beside.steps.add(step)
    kept.settle()
    assert kept.steps == naive
    assert kept.schedule.stride == stride
    assert beside.steps == set(naive)
    assert_consistent(kept)


def test_a_spacing_thins_a_table_that_is_not_full(kept):
    fill(kept, range(6))
    assert kept.make_room(6, spacing=2.0) == [1, 3, 5]
    kept.settle()
    assert_consistent(kept)


def test_what_is_missed_and_lost_is_counted(kept):
    fill(kept, [0, 1, 2])
    kept.miss(3, "no_loss")
    assert kept.schedule.next_step == 4
    kept.lose(1, "unevaluable")
    assert kept.steps == [0, 2]
    assert kept.dropped == {"non_finite": 0, "no_loss": 1, "unevaluable": 1}
    kept.settle()
    assert_consistent(kept)


# ------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_thins_the_table_and_goes_on(kept, monkeypatch):
    full_disk(monkeypatch, after=5)
    for step in range(12):
        kept.make_room(step, 0.0)
        if kept.schedule.due(step):
            fill(kept, [step])
            kept.store.wait()
    kept.settle()
    assert kept.steps[0] == 0
    assert kept.schedule.stride >= 4
    assert kept.dropped["unevaluable"] == 0  # thinned out, not lost
    assert_consistent(kept)


def test_a_disk_that_is_full_at_once_costs_the_new_probe_and_is_told(kept, monkeypatch):
    fill(kept, [0])
    kept.settle()
    full_disk(monkeypatch, after=1)
    kept.add(probe(1))
    kept.write(record(1))
    with pytest.raises(OSError, match=r"No space left .*, while storing the probes of steps \[1\]"):
        kept.settle()
    assert kept.steps == [0]
    assert kept.dropped["unevaluable"] == 1
    assert_consistent(kept)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_disk_does_no_row_is_without_its_record(seed, tmp_path, monkeypatch):
    """Every probe is kept, thinned out, or counted as unevaluable."""
    generator, write = random.Random(seed), RecordStore._write_files

    def maybe(self, folder, one):
        if generator.random() < 0.3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, folder, one)

    monkeypatch.setattr(RecordStore, "_write_files", maybe)
    kept, thinned = make(tmp_path / "store"), set()
    forget, lose = kept.forget, kept.lose
    lost = []
    kept.forget = lambda steps: thinned.update(steps) or forget(steps)
    kept.lose = lambda step, why: lost.append(step) or lose(step, why)
    added = set()
    for step in range(20):
        if not kept.schedule.due(step):
            continue
        added.add(step)
        with contextlib.suppress(OSError):
            fill(kept, [step])
    with contextlib.suppress(OSError):
        kept.settle()
    kept.store.take_unwritten()
    assert added == set(kept.steps) | thinned | set(lost)
    assert kept.dropped["unevaluable"] == len(lost)
    assert_consistent(kept)


def test_alone_nothing_is_tried_again(kept, monkeypatch):
    """Where other processes may be gone, what could not be written is lost and told."""
    fill(kept, [0, 1])
    kept.settle()
    full_disk(monkeypatch, after=2)
    kept.add(probe(2))
    kept.write(record(2))
    with pytest.raises(OSError, match=r"steps \[2\]"):
        kept.settle_alone()
    assert kept.steps == [0, 1]
    assert kept.dropped["unevaluable"] == 1
    assert_consistent(kept)


def test_a_failure_that_is_not_of_the_disk_is_raised_as_it_is(kept, monkeypatch):
    def broken(self, folder, one):
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(RecordStore, "_write_files", broken)
    kept.add(probe(0))
    kept.write(record(0))
    with pytest.raises(ZeroDivisionError, match="broken"):
        kept.settle()


def test_rows_that_are_evaluated_at_once_stay_without_their_record(kept, monkeypatch):
    full_disk(monkeypatch, after=0)
    kept.add(probe(0))
    kept.write_start(record(0))
    kept.give_up_unwritten()
    assert kept.steps == [0]
    assert kept.dropped["unevaluable"] == 0
    assert 0 not in kept.store


def test_a_budget_limits_the_number_of_probes(tmp_path):
    size = 4 * 1000
    kept = make(tmp_path / "store", budget=int(7.5 * size))
    kept.add(probe(0))
    kept.write(record(0, 1000))
    expected = kept.store.budget // kept.store._bytes_of(record(0, 1000))
    assert kept.schedule.max_probes == expected == 3


# ---------------------------------------------------------------------------------- other processes


def test_a_probe_that_another_process_lacks_is_dropped(tmp_path):
    others = [0, 2, 3]
    processes = Processes()
    processes = SimpleNamespace(
        size=2,
        rank=0,
        of_each=lambda own: [own, others],
        everywhere=processes.everywhere,
        exchange=processes.exchange,
        smallest=processes.smallest,
    )
    kept = make(tmp_path / "store", processes=processes)
    fill(kept, [0, 1, 2])
    kept.drop_unshared()
    assert kept.steps == [0, 2]
    assert kept.dropped["unevaluable"] == 1


# -------------------------------------------------------------------------------- stop and resume


def test_a_run_goes_on_with_the_rows_and_records_of_a_checkpoint(kept, tmp_path):
    fill(kept, [0, 2, 4])
    kept.miss(5, "no_loss")
    state = kept.state()
    other = make(tmp_path / "other")
    other.adopt(state, kept.store.folder)
    assert other.table == kept.table
    assert other.state() == state
    assert_consistent(other)
    assert_consistent(kept)  # the store that it goes on from is not changed


def test_a_record_that_is_gone_costs_its_row_and_is_counted(kept, tmp_path):
    fill(kept, [0, 1, 2])
    state = kept.state()
    kept.store.drop(1)
    other = make(tmp_path / "other")
    other.adopt(state, kept.store.folder)
    # the run may have thinned its table after the checkpoint: then so does this one
    assert other.steps == [0, 2]
    assert other.schedule.stride == 2
    assert_consistent(other)
    kept.store.drop(0)
    third = make(tmp_path / "third")
    third.adopt(state, kept.store.folder)
    assert third.steps == [2]
    assert third.dropped["unevaluable"] == 2
    assert_consistent(third)


def test_an_evaluated_row_needs_no_record(kept, tmp_path):
    fill(kept, [0, 1])
    kept.put(probe(1).with_values(reference_loss=0.5))
    state = kept.state()
    kept.store.drop(1)
    other = make(tmp_path / "other")
    other.adopt(state, kept.store.folder)
    assert other.steps == [0, 1]
    assert other.table == ProbeTable([probe(0), probe(1).with_values(reference_loss=0.5)])


@pytest.mark.parametrize("count", [1, 2, 5, 9, 33])
@pytest.mark.parametrize("at_most", [1, 2, 4])
def test_evenly_chosen_steps_are_the_densest_of_powers_of_two(count, at_most):
    kept = list(range(0, 10 * count, 10))
    chosen = evenly(kept, at_most)
    assert len(chosen) <= at_most
    assert chosen[0] == 0
    spacings = [q for q in (1, 2, 4, 8, 16, 32, 64) if len(kept[::q]) <= at_most]
    assert chosen == kept[:: spacings[0]]
