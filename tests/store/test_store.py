"""The store: what was written comes back, privately, within its budget."""

import errno
import os
import shutil
import subprocess

import lightning.pytorch as pl
import pytest
import torch
from lightning_landscape.store.kept import Kept
from lightning_landscape.store.moments import MOMENTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_landscape import LandscapeMonitor
from lightning_landscape.recording.freezing import freeze, thaw
from lightning_landscape.store.store import ProbeStore
from lightning_landscape.store.tensor_files import save_tensors
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.vectors.gradients import Gradient
from tests.helpers.modules import Plain, loader

BUDGET = 10**9


def kept(seed=0, others=None, size=100):
    g = torch.Generator().manual_seed(seed)
    x = {"w": torch.randn(size, generator=g), "b": torch.randn(2, 3, generator=g).t()}
    gradient = Gradient({"w": torch.randn(size, generator=g).bfloat16()}, 1 / 3)
    return Kept(
        [freeze({"batch": torch.randn(4, generator=g), "n": seed})], 0.5 * seed, x, gradient, others
    )


def test_what_was_written_comes_back(tmp_path):
    store, probe = ProbeStore(tmp_path / "store", BUDGET), kept(3)
    store.write(7, probe)
    assert 7 in store
    assert 8 not in store
    for name, value in probe.parameters.items():
        assert torch.equal({**store.others(7), **store.iterate(7)}[name], value)
    assert torch.equal(store.gradient(7).raw["w"], probe.gradient.raw["w"])
    assert store.gradient(7).factor == 1 / 3
    (moment,) = store.moments(7)
    assert thaw(moment)["n"] == 3
    assert torch.equal(thaw(moment)["batch"], thaw(probe.moments[0])["batch"])


def test_the_store_is_private(tmp_path):
    store = ProbeStore(tmp_path / "store", BUDGET)
    store.write(7, kept(others={"frozen": torch.ones(3)}))
    store.wait()
    modes = {path: path.stat().st_mode & 0o777 for path in (store.folder, *store.folder.rglob("*"))}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())


def test_frozen_parameters_are_stored_once_while_they_do_not_change(tmp_path):
    store, frozen = ProbeStore(tmp_path / "store", BUDGET), torch.zeros(5000)
    for step in range(4):
        if step == 2:
            frozen += 1
        changed = store.others_changed({"frozen": frozen})
        assert changed == (step in (0, 2))
        store.write(step, kept(step, {"frozen": frozen.clone()} if changed else {}))
    store.wait()
    nodes = [
        (tmp_path / "store" / f"{step:012d}" / "others.safetensors").stat().st_ino
        for step in range(4)
    ]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    store.drop(1)
    store.drop(3)
    assert [float(store.others(step)["frozen"][0]) for step in (0, 2)] == [0.0, 1.0]
    store.write(4, kept(4, {}))
    assert 4 in store
    assert (tmp_path / "store" / f"{4:012d}" / "others.safetensors").stat().st_ino == nodes[2]


def test_frozen_parameters_beyond_half_of_the_budget_are_taken_to_be_constant(tmp_path):
    store = ProbeStore(tmp_path / "store", 20_000)
    assert not store.others_changed({"frozen": torch.zeros(5000)})
    assert store.others_changed({"frozen": torch.zeros(500)})
    store.write(0, kept(0, {}))
    assert store.others(0) == {}


def test_capacity_counts_the_largest_probe(tmp_path):
    store = ProbeStore(tmp_path / "store", 10_000)
    assert store.capacity is None
    store.write(0, kept(0, size=50))
    store.write(1, kept(1, size=500))
    assert store.capacity == 10_000 // kept(1, size=500).nbytes
    store.write(2, kept(2, size=50))
    assert store.capacity == 10_000 // kept(1, size=500).nbytes
    assert (
        abs(
            store.nbytes
            - sum(k.nbytes for k in (kept(0, size=50), kept(1, size=500), kept(2, size=50)))
        )
        < 6000
    )


def test_what_another_run_wrote_is_not_unpickled(tmp_path):
    store = ProbeStore(tmp_path / "store", BUDGET)
    store.write(7, kept(1))
    store.wait()
    other = ProbeStore(tmp_path / "store", BUDGET)
    with pytest.raises(NotMeasurable, match="step 7 is not the one that this run wrote"):
        other.moments(7)
    victim = tmp_path / "store" / f"{7:012d}" / MOMENTS
    with safe_open(victim, framework="pt") as file:
        header = file.metadata()
    content = load_file(victim)
    content["0"] = torch.cat(
        [content["0"], content["0"][:1]]
    )  # the pickled part of the first micro-batch
    save_file(content, victim, header)
    with pytest.raises(NotMeasurable, match="is not the one that this run wrote"):
        store.moments(7)
    shutil.rmtree(victim.parent)
    for read in (store.moments, store.gradient, store.iterate):
        with pytest.raises(NotMeasurable, match="step 7 (is|are) gone"):
            read(7)


def no_links(*args):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("links", [True, False])
def test_adopting_links_or_copies_and_leaves_the_old_store_alone(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    old = ProbeStore(tmp_path / "old", BUDGET)
    old.write(7, kept(1, {"frozen": torch.ones(3)}))
    old.wait()
    new = ProbeStore(tmp_path / "new", BUDGET)
    assert new.adopt(old.folder, 7, old.digests[7])
    assert not new.adopt(old.folder, 9, "")
    files = [
        (store.folder / f"{7:012d}" / "gradient.safetensors").stat().st_ino for store in (old, new)
    ]
    assert (files[0] == files[1]) == links
    assert thaw(new.moments(7)[0])["n"] == 1
    assert new.largest > 0
    new.drop(7)
    new.remove()
    assert thaw(old.moments(7)[0])["n"] == 1


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a file system of 1 MiB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_os_error_and_leaves_nothing_of_the_probe(small_disk):
    store = ProbeStore(small_disk / "store", BUDGET)
    store.write(0, kept(0, size=1000))
    store.write(1, kept(1, size=400_000))
    store.write(2, kept(2, size=10))  # it waits for what is the matter with the one before
    store.wait()
    assert not store.all_is_well
    unwritten = store.take_unwritten()
    assert [one.step for one in unwritten] == [1, 2]
    assert all(
        isinstance(one.error, OSError) and one.error.errno == errno.ENOSPC for one in unwritten
    )
    assert store.all_is_well
    assert 1 not in store
    assert sorted(path.name for path in store.folder.iterdir()) == [f"{0:012d}"]
    store.drop(0)
    store.write(1, kept(1, size=100_000))
    assert 1 in store
    assert torch.equal(store.iterate(1)["w"], kept(1, size=100_000).parameters["w"])


def test_frozen_parameters_that_could_not_be_written_come_with_the_next_probe(
    tmp_path, monkeypatch
):
    store, original, room = ProbeStore(tmp_path / "store", BUDGET), ProbeStore._write_parts, [2]

    def full(self, folder, step, kept):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, folder, step, kept)

    monkeypatch.setattr(ProbeStore, "_write_parts", full)
    frozen = {"frozen": torch.zeros(50)}
    store.write(0, kept(0, frozen))
    store.write(1, kept(1, {}))
    assert 1 in store
    moved = {"frozen": torch.ones(50)}
    assert store.others_changed(moved)
    store.write(2, kept(2, moved))
    assert not store.others_changed(moved)
    assert torch.equal(store.newest_others()["frozen"], moved["frozen"])
    store.write(3, kept(3, {}))
    unwritten = store.take_unwritten()
    assert [one.step for one in unwritten] == [2, 3]
    room[0] = 100
    store.give_up(2, unwritten[0].kept)
    store.write(3, unwritten[1].kept)
    store.write(4, kept(4, {}))
    assert [float(store.others(step)["frozen"][0]) for step in (0, 1, 3, 4)] == [0.0, 0.0, 1.0, 1.0]
    assert 2 not in store


def test_a_probe_that_is_dropped_before_it_is_written_is_gone(tmp_path):
    store = ProbeStore(tmp_path / "store", BUDGET)
    for step in range(20):
        store.write(step, kept(step, size=20_000))
        if step % 2:
            store.drop(step)
    store.wait()
    assert sorted(path.name for path in store.folder.iterdir()) == [
        f"{step:012d}" for step in range(0, 20, 2)
    ]
    for step in range(20, 24):
        store.write(step, kept(step, size=100_000))
    store.remove()
    assert not store.folder.exists()


def test_a_run_on_a_small_disk_thins_and_ends_well(small_disk):
    """The real thing: the disk fills up while training, and what was measured until then is evaluated."""

    class Large(Plain):
        def __init__(self):
            super().__init__()
            self.net.append(torch.nn.Linear(4, 4))
            self.wide = torch.nn.Parameter(torch.zeros(10_000))

        def compute_loss(self, batch):
            return super().compute_loss(batch) + (self.wide - 1).square().mean()

    class Fill(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:  # another program takes most of the rest of the disk
                monitor._session.measurement.rows.store.wait()  # what is free would be less when it is taken
                (small_disk / "ballast").write_bytes(
                    b"0" * (shutil.disk_usage(small_disk).free - 60_000)
                )

    monitor = LandscapeMonitor(every_n_steps=1, dirpath=small_disk)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, Fill()],
    )
    trainer.fit(Large(), loader())
    assert trainer.global_step == 20
    assert len(monitor.table) >= 2
    assert monitor.summary["run"]["stride"] > 1
    assert all(probe.evaluated for probe in monitor.table)
    assert monitor.summary["run"]["fidelity"]["exact"]


def test_tensors_are_written_atomically(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"x": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_is_read_ahead_is_what_is_there(tmp_path):
    store = ProbeStore(tmp_path / "store", BUDGET)
    for step in range(4):
        store.write(step, kept(step, size=400_000))
    for step in range(4):
        if step != 2:  # one that nobody had announced
            store.expect(step)
        x, g = store.iterate(step), store.gradient(step)
        if step == 1:
            store.expect(3)  # and one that is not asked for next
        for name, value in kept(step, size=400_000).parameters.items():
            assert torch.equal(x[name], value)
        assert torch.equal(g.raw["w"], kept(step, size=400_000).gradient.raw["w"])
        assert g.factor == 1 / 3
    shutil.rmtree(store.folder / f"{1:012d}")
    store.expect(1)
    with pytest.raises(NotMeasurable, match="step 1"):
        store.iterate(1)
    store.remove()
    assert not store.folder.exists()
