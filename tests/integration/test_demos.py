"""The demos as a user starts them."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_landscape import load

ROOT = Path(__file__).parents[2]


def python(*arguments, folder, status=0):
    """Run Python in a folder; return what it printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "COLUMNS": "200",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def mlp(monkeypatch, tmp_path, capsys):
    """Return a function that runs the main demo in this process, which saves its start-up."""

    def run(*arguments):
        from demos.mlp import main

        monkeypatch.setattr(
            sys,
            "argv",
            [
                "demos/mlp.py",
                *map(str, arguments),
                "--out",
                str(tmp_path / "runs"),
                "--no-pictures",
            ],
        )
        main()
        return capsys.readouterr().out

    return run


def write_idx(path, values):
    """Write an IDX file of bytes, the format of Fashion-MNIST."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.to(torch.uint8).numpy().tobytes())


@pytest.mark.slow
def test_the_demo_prints_what_was_found_and_where(tmp_path):
    said = python(ROOT / "demos" / "mlp.py", "--epochs", 3, folder=tmp_path)
    run = load(tmp_path / "runs" / "mlp-digits" / "version_0")
    assert run.summary["verdict"] in said
    for name in (
        "alpha",
        "beta",
        "rate",
        "neighbourhood",
        "drop",
        "violate",
        "cosine",
        "tensorboard --logdir runs",
    ):
        assert name in said
    assert f"{run.summary['conditions']['alpha_beta']['alpha']:.4g}" in said
    assert (run.path / "overview.png").stat().st_size > 10_000
    assert len(list((run.path / "figures").iterdir())) == 12
    assert run.summary["run"]["hparams"] == {
        "features": 64,
        "width": 64,
        "lr": 0.1,
        "optimizer": "SGD",
    }
    assert "restricted_secant" in said
    assert f"{run.summary['bounds']['sgd']['value']:.4g}" in said


@pytest.mark.parametrize("optimizer", ["SPSMax", "DecSPS", "NGN", "AdaGradNormMax", "Adam"])
def test_the_demo_with_another_optimizer_names_its_theorem(optimizer, mlp, tmp_path):
    mlp("--epochs", 2, "--optimizer", optimizer, "--lr", 0.05)
    bounds = load(tmp_path / "runs" / "mlp-digits" / "version_0").summary["bounds"]
    keys = {
        "SPSMax": "sps_max",
        "DecSPS": "dec_sps",
        "NGN": "ngn",
        "AdaGradNormMax": "adagrad_norm_max",
    }
    assert optimizer == "Adam" or bounds[keys[optimizer]]["applies"], bounds[keys[optimizer]][
        "reason"
    ]
    assert bounds["trajectory"]["applies"] is (optimizer != "Adam")


@pytest.mark.slow
def test_the_examples_of_the_paper_are_drawn(tmp_path):
    said = python(ROOT / "demos" / "closed_forms.py", folder=tmp_path)
    assert said.count("Example") == 4
    assert (tmp_path / "runs" / "closed_forms.png").stat().st_size > 50_000


def test_the_demo_on_idx_files(mlp, tmp_path):
    generator = torch.Generator().manual_seed(0)
    write_idx(
        tmp_path / "train-images-idx3-ubyte.gz",
        torch.randint(256, (320, 28, 28), generator=generator),
    )
    write_idx(
        tmp_path / "train-labels-idx1-ubyte.gz", torch.randint(10, (320,), generator=generator)
    )
    assert "2 over 20 steps" in mlp("--data", "fashion-mnist", "--root", tmp_path, "--epochs", 4)


def test_idx_files_are_read_as_written_and_others_refused(tmp_path):
    from demos.data import fashion_mnist, read_idx

    values = torch.arange(24).reshape(2, 3, 4)
    write_idx(tmp_path / "x.gz", values)
    assert torch.equal(read_idx(tmp_path / "x.gz"), values.to(torch.uint8))
    (tmp_path / "text").write_bytes(b"no idx file")
    with pytest.raises(ValueError, match="found no IDX file"):
        read_idx(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion_mnist(tmp_path)


def test_fashion_mnist_without_a_folder_says_what_to_do(mlp, capsys):
    with pytest.raises(SystemExit, match="2"):
        mlp("--data", "fashion-mnist")
    assert "needs --root DIR" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_prints_its_number(tmp_path):
    said = python(ROOT / "benchmarks" / "unprobed_step.py", folder=tmp_path)
    assert "an unprobed step in the callback" in said
    assert float(said.split("callback: ")[1].split()[0]) > 0


def test_the_summary_is_strict_json_with_the_keys_of_the_contract(mlp, tmp_path):
    mlp("--epochs", 2)
    text = (load(tmp_path / "runs" / "mlp-digits" / "version_0").path / "summary.json").read_text()

    def refuse(constant):
        raise ValueError(constant)

    summary = json.loads(text, parse_constant=refuse)
    assert summary["schema"] == 1
    run = {
        "complete",
        "stopped_by",
        "first_step",
        "steps",
        "probes",
        "stride",
        "dropped",
        "reference",
        "loss",
        "drop",
    }
    run |= {
        "parameters",
        "optimizer",
        "hparams",
        "precision",
        "world_size",
        "accumulate_grad_batches",
        "fidelity",
    }
    assert set(summary["run"]) >= run | {"overhead", "store", "versions"}
    assert set(summary["run"]["dropped"]) == {"non_finite", "no_loss", "unevaluable"}
    assert set(summary["run"]["reference"]) == {
        "kind",
        "path",
        "sha256",
        "step",
        "final_sq_distance",
    }
    assert set(summary["run"]["loss"]) == {
        "source",
        "infimum",
        "training_mode",
        "batch_norm",
        "dropout",
    }
    assert set(summary["run"]["drop"]) >= {"value", "standard_error", "rows"}
    assert set(summary["run"]["fidelity"]) >= {"steps", "max_abs", "exact"}
    keys = (
        "alpha beta rate attained interpolation_error interpolation_error_se neighbourhood "
        "informativeness informative"
    )
    assert set(summary["conditions"]["alpha_beta"]) >= {
        *keys.split(),
        "violated",
        "degenerate_rows",
        "vertices",
        "coverage",
    }
    assert set(summary["conditions"]["alpha_beta"]["coverage"]) == {"0.99", "0.95"}
    assert len(summary["conditions"]["alpha_beta"]["windows"]) == 4
    assert isinstance(summary["verdict"], str)
