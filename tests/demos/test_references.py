"""One run against several references: the run is the same, and columns with x_p differ."""

import argparse
import csv

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from demos import references
from demos.data import Images
from demos.experiment import Options
from lightning_landscape import load


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the folder of a tiny experiment: one epoch, one seed."""
    out = tmp_path_factory.mktemp("references")
    references.experiment(Options("small", out, (0,), None, argparse.Namespace()), 1)
    return out


@pytest.mark.slow
def test_the_experiment_leaves_a_row_for_each_reference(tiny):
    with (tiny / "references.csv").open(encoding="utf-8") as file:
        rows = {row["reference"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == references.REFERENCES
    distances = {name: float(row["last_distance"]) for name, row in rows.items()}
    assert distances["another seed"] > 5 * distances["average of iterates"]
    assert (tiny / "references.png").stat().st_size > 20_000
    with (tiny / "findings.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["verdict"] == "seen"


@pytest.mark.slow
def test_a_run_with_another_reference_is_the_same_run(tiny):
    runs = {kind: load(tiny / kind.replace(" ", "-") / "seed-0") for kind in references.REFERENCES}
    assert references.retraced(runs)
    other = load(tiny / "source-other" / f"seed-{references.OTHER}")
    assert not references.retraced({**runs, "other": other})
    digests = {run.summary["run"]["reference"]["sha256"] for run in runs.values()}
    assert len(digests) == 4


def test_the_average_is_that_of_the_second_half(tmp_path):
    seen = []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *unused):
            seen.append(
                {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
            )

    pl.seed_everything(0, verbose=False)
    path = tmp_path / "points" / "average.safetensors"
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[references.Average(path), Record()],
    )
    trainer.fit(references.Judged(64, 4, 0.1, "none"), Images())
    late = seen[len(seen) // 2 :]
    assert len(seen) == 28
    for name, value in load_file(path).items():
        torch.testing.assert_close(value, torch.stack([point[name] for point in late]).mean(0))


def test_smoothing_keeps_constants_and_leaves_out_what_is_unknown():
    assert references._smooth(torch.tensor([2.0, 2.0, torch.nan, 2.0]), 3).tolist() == [2.0] * 4
