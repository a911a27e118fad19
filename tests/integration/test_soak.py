"""The soak itself: some configurations that agree, and what it says where something is wrong."""

import dataclasses
import time

import pytest
from lightning.pytorch import Callback

from lightning_landscape import load
from tests.soak import judging, running, training
from tests.soak.drawing import draw

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")
SEED = 1
ALONE = draw(SEED, 0)
PLAIN = dataclasses.replace(
    ALONE, model="Plain", optimizer="sgd", precision="32-true", strategy="one", accumulate=2, clip=None, loss=False, player=None
)


def test_a_configuration_is_the_same_drawn_alone_and_among_others():
    drawn = [draw(SEED, number) for number in range(60)]
    assert draw(SEED, 17) == drawn[17]
    assert len({str(configuration) for configuration in drawn}) == 60
    for axis in ("model", "optimizer", "precision", "strategy"):
        assert len({getattr(configuration, axis) for configuration in drawn}) > 2


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, running.AGREES),
        ({"model": "Gan", "player": "generator", "optimizer": "sgd and adam", "accumulate": 1}, running.AGREES),
        ({"strategy": "ddp", "reference": "file"}, running.AGREES),
        ({"optimizer": "lbfgs"}, running.REFUSED),
        ({"optimizer": "fused_adam", "precision": "16-mixed", "clip": ("norm", 0.05)}, running.NOT_RUNNABLE),
    ],
)
def test_outcomes(changes, kind, tmp_path):
    outcome = running.judge(dataclasses.replace(PLAIN, **changes), tmp_path)
    assert outcome.kind == kind, outcome.said


class Nudge(Callback):
    """Stands for a monitor that moves training."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        next(pl_module.parameters()).data.add_(1e-6)


def test_training_that_was_moved_is_seen(tmp_path):
    for name, others in (("one", []), ("two", []), ("moved", [Nudge()])):
        training.train(PLAIN, tmp_path, [judging.Ends(tmp_path / name), *others])
    assert judging.same_ends(tmp_path / "one", tmp_path / "two", 1) is None
    assert "module" in judging.same_ends(tmp_path / "one", tmp_path / "moved", 1)


COLUMNS = ("loss", "reference_loss", "initial_loss", "inner_product", "grad_sq_norm", "sq_distance", "step_size")


def test_a_wrong_number_is_seen(tmp_path):
    assert running.judge(PLAIN, tmp_path).kind == running.AGREES
    table = load(tmp_path / "monitor" / "landscape").table
    rows = judging.rows_of(tmp_path / "recorded", 1)
    tolerance = judging.TOLERANCE[PLAIN.precision]
    assert judging.disagreement(table, rows, tolerance, exact=True) is None
    for column in COLUMNS:
        wrong = table.merged([table[0].with_values(**{column: getattr(table[0], column) * 1.001})])
        assert column in judging.disagreement(wrong, rows, tolerance, exact=True)


def test_what_hangs_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "judge", lambda configuration, folder: time.sleep(60))
    child = running.Child(PLAIN, tmp_path / "child", seconds=0.5)
    while (outcome := child.outcome()) is None:
        pass
    assert outcome.kind == running.FAILED
    assert "hangs" in outcome.said
