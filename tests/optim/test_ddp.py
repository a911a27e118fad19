"""Two processes: all ranks take the step of one process on the batches of both, or none does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.optim import ddp_script
from tests.optim.problems import METHODS

ROOT = Path(__file__).parents[2]
# One worker starts the two processes for all tests here.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("optimizers in two processes")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder with the results of both ranks."""
    path = tmp_path_factory.mktemp("ddp")
    # Drop variables on ranks that an outer launcher or another test has set.
    clean = {
        key: value
        for key, value in os.environ.items()
        if "RANK" not in key and not key.startswith(("MASTER", "PL_"))
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.optim.ddp_script", str(path)],
        cwd=ROOT,
        env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return path


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(ddp_script.RANKS)]


def same(one, other):
    return one["steps"] == other["steps"] and all(
        map(torch.equal, one["parameters"], other["parameters"])
    )


def equals_one_process(result, name):
    alone = ddp_script.train(name, 0, 1)
    assert result["steps"] == pytest.approx(alone["steps"], rel=1e-8)
    for p, q in zip(result["parameters"], alone["parameters"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_are_one_process_on_both_batches(ranks, name):
    first, second = (results["trained"][name] for results in ranks)
    assert same(first, second)
    assert len(set(first["steps"])) > 3
    equals_one_process(first, name)


@pytest.mark.parametrize("name", ["DecSPS", "AdaGradNormMax"])
def test_and_so_it_is_in_lightning(folder, name):
    first, second = (
        torch.load(folder / f"lightning-{name}-{rank}.pt") for rank in range(ddp_script.RANKS)
    )
    assert same(first, second)
    equals_one_process(first, name)


@pytest.mark.parametrize("loss", ["nan", "inf"])
@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(ranks, name, loss):
    first, second = (results[loss][name] for results in ranks)
    assert same(first, second)
    whole = ranks[0]["trained"][name]
    assert first["steps"][:5] == whole["steps"][:5]
    assert first["steps"][5] == first["steps"][4]
    assert not same(first, whole)
    assert all(bool(p.isfinite().all()) for p in first["parameters"])


@pytest.mark.parametrize("name", METHODS)
def test_nothing_to_do_on_one_rank_skips_the_step_on_all_and_nobody_waits(ranks, name):
    assert [results["nothing"][name] for results in ranks] == [(1.0, None)] * 2


@pytest.mark.parametrize("name", METHODS)
def test_ranks_with_different_gradients_are_refused(ranks, name):
    for results in ranks:
        error, value, state = results["shards"][name]
        assert error.startswith(
            "RuntimeError: found squared gradient norms [1.0, 4.0] on the ranks"
        )
        assert (value, state) == (1.0, None)


def test_the_mean_loss_is_what_may_not_be_below_the_infimum(ranks):
    for results in ranks:
        assert results["below"][0].startswith(
            "ValueError: NGN found a loss of -0.5, below loss_infimum=0.0"
        )
        assert results["one_below"] is None


def test_a_rank_that_forgot_its_loss_says_so_and_the_other_skips(ranks):
    assert ranks[0]["forgotten"] is None
    assert ranks[1]["forgotten"][0].startswith("RuntimeError: NGN computes its step from the loss")
