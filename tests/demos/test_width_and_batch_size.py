"""The experiments on width and batch size, with tiny settings, and their networks."""

import csv
import sys
from itertools import pairwise

import pytest
import torch

from demos import cnn_width, mlp_width, resnet_batch_size
from demos.cnn_width import CNN
from demos.resnet import DEPTHS, Residual, resnet
from demos.resnet_batch_size import ResNet
from lightning_landscape import load
from lightning_landscape.reading.load import find_runs
from lightning_landscape.reporting.compare import compare
from tests.demos.test_data import write_cifar

# ----------------------------------------------------------------------------------------- networks


def test_the_cnn_has_the_layers_of_its_arguments():
    net = CNN((3, 32, 32), channels=48, first=16, classes=10).net
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert (
        sum(p.numel() for p in net.parameters())
        == (27 + 1) * 16 + (16 * 9 + 1) * 48 + (48 * 64 + 1) * 10
    )


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_resnets_take_small_images(depth, channels, side):
    net = resnet(depth, channels, classes=7, width=4)
    assert net(torch.randn(2, channels, side, side)).shape == (2, 7)
    # without a bias in front of BatchNorm, and with as many layers as their names say
    longest = [
        m
        for name, m in net.named_modules()
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)) and "shortcut" not in name
    ]
    assert len(longest) == depth
    assert all(m.bias is None for m in net.modules() if isinstance(m, torch.nn.Conv2d))


def test_resnet18_and_34_have_the_parameters_that_are_known_of_them():
    known = {18: 11_173_962, 34: 21_282_122}  # with a 3 × 3 first layer, for CIFAR-10
    assert {depth: sum(p.numel() for p in resnet(depth).parameters()) for depth in known} == known


@pytest.mark.parametrize("after", [True, False])
def test_a_block_adds_its_input(after):
    block = Residual(3, 3, after=after)
    torch.nn.init.zeros_(block.second[1].weight)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(block(x), x.relu() if after else x)
    assert Residual(3, 6, stride=2)(x).shape == (2, 6, 3, 3)


def test_another_depth_is_refused():
    with pytest.raises(ValueError, match="found depth 50; supported are 9, 18, 34"):
        resnet(50)


# -------------------------------------------------------------------------------------- experiments


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(demo, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["demo", *map(str, arguments)])
    demo.main()
    return capsys.readouterr().out


def check(folder, name, said, group_by):
    """The table is compare's, the picture is there, every finding is printed with its verdict."""
    assert (folder / f"{name}.png").stat().st_size > 20_000
    findings = read(folder / "findings.csv")
    for found in findings:
        assert found["verdict"] in ("seen", "not seen", "needs --full")
        assert found["finding"] in said
        assert found["numbers"] in said
    rows = [row for row in read(folder / f"{name}.csv") if row["seed"] == "all"]
    groups = compare([load(path) for path in find_runs(folder)], group_by).groups
    return rows, groups, findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("demo", "name", "parameter"),
    [(mlp_width, "mlp_width", "width"), (cnn_width, "cnn_width", "channels")],
)
def test_width(demo, name, parameter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SMALL", (4, 8, 16))
    monkeypatch.setattr(demo, "SMALL_STEPS", 56)
    said = run(demo, monkeypatch, capsys, "--out", tmp_path)
    folder = tmp_path / name / "small"
    rows, groups, findings = check(folder, name, said, parameter)
    assert [row[parameter] for row in rows] == ["4", "8", "16"]
    for row, group in zip(rows, groups, strict=True):
        assert len(group.runs) == 2
        assert float(row["beta at 1"]) == pytest.approx(group.beta_min[1], rel=1e-5)
        assert float(row["alpha"]) == pytest.approx(group.alpha, rel=1e-5)
    assert len(findings) == 5
    run_ = load(folder / f"{parameter}-8" / "seed-1")
    assert run_.summary["run"]["hparams"]["lr"] == demo.LR
    assert run_.summary["run"]["steps"] == 56
    assert "is there already" in run(demo, monkeypatch, capsys, "--out", tmp_path, "--seeds", 1)


def test_cosine_ends_at_zero(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cnn_width, "SMALL", (4,))
    run(cnn_width, monkeypatch, capsys, "--out", tmp_path, "--epochs", 2, "--seeds", 1)
    found = load(tmp_path / "cnn_width" / "small-2-epochs" / "channels-4" / "seed-0")
    sizes = [probe.step_size for probe in found.table]
    assert sizes[0] == pytest.approx(0.01, rel=1e-3)
    assert all(a >= b for a, b in pairwise(sizes))
    assert sizes[-1] < 0.002


@pytest.mark.slow
def test_batch_size_optimiser_and_depth(tmp_path, monkeypatch, capsys):
    grid = {(9, name): (64, 256) for name in resnet_batch_size.OPTIMIZERS} | {
        (18, "SGD"): (256,),
        (34, "SGD"): (256,),
    }
    monkeypatch.setattr(resnet_batch_size, "SMALL_GRID", grid)
    monkeypatch.setattr(resnet_batch_size, "SMALL_WIDTH", 2)
    said = run(
        resnet_batch_size, monkeypatch, capsys, "--out", tmp_path, "--epochs", 1, "--seeds", 1
    )
    folder = tmp_path / "resnet_batch_size" / "small-1-epochs"
    rows, groups, findings = check(folder, "resnet_batch_size", said, "hparams.optimizer")
    assert {(row["depth"], row["optimizer"], row["batch_size"]) for row in rows} == {
        (str(depth), name, str(size)) for (depth, name), sizes in grid.items() for size in sizes
    }
    assert [group.key for group in groups] == ["Adam", "SGD", "momentum"]
    assert len(findings) == 3 * 5 + 4 + 4
    kinds = {
        path.parents[2].name: load(path).summary["run"]["optimizer"] for path in find_runs(folder)
    }
    assert kinds["resnet9-Adam"]["class"] == "Adam"
    assert [kinds[f"resnet9-{name}"]["defaults"]["momentum"] for name in ("SGD", "momentum")] == [
        0,
        0.9,
    ]


@pytest.mark.parametrize("demo", [mlp_width, cnn_width, resnet_batch_size])
def test_the_full_setting_asks_for_its_files(demo, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="found --full without --root"):
        run(demo, monkeypatch, capsys, "--full")


@pytest.mark.slow
def test_full_settings_read_cifar(tmp_path, monkeypatch, capsys):
    write_cifar(tmp_path, 10, "binary", count=30)
    write_cifar(tmp_path, 100, "python", count=130)
    given = ("--full", "--root", tmp_path, "--out", tmp_path, "--epochs", 1, "--seeds", 1)
    monkeypatch.setattr(cnn_width, "FULL", (2, 4))
    said = run(cnn_width, monkeypatch, capsys, *given)
    assert "needs --full" not in said
    assert load(tmp_path / "cnn_width/full-1-epochs/channels-4/seed-0").summary["run"]["steps"] == 2
    grid = {(9, name): (64,) for name in resnet_batch_size.OPTIMIZERS} | {
        (18, "SGD"): (64,),
        (34, "SGD"): (64,),
    }
    monkeypatch.setattr(resnet_batch_size, "FULL_GRID", grid)
    monkeypatch.setattr(resnet_batch_size, "FULL_WIDTH", 2)
    assert "needs --full" not in run(resnet_batch_size, monkeypatch, capsys, *given)
    found = load(tmp_path / "resnet_batch_size/full-1-epochs/resnet34-SGD/batch-64/seed-0").summary[
        "run"
    ]["hparams"]
    assert (found["classes"], found["channels"]) == (100, 3)


def test_fewer_images_than_a_batch_are_refused(tmp_path, monkeypatch, capsys):
    write_cifar(tmp_path, 10, "binary", count=3)
    with pytest.raises(ValueError, match="found 15 images for batches of 64"):
        run(cnn_width, monkeypatch, capsys, "--root", tmp_path, "--out", tmp_path)


@pytest.mark.parametrize("name", resnet_batch_size.OPTIMIZERS)
def test_the_optimiser_is_a_hyper_parameter(name):
    assert ResNet(9, 2, 1, optimizer=name).hparams["optimizer"] == name
