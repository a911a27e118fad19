"""Sharded parameters in several processes: FSDP2, tensor parallelism, both on a 2-D mesh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_landscape import LandscapeMonitor, load
from lightning_landscape.store.encoding import decode
from lightning_landscape.store.tensor_files import read_tensors
from tests.helpers import distributed
from tests.helpers.sharded_script import Sharded
from tests.integration.test_ddp import assert_same_tables
from tests.integration.test_held_out import assert_same_held_out
from tests.integration.test_store_dtype import assert_within_what_is_said

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("sharded"),
]  # one worker makes the runs for all tests here
ROOT = Path(__file__).parents[2]
SECONDS = 200
EVERYTHING = {"every_step": True, "extras": ["Segments", "Secant", "Layers", "HeldOut"]}
SAMPLES = {"monitor": {"extras": ["PerSample"]}}
KEPT = {"monitor": {"store": {"keep": True}}, "trainer": {"max_steps": 12}}
ERRORS = {
    "read_in_one": {
        "function": "store.store.RecordStore.read",
        "rank": 1,
        "call": 3,
        "error": "RuntimeError",
    },
    "thaw_in_one": {
        "function": "store.freezing.thaw",
        "rank": 1,
        "call": 12,
        "error": "KeyError",
    },
    "thaw_in_the_first": {
        "function": "store.freezing.thaw",
        "rank": 0,
        "call": 30,
        "error": "OSError",
    },
    "write_in_one": {
        "function": "store.store.RecordStore.write",
        "rank": 1,
        "call": 4,
        "error": "KeyError",
    },
}
CODED = ("bfloat16", "int8")
MESHES = {"fsdp2": (2, 1), "tensor_parallel": (1, 2), "both": (2, 2)}


def run(folder, data, tensor, jobs):
    """Train several times in the same processes; return the folder with a subfolder per job."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if "RANK" not in key and not key.startswith(("MASTER", "PL_"))
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.helpers.sharded_script",
            str(folder),
            str(data),
            str(tensor),
            json.dumps(jobs),
        ],
        cwd=ROOT,
        env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with runs on every mesh; runs share processes, which start slowly."""
    folder = tmp_path_factory.mktemp("sharded")
    run(
        folder / "one",
        0,
        0,
        {"everything": {"monitor": EVERYTHING}, "loss": {"loss": True}, "samples": SAMPLES},
    )
    file = str(folder / "one" / "everything" / "run" / "landscape" / "reference.safetensors")
    shards = str(folder / "fsdp2" / "everything" / "run" / "landscape" / "reference")
    checkpoint = str(folder / "fsdp2" / "kept" / "checkpoints" / "epoch=1-step=10.ckpt")
    common = {
        "everything": {"monitor": EVERYTHING},
        "without": {"module": "Dropout", "without": True},
        "with": {"module": "Dropout", "monitor": {"extras": ["Secant"]}},
        "file": {"monitor": {"reference": file}},
        "shards": {"monitor": {"reference": shards}},
        **{codec: {"monitor": {**EVERYTHING, "store": {"dtype": codec}}} for codec in CODED},
        "samples": SAMPLES,
    }
    more = {
        "accumulation": {"trainer": {"accumulate_grad_batches": 2}},
        "loss": {"loss": True},
        "partly": {"module": "PartlySharded"},
        "autograd_in_one": {"module": "NeedsAutogradInOne"},
        **{
            name: {"module": "Dropout", "error": error, "monitor": {"live_epochs": None}}
            for name, error in ERRORS.items()
        },
        "kept": KEPT,
        "again": {"resume": checkpoint},
        "kept_int8": {**KEPT, "monitor": {"store": {"keep": True, "dtype": "int8"}}},
        "again_int8": {
            "resume": checkpoint.replace("kept", "kept_int8"),
            "monitor": {"store": {"dtype": "int8"}},
        },
        "checkpoint": {"monitor": {"reference": checkpoint}},
    }
    run(folder / "fsdp2", 2, 1, common | more)
    run(folder / "both", 2, 2, common | {"again": {"resume": checkpoint}})
    run(
        folder / "tensor_parallel", 1, 2, {name: common[name] for name in ("everything", "samples")}
    )
    run(folder / "alone", 0, 0, {"shards": common["shards"]})
    return folder


def of(folder):
    return load(folder / "run")


@pytest.mark.parametrize("mesh", MESHES)
def test_shards_give_the_table_of_one_process(mesh, runs):
    one, sharded = of(runs / "one" / "everything"), of(runs / mesh / "everything")
    assert_same_tables(sharded.table, one.table)
    found, expected = sharded.summary, one.summary
    assert found["run"]["fidelity"]["exact"] is True
    assert found["run"]["fidelity"]["gradient"] == pytest.approx(0, abs=1e-5)
    assert found["run"]["dropped"] == {"non_finite": 0, "no_loss": 0, "unevaluable": 0}
    assert found["run"]["moved_between"] == 0
    assert found["run"]["reference"]["final_sq_distance"] == 0
    for key in ("step_size", "sq_step", "residual"):
        assert found["run"]["exact_sums"][key] == pytest.approx(
            expected["run"]["exact_sums"][key], rel=1e-4, abs=1e-6
        )
    secant, wanted = (s["conditions"]["smoothness"]["secant"]["value"] for s in (found, expected))
    assert secant == pytest.approx(wanted, rel=1e-3)
    for a, b in zip(sharded.tables["layers"], one.tables["layers"], strict=True):
        assert (a.step, a.layer) == (b.step, b.layer)
        assert a.grad_sq_norm == pytest.approx(b.grad_sq_norm, rel=2e-5, abs=1e-9)
        assert a.sq_distance == pytest.approx(b.sq_distance, rel=2e-5, abs=1e-9)
        assert a.inner_product == pytest.approx(b.inner_product, abs=2e-5)
    for a, b in zip(sharded.tables["segments"], one.tables["segments"], strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert (sharded.path / "reference" / ".metadata").is_file()
    assert not (sharded.path / "store").exists()


@pytest.mark.parametrize("mesh", MESHES)
def test_held_out_batches(mesh, runs):
    assert_same_held_out(of(runs / mesh / "everything"), of(runs / "one" / "everything"))


@pytest.mark.parametrize("mesh", MESHES)
def test_single_samples_by_finite_differences(mesh, runs):
    """Sharded parameters have no forward mode, so each process shifts its part of them."""
    one, sharded = of(runs / "one" / "samples"), of(runs / mesh / "samples")
    about = sharded.summary["per_sample"]
    assert one.summary["per_sample"]["method"] == "forward mode"
    assert about["method"] == "finite difference"
    assert about["fidelity"]["inner_product"] < 1e-3
    for step in (probe.step for probe in one.table):
        here, there = (
            sorted((r.loss, r) for r in run.tables["per_sample"] if r.step == step)
            for run in (one, sharded)
        )
        # The samples of a tensor-parallel group count once.
        assert len(here) == len(there) == 2 * distributed.BATCH
        for (_, a), (_, b) in zip(here, there, strict=True):
            assert a.loss == pytest.approx(b.loss, rel=2e-5)
            assert a.reference_loss == pytest.approx(b.reference_loss, rel=2e-5)
            assert abs(a.inner_product - b.inner_product) <= about["error"]["absolute"] + 1e-6


@pytest.mark.parametrize("mesh", MESHES)
def test_no_parameter_is_put_together(mesh, runs):
    data, tensor = MESHES[mesh]
    for rank in range(data * tensor):
        assert torch.load(runs / mesh / "everything" / f"end-{rank}.pt")["gathered"] == 0


def test_fsdp2_has_the_table_of_ddp(runs, tmp_path):
    monitor = LandscapeMonitor(every_n_steps=1)
    distributed.train(
        tmp_path, [monitor], module=Sharded, accumulate_grad_batches=2, strategy="ddp_fork"
    )
    assert_same_tables(of(runs / "fsdp2" / "accumulation").table, of(tmp_path).table)


def assert_same_end(one, two, rank):
    a, b = (torch.load(folder / f"end-{rank}.pt") for folder in (one, two))
    assert torch.equal(a["random"], b["random"])
    assert list(a["module"]) == list(b["module"])
    assert all(torch.equal(a["module"][name], b["module"][name]) for name in a["module"])


@pytest.mark.parametrize("mesh", ["fsdp2", "both"])
def test_training_is_the_same_with_and_without_the_monitor(mesh, runs):
    folder = runs / mesh
    assert of(folder / "with").summary["run"]["fidelity"]["exact"] is True
    data, tensor = MESHES[mesh]
    for rank in range(data * tensor):
        assert_same_end(folder / "without", folder / "with", rank)


def test_a_loss_of_the_user(runs):
    assert_same_tables(of(runs / "fsdp2" / "loss").table, of(runs / "one" / "loss").table)


@pytest.mark.parametrize(
    "where", ["fsdp2/file", "fsdp2/shards", "both/file", "both/shards", "alone/shards"]
)
def test_a_reference_from_shards_and_from_one_file(where, runs):
    """Four processes, or one, read a folder that two wrote; each reads its part of whole files."""
    live = of(runs / where)
    assert_same_tables(live.table, of(runs / "one" / "everything").table)
    assert live.summary["run"]["reference"]["kind"] == "file"


def test_a_distributed_checkpoint_of_lightning_as_reference(runs):
    run = of(runs / "fsdp2" / "checkpoint")
    at_it = run.table.at_step(10)
    assert at_it.sq_distance == pytest.approx(0, abs=1e-12)
    assert at_it.reference_loss == at_it.loss


def test_parameters_that_nobody_shards_are_refused(runs):
    said = (runs / "fsdp2" / "partly" / "refusal.txt").read_text()
    assert "net.4.weight" in said
    assert "call fully_shard on the modules that hold these parameters" in said


def test_a_loss_that_needs_autograd_in_one_process(runs):
    """All processes evaluate again with autograd, or none: a forward pass waits for the others."""
    found, plain = of(runs / "fsdp2" / "autograd_in_one"), of(runs / "fsdp2" / "everything")
    assert found.summary["run"]["fidelity"]["autograd"] is True
    assert found.summary["run"]["fidelity"]["exact"] is True
    assert_same_tables(found.table, plain.table, rtol=1e-7)


@pytest.mark.parametrize("name", ERRORS)
def test_a_failure_in_one_process_stops_measuring_in_all_and_nothing_else(name, runs):
    assert (runs / "fsdp2" / name / "failed").exists()
    for rank in range(2):
        assert_same_end(runs / "fsdp2" / "without", runs / "fsdp2" / name, rank)
    found = of(runs / "fsdp2" / name)
    assert found.summary["run"]["complete"] is False
    assert "on purpose" in found.summary["run"]["stopped_by"]  # also where the other process failed


def test_each_process_stores_its_part(runs):
    store = of(runs / "fsdp2" / "kept").path / "store"
    for step in range(12):
        parts = [
            load_file(store / part / f"{step:012d}" / "parameters.safetensors")
            for part in ("", "process-1")
        ]
        assert parts[0]["net.0.weight"].shape == (8, distributed.FEATURES)
        assert parts[1]["net.0.weight"].shape == (7, distributed.FEATURES)
        assert (store / "process-1" / f"{step:012d}" / "gradient.safetensors").is_file()


def test_resume_mid_epoch_and_on_another_number_of_processes(runs):
    first, again = of(runs / "fsdp2" / "kept"), of(runs / "fsdp2" / "again")
    assert [probe.step for probe in again.table] == list(range(len(again.table)))
    assert len(again.table) > 10
    for old, new in zip(first.table[:10], again.table[:10], strict=True):
        assert (old.loss, old.grad_sq_norm) == (new.loss, new.grad_sq_norm)
    assert again.summary["run"]["fidelity"]["exact"] is True
    said = (runs / "both" / "again" / "refusal.txt").read_text()
    assert "checkpoint of a run with 2 processes, and 4 now" in said
    assert not (runs / "both" / "again" / "run" / "landscape").exists()


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("mesh", ["fsdp2", "both"])
def test_each_process_encodes_its_part(mesh, codec, runs):
    found, exact = of(runs / mesh / codec), of(runs / mesh / "everything")
    assert_within_what_is_said(found, exact)
    for rank in range(2):
        assert_same_end(runs / mesh / "everything", runs / mesh / codec, rank)
    # The parts sum to the whole for decoded values too.
    for column in ("inner_product", "sq_distance"):
        for probe in found.table:
            layers = [
                getattr(row, column) for row in found.tables["layers"] if row.step == probe.step
            ]
            assert sum(layers) == pytest.approx(getattr(probe, column), rel=1e-4, abs=1e-5), column


def test_resume_with_encoded_parts(runs):
    first, again = of(runs / "fsdp2" / "kept_int8"), of(runs / "fsdp2" / "again_int8")
    assert_within_what_is_said(again, of(runs / "fsdp2" / "again"))
    assert again.summary["run"]["fidelity"]["exact"] is True
    assert again.summary["run"]["dropped"]["unevaluable"] == 0
    store = first.path / "store"

    def parameters(part, step):
        tensors, texts = read_tensors(store / part / f"{step:012d}" / "parameters.safetensors")
        return decode(tensors, texts, lambda base: parameters(part, base))

    parts = [parameters(part, 7) for part in ("", "process-1")]
    assert [part["net.0.weight"].shape[0] for part in parts] == [8, 7]
