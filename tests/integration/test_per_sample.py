"""Single samples: brute force by a gradient of each, both ways to differentiate, several processes, what is refused."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from lightning_landscape import LandscapeMonitor, load
from tests.helpers import per_sample as modules
from tests.helpers.brute_force import BruteForce
from tests.helpers.settings import Setting, bf16, fp16, train
from tests.integration.test_brute_force import record

CASES = {
    "perceptron": Setting(modules.Perceptron),
    "convolutions": Setting(modules.Convolutions),
    "transformer": Setting(modules.Transformer),
    "lstm": Setting(modules.LSTM),
    "gru": Setting(modules.GRU),
    "stops_gradients": Setting(modules.StopsGradients),
    "partly_trained": Setting(modules.PartlyTrained),
    "accumulation": Setting(modules.Perceptron, {"accumulate_grad_batches": 2}, batches=5),
    "bf16_mixed": Setting(modules.Perceptron, {"precision": "bf16-mixed"}, autocast=bf16, rtol=2e-2),
    "scaler": Setting(modules.Perceptron, scaler=True, autocast=fp16, rtol=3e-3),
    "own_function": Setting(modules.OwnFunction),
}


def run_of(folder):
    return load(folder / "lightning_logs" / "version_0")


def expected_rows(recording, setting, step, reference=None):
    """Return what one gradient a sample gives, micro-batch after micro-batch, by brute force."""
    by_step = {recorded.step: recorded for recorded in recording.steps}
    first, rows = recording.steps[0], []
    for micro in by_step[step].micro_batches:
        alone = replace(by_step[step], micro_batches=[micro])
        for sample in range(len(micro.args[0][1])):
            brute = BruteForce(
                recording, setting.module, setting.autocast, lambda m, b, j=sample: modules.losses(m, b)[j], reference
            )
            rows.append(brute.row(alone, first))
    return rows


def assert_equal_brute_force(run, recording, setting, reference=None):
    about, by_step = run.summary["per_sample"], {}
    for row in run.per_sample:
        by_step.setdefault(row.step, []).append(row)
    assert list(by_step) == [probe.step for probe in run.table]
    for step, rows in by_step.items():
        expected = expected_rows(recording, setting, step, reference)
        assert [row.sample for row in rows] == list(range(len(expected)))
        error = about["error"]["absolute"]
        for row, brute in zip(rows, expected, strict=True):
            for column in ("loss", "reference_loss"):
                assert getattr(row, column) == pytest.approx(brute[column], rel=max(2e-6, setting.rtol / 10), abs=1e-6), column
            size = (brute["grad_sq_norm"] * brute["sq_distance"]) ** 0.5
            assert row.inner_product == pytest.approx(brute["inner_product"], abs=setting.rtol * size + error)


def told_of_differences(expected):
    return (
        pytest.warns(UserWarning, match="takes finite differences, because forward mode failed") if expected else nullcontext()
    )


@pytest.mark.parametrize("name", CASES)
def test_each_sample_is_a_gradient_by_itself(name, tmp_path):
    setting = CASES[name]
    recording = record(setting, tmp_path)
    monitor = LandscapeMonitor(every_n_steps=3, loss=modules.losses, per_sample=True)
    with told_of_differences(name == "own_function"):
        train(setting, tmp_path / "run", [monitor], epochs=1)
    recording.last = recording.steps[len(recording.steps) // 2].before  # that of one epoch
    run = run_of(tmp_path / "run")
    assert run.summary["per_sample"]["method"] == ("finite difference" if name == "own_function" else "forward mode")
    assert_equal_brute_force(run, recording, setting)
