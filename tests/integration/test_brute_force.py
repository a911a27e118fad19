"""Every column of the table against a recomputation from a full recording of an unmonitored run."""

import math

import pytest
import torch

from lightning_landscape import LandscapeMonitor, load
from tests.helpers.brute_force import BruteForce, Recording, recorded
from tests.helpers.modules import plain_loss
from tests.helpers.settings import SETTINGS, train
from tests.helpers.slow import some


def record(setting, folder):
    """Train without the monitor, recording everything."""
    recording = Recording()
    module_class = recorded(setting.module)
    module_class.recording = recording
    train(setting, folder / "recorded", [recording], module_class)
    return recording


def assert_equals_brute_force(table, recording, setting, *, every=1, loss=None, reference=None):
    brute = BruteForce(recording, setting.module, setting.autocast, loss, reference)
    rows = {probe.step: probe for probe in table}
    measurable = [
        s
        for s in recording.steps
        if s.micro_batches and all(math.isfinite(m.losses[0]) for m in s.micro_batches)
    ]
    first = measurable[0]
    grid = [s for s in measurable if (s.step - first.step) % every == 0]
    assert sorted(rows) == [s.step for s in grid]
    for step in grid:
        expected, probe = brute.row(step, first), rows[step.step]
        for column in ("step", "epoch", "logged_step", "loss", "reference_loss"):
            assert getattr(probe, column) == expected[column], column
        if probe.initial_loss is not None:
            assert probe.initial_loss == expected["initial_loss"]
        size = math.sqrt(expected["grad_sq_norm"] * expected["sq_distance"])
        assert probe.inner_product == pytest.approx(
            expected["inner_product"], abs=setting.rtol * size
        )
        assert probe.grad_sq_norm == pytest.approx(expected["grad_sq_norm"], rel=setting.rtol)
        assert probe.sq_distance == pytest.approx(expected["sq_distance"], rel=1e-6)
        assert probe.step_size == pytest.approx(expected["step_size"], rel=setting.rtol, abs=1e-9)
        moved = (
            sum(
                float((step.before[n].double() - step.after[n].double()).square().sum())
                for n in brute.names
            )
            ** 0.5
        )
        assert probe.step_residual == pytest.approx(
            expected["step_residual"], abs=2 * setting.rtol * moved + 1e-12
        )
    chosen = [probe.initial_loss is not None for probe in table]
    assert 1 <= sum(chosen) <= 32
    assert chosen[0]


@pytest.mark.parametrize("name", some(SETTINGS, every=4))
def test_final(name, tmp_path):
    setting = SETTINGS[name]
    recording = record(setting, tmp_path)
    monitor = LandscapeMonitor(every_n_steps=1)
    train(setting, tmp_path / "run", [monitor])
    assert_equals_brute_force(monitor.table, recording, setting)
    assert monitor.summary["run"]["fidelity"]["exact"] is True
    assert load(tmp_path / "run" / "lightning_logs" / "version_0").table == monitor.table


@pytest.mark.parametrize(
    "name", some([name for name in SETTINGS if not SETTINGS[name].joins_late], every=6)
)
def test_reference_file_gives_the_same_table(name, tmp_path):
    setting = SETTINGS[name]
    one = LandscapeMonitor(every_n_steps=3)
    train(setting, tmp_path / "one", [one])
    reference = (
        load(tmp_path / "one" / "lightning_logs" / "version_0").path / "reference.safetensors"
    )
    two = LandscapeMonitor(reference, every_n_steps=3, prefix="live")
    train(setting, tmp_path / "two", [two])
    assert len(one.table) == len(two.table) > 1
    for a, b in zip(one.table, two.table, strict=True):
        for column in (
            "step",
            "loss",
            "reference_loss",
            "grad_sq_norm",
            "initial_loss",
            "logged_step",
            "step_size",
        ):
            assert getattr(a, column) == getattr(b, column), column
        size = math.sqrt(a.grad_sq_norm * a.sq_distance)
        assert a.inner_product == pytest.approx(b.inner_product, abs=1e-6 * size)
        assert a.sq_distance == pytest.approx(b.sq_distance, rel=1e-6)


@pytest.mark.parametrize(
    "name", some(["accumulation", "plain", "scaler", "bf16_mixed", "clipping"], every=2)
)
@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
def test_loss_of_the_user(name, mode, tmp_path):
    setting = SETTINGS[name]
    recording = record(setting, tmp_path)
    reference, where = None, "final"
    if mode == "file":
        generator = torch.Generator().manual_seed(0)
        reference = {
            n: torch.randn(p.shape, generator=generator) for n, p in recording.last.items()
        }
        where = str(tmp_path / "reference.pt")
        torch.save(reference, where)
    monitor = LandscapeMonitor(where, every_n_steps=1, loss=plain_loss)
    train(setting, tmp_path / "run", [monitor])
    for step in recording.steps:
        for micro in step.micro_batches:
            micro.losses = [0.0]
    assert_equals_brute_force(
        monitor.table, recording, setting, loss=plain_loss, reference=reference
    )


def test_strides_and_thinning_keep_the_right_rows(tmp_path):
    setting = SETTINGS["plain"]
    recording = record(setting, tmp_path)
    monitor = LandscapeMonitor(every_n_steps=1, max_probes=4)
    train(setting, tmp_path / "run", [monitor])
    assert [probe.step for probe in monitor.table] == [0, 8, 16]
    assert_equals_brute_force(monitor.table, recording, setting, every=8)
    assert not (load(tmp_path / "run" / "lightning_logs" / "version_0").path / "store").exists()


@pytest.mark.parametrize(
    "name", ["momentum_encoder", "target_moves_in_a_window", "teacher_and_unfreezing"]
)
def test_a_gradient_is_compared_where_the_loss_was_even_if_a_replay_moves_parameters(
    name, tmp_path
):
    monitor = LandscapeMonitor(every_n_steps=1)
    train(SETTINGS[name], tmp_path, [monitor])
    assert monitor.summary["run"]["fidelity"]["gradient"] == 0


@pytest.mark.parametrize("name", ["bf16_accumulation", "accumulation"])
def test_a_gradient_that_is_taken_again_is_rounded_as_in_training(name, tmp_path):
    """In bfloat16, the gradient of loss / 3 times 3 differs from the gradient of the loss."""
    monitor = LandscapeMonitor(every_n_steps=1)
    train(SETTINGS[name], tmp_path, [monitor], accumulate_grad_batches=3)
    assert monitor.summary["run"]["fidelity"]["gradient"] == 0
