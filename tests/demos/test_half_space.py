"""Half-space learning: the function, values over all samples, and the demo in miniature."""

import argparse
import csv

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from demos import half_space
from demos.experiment import Options
from lightning_landscape import load


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the folder of a tiny experiment: 30 steps, 3 probes, one seed."""
    out = tmp_path_factory.mktemp("half_space")
    half_space.experiment(Options("small", out, (0,), None, argparse.Namespace()), 30, 10)
    return out


def test_the_samples_are_fixed_and_of_two_classes():
    points, classes = half_space.samples().tensors
    again, _ = half_space.samples().tensors
    assert points.shape == (20, 10)
    assert torch.equal(points, again)
    assert classes.tolist() == [1.0] * 10 + [-1.0] * 10
    other, _ = half_space.samples(1).tensors
    assert not torch.equal(points, other)
    many = torch.cat(
        [half_space.samples(seed).tensors[0] * classes[:, None] for seed in range(500)]
    )
    assert many.mean(0).norm() == pytest.approx(1.0, abs=0.1)
    assert many.var(0).mean() == pytest.approx(2.0, abs=0.1)


def test_the_loss_in_closed_form():
    points, classes = half_space.samples().tensors
    assert half_space.loss_of(torch.zeros(10, dtype=torch.float64), points, classes) == 0.5
    x = torch.linspace(-1, 1, 10, dtype=torch.float64)
    spelled = sum(
        1 / (1 + torch.exp(b * (a @ x))) for a, b in zip(points, classes, strict=True)
    ) / 20 + 0.5e-5 * x.dot(x)
    assert half_space.loss_of(x, points, classes) == pytest.approx(float(spelled), rel=1e-12)


def test_far_on_the_wrong_side_the_loss_is_one_and_the_gradient_nothing():
    point, label = torch.full((1, 10), 1.0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    x = torch.full((10,), -3.0, dtype=torch.float64, requires_grad=True)
    loss = half_space.loss_of(x, point, label)
    loss.backward()
    assert loss > 0.99
    assert x.grad.norm() < 1e-3


@pytest.mark.parametrize(("kind", "length"), half_space.STARTS.items())
def test_a_start_has_its_length_and_a_direction_of_its_seed(kind, length):
    starts = []
    for seed in (0, 0, 1):
        pl.seed_everything(seed, verbose=False)
        starts.append(half_space.HalfSpace(kind, length).x.detach())
    assert starts[0].norm() == pytest.approx(length)
    assert torch.equal(starts[0], starts[1])
    assert not torch.allclose(starts[0], starts[2])


@pytest.mark.slow
def test_what_is_read_off_all_samples_is_f(tiny):
    run = load(tiny / "far" / "seed-0")
    columns, single = half_space.full_batch(run), half_space.everywhere(run)
    pl.seed_everything(0, verbose=False)
    x = half_space.HalfSpace("far", 5.0).x.detach().requires_grad_()
    end = load_file(run.path / "reference.safetensors")["x"]
    points, classes = half_space.samples().tensors
    value = half_space.loss_of(x, points, classes)
    value.backward()
    assert columns["loss"][0] == pytest.approx(value.item(), rel=1e-12)
    assert columns["reference_loss"][0] == pytest.approx(
        half_space.loss_of(end, points, classes).item(), rel=1e-12
    )
    assert columns["inner_product"][0] == pytest.approx(
        (x.grad @ (x.detach() - end)).item(), rel=1e-9
    )
    assert columns["grad_sq_norm"][0] == pytest.approx(x.grad.square().sum().item(), rel=1e-9)
    for name in ("loss", "reference_loss", "inner_product"):
        assert torch.allclose(single[name].mean(1), columns[name], rtol=1e-9)


@pytest.mark.slow
def test_the_experiment_leaves_a_table_findings_and_a_picture(tiny):
    with (tiny / "half_space.csv").open(encoding="utf-8") as file:
        rows = {row["start"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(half_space.STARTS)
    assert all(row["probes"] == "3" for row in rows.values())
    assert float(rows["near"]["flat_share"]) == 0
    assert float(rows["far"]["flat_share"]) > 0
    assert float(rows["far"]["pl_mu"]) < 1e-6
    for row in rows.values():  # more samples ask more of a pair
        assert float(row["beta_over_rate_all_samples"]) >= float(row["beta_over_rate"]) - 1e-12
    assert (tiny / "half_space.png").stat().st_size > 20_000
    with (tiny / "findings.csv").open(encoding="utf-8") as file:
        assert {row["verdict"] for row in csv.DictReader(file)} <= {"seen", "not seen"}


def test_small_constants_are_not_called_huge():
    row = {
        "flat_loss": None,
        "aiming_theta": 0.1,
        "aiming_theta_f": 0.1,
        "pl_mu": 0.1,
        "pl_mu_f": 0.1,
    }
    row |= {
        "beta_over_rate_all_samples": 0.5,
        "informativeness_all_samples": 0.1,
        "beta_min_tenth_all_samples": 0.0,
    }
    row |= {
        "flat_share": 0.0,
        "aiming_violations": 0.0,
        "aiming_violations_f": 0.0,
        "beta_over_rate": 0.5,
        "informativeness": 0.1,
    }
    verdicts = [finding.verdict for finding in half_space.findings(row, row)]
    assert verdicts == ["not seen"] * 6 + ["seen"]
