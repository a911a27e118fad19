"""The demos as a user starts them; LightningCLI from YAML and from the command line."""

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


CLI = ROOT / "demos" / "cli.py"


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Return a function that runs the command line in this process, in a folder with modules."""
    pytest.importorskip("jsonargparse")
    from demos.cli import main

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what LightningCLI calls
    yield lambda *arguments: main([*map(str, arguments)])
    sys.modules.pop("losses", None)


def test_both_protocols_from_yaml(cli, tmp_path):
    configs = ROOT / "demos" / "configs"
    short = (
        "--trainer.max_epochs",
        3,
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.callbacks.figures",
        "false",
    )
    cli("fit", "--config", configs / "one_pass.yaml", *short)
    cli("fit", "--config", configs / "two_passes.yaml", *short)
    one, two = (load(tmp_path / "runs" / "cli" / name) for name in ("one_pass", "two_passes"))
    assert one.summary["run"]["reference"]["sha256"] == two.summary["run"]["reference"]["sha256"]
    assert two.summary["run"]["reference"]["kind"] == "file"
    # Runs with the same seed end at the same point.
    assert two.summary["run"]["reference"]["final_sq_distance"] == 0
    for column in ("step", "loss", "reference_loss", "initial_loss"):
        a, b = one.table.column(column), two.table.column(column)
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def test_from_the_command_line_with_a_loss_by_import_path(cli, tmp_path):
    (tmp_path / "losses.py").write_text(
        "from torch.nn.functional import cross_entropy\n\n\ndef smoothed(module, batch):\n"
        "    return cross_entropy(module.net(batch[0]), batch[1], label_smoothing=0.1)\n"
    )
    cli(
        "fit",
        "--trainer.callbacks+=LandscapeMonitor",
        "--trainer.callbacks.every_n_steps=3",
        "--trainer.callbacks.loss=losses.smoothed",
        "--trainer.callbacks.dirpath=out",
        "--trainer.callbacks.figures=false",
        "--trainer.max_steps=10",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    )
    run = load(tmp_path / "out")
    assert [probe.step for probe in run.table] == [0, 3, 6, 9]
    assert run.summary["run"]["loss"]["source"] == "smoothed"


@pytest.mark.parametrize("given", ["true", pytest.param("mixing", marks=pytest.mark.slow)])
def test_single_samples_from_the_command_line(given, cli, tmp_path):
    (tmp_path / "losses.py").write_text(
        "from torch.nn.functional import cross_entropy\n\n\ndef each(module, batch):\n"
        "    return cross_entropy(module.net(batch[0]), batch[1], reduction='none')\n"
    )
    cli(
        "fit",
        "--trainer.callbacks+=LandscapeMonitor",
        "--trainer.callbacks.every_n_steps=3",
        "--trainer.callbacks.loss=losses.each",
        f"--trainer.callbacks.per_sample={given}",
        "--trainer.callbacks.dirpath=out",
        "--trainer.callbacks.figures=false",
        "--trainer.max_steps=4",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    )
    run = load(tmp_path / "out")
    assert {row.step for row in run.per_sample} == {0, 3}
    assert run.summary["per_sample"]["mixing"] == (False if given == "true" else "allowed")


@pytest.mark.slow
def test_print_config_round_trips(tmp_path):
    printed = python(
        CLI,
        "fit",
        "--config",
        ROOT / "demos/configs/one_pass.yaml",
        "--print_config",
        folder=tmp_path,
    )
    text = printed[printed.index("seed_everything") :]
    for line in (
        "class_path: lightning_landscape.LandscapeMonitor",
        "reference: final",
        "max_probes: 256",
        "store_gib: 4.0",
    ):
        assert line in text
    (tmp_path / "printed.yaml").write_text(text)
    again = python(CLI, "fit", "--config", "printed.yaml", "--print_config", folder=tmp_path)
    assert again[again.index("seed_everything") :] == text


def exits(cli, capsys, status, *arguments):
    """Run a command that prints and exits; return its output."""
    with pytest.raises(SystemExit) as left:
        cli(*arguments)
    assert left.value.code == status
    return "".join(capsys.readouterr())


def test_help_has_a_text_for_every_argument(cli, capsys, monkeypatch):
    import inspect

    from lightning_landscape import LandscapeMonitor

    monkeypatch.setenv("COLUMNS", "200")
    said = exits(
        cli, capsys, 0, "fit", "--trainer.callbacks.help", "lightning_landscape.LandscapeMonitor"
    )
    options = [
        option
        for option in said.split("  --trainer.callbacks.")[1:]
        if not option.startswith("loss.help")
    ]
    assert [option.split()[0] for option in options] == list(
        inspect.signature(LandscapeMonitor.__init__).parameters
    )[1:]
    assert all(len(option.split("(type:")[0].split()) > 5 for option in options)


def test_a_wrong_choice_is_named(cli, capsys):
    arguments = (
        "--trainer.callbacks+=lightning_landscape.LandscapeMonitor",
        "--trainer.callbacks.store_dtype=int4",
    )
    assert "int4" in exits(cli, capsys, 2, "fit", *arguments)


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
