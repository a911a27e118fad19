"""Theorems against runs: every method's own theorem applies; rows agree with summaries."""

import argparse
import csv

import pytest
import torch

from demos import optimizers
from demos.experiment import Options


def chosen(folder):
    return Options("small", folder, (0,), None, argparse.Namespace())


@pytest.mark.parametrize(
    "method", [name for name in optimizers.METHODS if not name.startswith("Adam")]
)
def test_every_method_meets_the_assumptions_of_its_theorem(method, tmp_path):
    run = optimizers.train(tmp_path / "run", method, "logistic regression", 0, 2)
    rows = optimizers.rows_of(method, "logistic regression", 0, run)
    assert rows[0]["theorem"] == optimizers.METHODS[method][0]
    for row in rows:
        assert row["verdict"] in ("informative", "vacuous"), row["reason"]
        assert row["bound"] >= row["best_gap"]
        assert (row["verdict"] == "informative") is (row["bound"] < row["drop"])


@pytest.mark.slow
def test_the_experiment_with_a_control_leaves_table_findings_and_picture(tmp_path):
    optimizers.experiment(chosen(tmp_path), 2, ("SGD", "Adam (control)"))
    with (tmp_path / "optimizers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        assert (row["verdict"] == "does not apply") is row["method"].startswith("Adam")
        assert row["reason"] or row["status"] == "proved"
    with (tmp_path / "findings.csv").open(encoding="utf-8") as file:
        verdicts = {row["finding"]: row["verdict"] for row in csv.DictReader(file)}
    assert verdicts["no bound is below what its run did"] == "seen"
    assert verdicts["no theorem is about Adam"] == "seen"
    assert (tmp_path / "optimizers.png").stat().st_size > 20_000


def test_a_bound_below_its_run_would_be_found():
    row = {
        "method": "SGD",
        "model": "MLP",
        "seed": 0,
        "theorem": "sgd",
        "verdict": "informative",
        "bound": 0.1,
        "best_gap": 0.2,
    }
    found = optimizers.findings([{**row, "bound_over_drop": 0.5, "reason": ""}])
    assert found[0].verdict == "not seen"


def test_the_best_gap_is_a_mean_over_neighbours_and_not_one_lucky_batch():
    class Rows:
        table = property(lambda self: self)
        evaluated = property(lambda self: self)

        def column(self, name):
            return (
                torch.tensor([3.0, 1.0, 2.0]) if name == "loss" else torch.tensor([1.0, 1.0, 1.0])
            )

    assert optimizers.best_gap(Rows(), width=2) == 0.5


def test_folders_of_methods_differ():
    assert len({optimizers.key_of(method) for method in optimizers.METHODS}) == len(
        optimizers.METHODS
    )
