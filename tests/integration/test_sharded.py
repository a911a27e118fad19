"""Real processes with sharded parameters: FSDP2, tensor parallelism, both on a mesh of two dimensions; the table of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_landscape import LandscapeMonitor, load
from tests.helpers import distributed
from tests.helpers.sharded_script import Sharded
from tests.integration.test_ddp import assert_same_tables

ROOT = Path(__file__).parents[2]
SECONDS = 150


def run(folder, *options, monitor=None, trainer=None):
    """Start a run in processes of its own; return what it printed when it has ended."""
    clean = {key: value for key, value in os.environ.items() if "RANK" not in key and not key.startswith(("MASTER", "PL_"))}
    arguments = ["--monitor", json.dumps(monitor or {}), "--trainer", json.dumps(trainer or {})]
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.sharded_script", str(folder), *options, *arguments],
        cwd=ROOT,
        env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def monitored(folder, *options, **arguments):
    status, output = run(folder, *options, **arguments)
    assert status == 0, output
    return load(folder / "run")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process, nothing sharded, measured in every way."""
    return monitored(tmp_path_factory.mktemp("one"), "--whole", monitor={"secant": True, "exact_sums": True, "per_layer": True})


def assert_ends(folder, processes):
    """Return what each process ended with; nothing was put together from its parts meanwhile."""
    ends = [torch.load(folder / f"end-{rank}.pt") for rank in range(processes)]
    assert [end["gathered"] for end in ends] == [0] * processes
    return ends


MESHES = {
    "fsdp2": ("--data", "2"),
    "fsdp2_layers_alone": ("--data", "2", "--no-root"),
    "tensor_parallel": ("--data", "1", "--tensor", "2"),
    "both": ("--data", "2", "--tensor", "2"),
}


@pytest.mark.parametrize("name", MESHES)
def test_shards_give_the_table_of_one_process(name, one, tmp_path):
    sharded = monitored(tmp_path, *MESHES[name], monitor={"secant": True, "exact_sums": True, "per_layer": True})
    assert_same_tables(sharded.table, one.table)
    found, expected = sharded.summary, one.summary
    assert found["run"]["fidelity"]["exact"] is True
    assert found["run"]["fidelity"]["gradient"] == pytest.approx(0, abs=1e-5)
    assert found["run"]["dropped"] == {"non_finite": 0, "no_loss": 0, "unevaluable": 0}
    assert found["run"]["moved_between"] == 0
    for key in ("step_size", "sq_step", "residual"):
        assert found["run"]["exact_sums"][key] == pytest.approx(expected["run"]["exact_sums"][key], rel=1e-4, abs=1e-6)
    secant, wanted = (s["conditions"]["smoothness"]["secant"]["value"] for s in (found, expected))
    assert secant == pytest.approx(wanted, rel=1e-3)
    for a, b in zip(sharded.layers, one.layers, strict=True):
        assert (a.step, a.layer) == (b.step, b.layer)
        assert a.grad_sq_norm == pytest.approx(b.grad_sq_norm, rel=2e-5, abs=1e-9)
        assert a.sq_distance == pytest.approx(b.sq_distance, rel=2e-5, abs=1e-9)
        assert a.inner_product == pytest.approx(b.inner_product, abs=2e-5)
    for a, b in zip(sharded.segments, one.segments, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert_ends(tmp_path, 4 if name == "both" else 2)
    assert (sharded.path / "reference" / ".metadata").is_file()


def test_fsdp2_has_the_table_of_ddp(tmp_path):
    sharded = monitored(tmp_path / "sharded", "--data", "2", trainer={"accumulate_grad_batches": 2})
    distributed.train(
        tmp_path / "ddp", [LandscapeMonitor(every_n_steps=1)], module=Sharded, accumulate_grad_batches=2, strategy="ddp_fork"
    )
    assert_same_tables(sharded.table, load(tmp_path / "ddp" / "run").table)


@pytest.mark.parametrize("mesh", ["fsdp2", "both"])
def test_training_is_the_same_with_and_without_the_monitor(mesh, tmp_path):
    options = (*MESHES[mesh], "--module", "Dropout")
    status, output = run(tmp_path / "without", *options, "--without")
    assert status == 0, output
    with_monitor = monitored(tmp_path / "with", *options, monitor={"secant": True})
    assert with_monitor.summary["run"]["fidelity"]["exact"] is True
    processes = 4 if mesh == "both" else 2
    for a, b in zip(assert_ends(tmp_path / "without", processes), assert_ends(tmp_path / "with", processes), strict=True):
        assert torch.equal(a["random"], b["random"])
        assert list(a["module"]) == list(b["module"])
        assert all(torch.equal(a["module"][name], b["module"][name]) for name in a["module"])


def test_a_loss_of_the_user(tmp_path):
    one = monitored(tmp_path / "one", "--whole", "--loss")
    assert_same_tables(monitored(tmp_path / "two", "--loss").table, one.table)


@pytest.mark.parametrize("mesh", ["fsdp2", "both"])
def test_references_from_shards_and_from_one_file(mesh, one, tmp_path):
    """A folder written by two processes is read by four, and by one; a whole file is read by all."""
    first = monitored(tmp_path / "first", *MESHES["fsdp2"])
    for kind, path in (("folder", first.path / "reference"), ("file", one.path / "reference.safetensors")):
        live = monitored(tmp_path / kind, *MESHES[mesh], monitor={"reference": str(path)})
        assert_same_tables(live.table, one.table)
        assert live.summary["run"]["reference"]["kind"] == "file"
    alone = monitored(tmp_path / "alone", "--whole", monitor={"reference": str(first.path / "reference")})
    assert_same_tables(alone.table, one.table)
    checkpoint = next((tmp_path / "first" / "checkpoints").glob("*step=18.ckpt"), None)
    if checkpoint is not None:
        again = monitored(tmp_path / "again", *MESHES[mesh], monitor={"reference": str(checkpoint)})
        assert_same_tables(again.table, one.table)


def test_each_process_stores_its_part(tmp_path):
    kept = monitored(tmp_path, monitor={"keep_store": True}, trainer={"max_steps": 3})
    from safetensors.torch import load_file

    for step in range(3):
        parts = [
            load_file(kept.path / "store" / part / f"{step:012d}" / "parameters.safetensors") for part in ("", "process-1")
        ]
        assert parts[0]["net.0.weight"].shape == (8, distributed.FEATURES)
        assert parts[1]["net.0.weight"].shape == (7, distributed.FEATURES)
        assert (kept.path / "store" / "process-1" / f"{step:012d}" / "gradient.safetensors").is_file()


def test_resume_mid_epoch_and_on_another_number_of_processes(tmp_path):
    whole = monitored(tmp_path / "whole", *MESHES["fsdp2"])
    first = monitored(tmp_path / "first", *MESHES["fsdp2"], monitor={"keep_store": True}, trainer={"max_steps": 12})
    checkpoint = str(tmp_path / "first" / "checkpoints" / "epoch=1-step=10.ckpt")
    again = monitored(tmp_path / "again", *MESHES["fsdp2"], "--resume", checkpoint)
    assert [probe.step for probe in again.table][:10] == list(range(10))
    for old, new in zip(first.table[:10], again.table[:10], strict=True):
        assert (old.loss, old.grad_sq_norm) == (new.loss, new.grad_sq_norm)
    assert len(again.table) >= len(whole.table) - 1
    assert again.summary["run"]["fidelity"]["exact"] is True
    status, output = run(tmp_path / "alone", *MESHES["both"], "--resume", checkpoint)
    assert status != 0
    assert "checkpoint of a run with 2 processes, and 4 now" in output
