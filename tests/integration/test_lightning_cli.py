"""LightningCLI: the monitor and its extras from YAML and from the command line."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_landscape import HeldOut, LandscapeMonitor, PerSample, Report, Store, load

pytest.importorskip("jsonargparse")

ROOT = Path(__file__).parents[2]
CLI = ROOT / "demos" / "cli.py"
MONITOR = "--trainer.callbacks+=lightning_landscape.LandscapeMonitor"
QUICK = (
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_checkpointing=false",
)
YAML = """
trainer:
  callbacks:
    - class_path: lightning_landscape.LandscapeMonitor
      init_args:
        every_n_steps: 2
        dirpath: out
"""


def program(*arguments, folder):
    """Run the command line as a program; return its status and what it printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "JSONARGPARSE_DEPRECATION_WARNINGS": "off",
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
    }
    command = [sys.executable, str(CLI), "fit", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def cli(monkeypatch, tmp_path, capsys):
    """Return a function that runs the command line in this process; modules may be in tmp_path.

    It returns the status and what was printed.
    """
    from demos.cli import main

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])  # LightningCLI warns of other arguments there
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what LightningCLI calls

    def run(*arguments):
        status = 0
        try:
            main(["fit", *map(str, arguments)])
        except SystemExit as end:
            status = end.code
        return status, "".join(capsys.readouterr())

    yield run
    sys.modules.pop("losses", None)


def config(folder, more=""):
    """Write a configuration with further arguments of the monitor; return its path."""
    path = folder / "config.yaml"
    path.write_text(YAML + "".join(f"        {line}\n" for line in more.splitlines()))
    return path


def value_of(printed, name):
    """Return the value of a key of a printed configuration, as text."""
    (line,) = [line for line in printed.splitlines() if line.strip().startswith(f"{name}: ")]
    return line.split(": ", 1)[1]


# ---------------------------------------------------------------------------------------- programs


@pytest.mark.slow
def test_help_has_a_text_for_every_argument(tmp_path):
    name = "lightning_landscape.LandscapeMonitor"
    status, said = program("--trainer.callbacks.help", name, folder=tmp_path)
    assert status == 0, said
    found = {}
    for option in said.split("  --trainer.callbacks.")[1:]:
        found[option.split()[0].rstrip(",")] = option.split("(type:")[0]
    for nested in ("store", "report"):
        fields = inspect.signature(LandscapeMonitor).parameters[nested].default
        assert {f"{nested}.{field}" for field in vars(fields)} <= set(found)
    names = {option.split(".")[0] for option in found}
    assert names == set(inspect.signature(LandscapeMonitor).parameters)
    texts = [text for option, text in found.items() if not option.endswith(".help")]
    assert all(len(text.split()) > 5 for text in texts)
    for extra in ("HeldOut", "Layers", "PerSample", "Secant", "Segments"):
        assert f"lightning_landscape.{extra}" in said


@pytest.mark.slow
def test_overrides_reach_nested_settings_and_an_extra_in_the_list(tmp_path):
    overrides = (
        "--trainer.callbacks.store.gib=6",
        "--trainer.callbacks.extras+=lightning_landscape.HeldOut",
        "--trainer.callbacks.extras.fixed=3",
        "--print_config",
    )
    status, printed = program(MONITOR, *overrides, folder=tmp_path)
    assert status == 0, printed
    assert "class_path: lightning_landscape.LandscapeMonitor" in printed
    assert "class_path: lightning_landscape.HeldOut" in printed
    shown = {name: value_of(printed, name) for name in ("gib", "fixed", "reference", "max_probes")}
    assert shown == {"gib": "6.0", "fixed": "3", "reference": "final", "max_probes": "128"}


@pytest.mark.slow
def test_a_run_from_yaml_with_a_list_of_extras_and_nested_settings(tmp_path):
    (tmp_path / "batches.py").write_text(
        "def some(trainer):\n"
        "    return [batch for batch, _ in zip(trainer.train_dataloader, 'ab')]\n"
    )
    extras = """extras:
- class_path: lightning_landscape.HeldOut
  init_args: {source: batches.some, fixed: 2}
- class_path: lightning_landscape.Segments
  init_args: {iterates: 2}
- lightning_landscape.Secant
report: {images: null, windows: 2}
store: {dtype: int8, keep: true}
"""
    path = config(tmp_path, extras)
    status, said = program("--config", path, "--trainer.max_steps=6", *QUICK, folder=tmp_path)
    assert status == 0, said
    run = load(tmp_path / "out")
    assert set(run.tables) == {
        "held_out",
        "fixed_batches",
        "segments",
        "secant",
        "store_accuracy",
    }
    assert [probe.step for probe in run.table] == [0, 2, 4]
    assert {row.batch for row in run.tables["fixed_batches"]} == {0, 1}
    assert len({point.step for point in run.tables["segments"]}) == 2
    assert run.summary["run"]["store"]["dtype"] == "int8"
    assert len(run.summary["conditions"]["alpha_beta"]["windows"]) == 2
    assert (run.path / "store").is_dir()
    assert not (run.path / "figures").exists()


@pytest.mark.slow
def test_print_config_round_trips(tmp_path):
    extras = "extras:\n- class_path: lightning_landscape.HeldOut\n  init_args: {fixed: 2}"
    text = printed_by(tmp_path, config(tmp_path, extras))
    for line in ("class_path: lightning_landscape.HeldOut", "reference: final", "gib: 16.0"):
        assert line in text
    (tmp_path / "printed.yaml").write_text(text)
    assert printed_by(tmp_path, tmp_path / "printed.yaml") == text


def printed_by(folder, path):
    status, printed = program("--config", path, "--print_config", folder=folder)
    assert status == 0, printed
    return printed[printed.index("seed_everything") :]


# --------------------------------------------------------------------------------- in this process


def test_both_protocols_from_yaml(cli, tmp_path):
    configs = ROOT / "demos" / "configs"
    short = (
        "--trainer.max_epochs=3",
        "--trainer.enable_progress_bar=false",
        "--trainer.callbacks.report={images: null}",
    )
    for name in ("one_pass", "two_passes"):
        assert cli("--config", configs / f"{name}.yaml", *short)[0] == 0
    one, two = (load(tmp_path / "runs" / "cli" / name) for name in ("one_pass", "two_passes"))
    reference = two.summary["run"]["reference"]
    assert one.summary["run"]["reference"]["sha256"] == reference["sha256"]
    assert reference["kind"] == "file"
    assert reference["final_sq_distance"] == 0  # the same seed ends at the same point
    for column in ("step", "loss", "reference_loss", "initial_loss"):
        a, b = one.table.column(column), two.table.column(column)
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def test_a_loss_by_import_path(cli, tmp_path):
    (tmp_path / "losses.py").write_text(
        "from torch.nn.functional import cross_entropy\n\n\ndef smoothed(module, batch):\n"
        "    return cross_entropy(module.net(batch[0]), batch[1], label_smoothing=0.1)\n"
    )
    status, said = cli(
        "--trainer.callbacks+=LandscapeMonitor",
        "--trainer.callbacks.every_n_steps=3",
        "--trainer.callbacks.loss=losses.smoothed",
        "--trainer.callbacks.dirpath=out",
        "--trainer.max_steps=10",
        *QUICK,
    )
    assert status == 0, said
    run = load(tmp_path / "out")
    assert [probe.step for probe in run.table] == [0, 3, 6, 9]
    assert run.summary["run"]["loss"]["source"] == "smoothed"


@pytest.mark.parametrize("mixing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_single_samples(mixing, cli, tmp_path):
    (tmp_path / "losses.py").write_text(
        "from torch.nn.functional import cross_entropy\n\n\ndef each(module, batch):\n"
        "    return cross_entropy(module.net(batch[0]), batch[1], reduction='none')\n"
    )
    status, said = cli(
        "--trainer.callbacks+=LandscapeMonitor",
        "--trainer.callbacks.every_n_steps=3",
        "--trainer.callbacks.loss=losses.each",
        "--trainer.callbacks.extras+=PerSample",
        f"--trainer.callbacks.extras.mixing={str(mixing).lower()}",
        "--trainer.callbacks.dirpath=out",
        "--trainer.max_steps=4",
        *QUICK,
    )
    assert status == 0, said
    run = load(tmp_path / "out")
    assert {row.step for row in run.tables["per_sample"]} == {0, 3}
    assert run.summary["per_sample"]["mixing"] == ("allowed" if mixing else False)


def test_short_names_of_extras_one_after_the_other(cli):
    status, printed = cli(
        "--trainer.callbacks+=LandscapeMonitor",
        "--trainer.callbacks.extras+=Layers",
        "--trainer.callbacks.extras+=Segments",
        "--trainer.callbacks.extras.iterates=2",
        "--print_config",
    )
    assert status == 0
    assert printed.index("lightning_landscape.Layers") < printed.index("iterates: 2")


# ------------------------------------------------------------------------------------ wrong values


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('store: {keep: "maybe"}', ['"store.keep"', "Got value: maybe"]),
        ("store: {dtype: int4}", ['"store.dtype"', "Got value: int4"]),
        ("store: {gib: 0}", ["store=Store(gib=0", "supported are sizes above 0, in GiB"]),
        ("store: {disk: 3}", ["disk"]),
        ("report: {images: some}", ['"report.images"', "some"]),
        ("extras: [3]", ['"extras"', "Got value: 3"]),
        ("extras: [lightning.pytorch.callbacks.Timer]", ["Timer"]),
        (
            "extras:\n- class_path: lightning_landscape.HeldOut\n  init_args: {fixed: -1}",
            ["HeldOut(fixed=-1)", "whole numbers of 0 or more"],
        ),
        (
            "extras: [lightning_landscape.Layers, lightning_landscape.Layers]",
            ["the table 'layers' more than once"],
        ),
        ("every_n_steps: 0", ["LandscapeMonitor(every_n_steps=0)"]),
        ("segments: 4", ["segments"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(more, said, cli, tmp_path):
    arguments = ("--config", config(tmp_path, more), "--trainer.max_steps=1", *QUICK)
    try:
        status, found = cli(*arguments)
    except ValueError as error:  # of a value of the right type, outside its range
        status, found = 2, str(error)
    assert status == 2
    assert all(words in found for words in said), found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Store(keep="false"), r"store=Store\(keep='false'\): supported are True and False"),
        (lambda: Report(layout="no"), r"report=Report\(layout='no'\): supported are True and"),
        (lambda: LandscapeMonitor(extras=[3]), r"LandscapeMonitor\(extras=\[3\]\): supported are"),
        (lambda: PerSample(mixing="no"), r"PerSample\(mixing='no'\): supported are True and False"),
        (lambda: HeldOut("test"), r"HeldOut\(source='test'\): supported are 'val' and functions"),
    ],
)
def test_in_python_words_are_not_taken_for_true(make, said):
    with pytest.raises(MisconfigurationException, match=said):
        make()
