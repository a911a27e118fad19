"""What the experiments share."""

import csv
import sys

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from demos.experiment import Finding, conclude, measured, options, seen
from lightning_landscape.reading.load import find_runs
from tests.helpers.modules import Plain, loader


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    def choose(*arguments, **settings):
        monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path), *arguments])
        return options("demo", "What it shows.", **{"small_seeds": 2, "full_seeds": 4, **settings})

    return choose


def test_the_settings_are_told_apart(chosen, tmp_path):
    small, full = chosen(), chosen("--full")
    assert (small.out, full.out) == (tmp_path / "demo" / "small", tmp_path / "demo" / "full")
    assert (small.seeds, full.seeds) == ((0, 1), (0, 1, 2, 3))
    assert (small.pick(8, 4096), full.pick(8, 4096)) == (8, 4096)
    assert chosen("--seeds", "3").seeds == (0, 1, 2)
    between = chosen("--larger", larger_seeds=3)
    assert (between.out, between.seeds, between.full) == (
        tmp_path / "demo" / "larger",
        (0, 1, 2),
        False,
    )
    assert (between.pick(8, 4096, 64), between.pick(8, 4096)) == (64, 8)
    with pytest.raises(SystemExit):
        chosen("--larger")
    more = chosen("--lr", "0.5", add=lambda parser: parser.add_argument("--lr", type=float))
    assert more.arguments.lr == 0.5


def test_a_run_that_is_there_is_read_back_and_another_seed_is_another_run(tmp_path, capsys):
    def run(seed):
        return measured(
            tmp_path / f"seed-{seed}",
            Plain,
            loader,
            seed=seed,
            max_epochs=1,
            accelerator="cpu",
            monitor={"every_n_steps": 2},
        )

    first = run(0)
    assert "is there already" not in capsys.readouterr().out
    again = run(0)
    assert "is there already" in capsys.readouterr().out
    assert again.table == first.table
    assert len(first.table) == 5
    other = run(1)
    assert other.table != first.table
    assert find_runs(tmp_path) == [first.path, other.path]
    summary = first.path / "summary.json"
    summary.write_text(summary.read_text().replace('"complete": true', '"complete": false'))
    torch.manual_seed(5)  # whatever came before, a run has its own seed
    once_more = run(0)
    assert "stopped before its end" in capsys.readouterr().out
    assert once_more.table == first.table
    assert find_runs(tmp_path) == [first.path, other.path]


def test_other_callbacks_do_not_replace_the_monitor(tmp_path):
    ends = []
    other = LambdaCallback(on_train_end=lambda trainer, module: ends.append(trainer.global_step))
    settings = {"max_epochs": 1, "accelerator": "cpu", "monitor": {"every_n_steps": 2}}
    run = measured(tmp_path / "seed-0", Plain, loader, seed=0, callbacks=[other], **settings)
    assert (ends, len(run.table)) == ([10], 5)


def test_findings_are_printed_and_written(chosen, capsys):
    small = chosen()
    findings = [
        Finding("grows", seen(True), "1 to 2"),
        Finding("falls", seen(False), "1 to 1"),
        Finding("far", seen(None), ""),
    ]
    conclude("demo", small, [{"width": 1, "alpha": 0.5}, {"width": 2, "alpha": 0.25}], findings)
    said = capsys.readouterr().out
    with (small.out / "demo.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"width": "1", "alpha": "0.5"},
            {"width": "2", "alpha": "0.25"},
        ]
    with (small.out / "findings.csv").open(newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == [
            "seen",
            "not seen",
            "needs --full",
        ]
    for finding in findings:
        assert f"{finding.verdict:13s} {finding.finding}" in said
