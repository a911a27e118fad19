"""One path from a record to a row: after training and right after each step, the rows are the same.

A "final" run evaluates records from the store; with ``reference=`` its last iterate, the same run
evaluates them in memory. No arithmetic differs, so the rows are equal to the last bit.
"""

import pytest
import torch

from lightning_landscape import (
    HeldOut,
    LandscapeMonitor,
    Layers,
    PerSample,
    Secant,
    Segments,
    Store,
    load,
)
from tests.helpers import per_sample
from tests.helpers.modules import CLASSES, FEATURES, Plain, plain_loss
from tests.helpers.settings import SETTINGS, Setting, train


class Manual(Plain):
    """Steps by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.compute_loss(batch)
        self.manual_backward(loss)
        optimizer.step()
        self.losses.append(loss.detach())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(trainer):
    generator = torch.Generator().manual_seed(11)
    return [
        (
            torch.randn(5, FEATURES, generator=generator),
            torch.randint(CLASSES, (5,), generator=generator),
        )
        for _ in range(3)
    ]


def some_slow(names, slow):
    return [pytest.param(n, marks=[pytest.mark.slow] if n in slow else []) for n in names]


def both(setting, folder, **arguments):
    """Return the run evaluated after training, and the one evaluated step by step."""

    def monitored(name, reference):
        train(setting, folder / name, [LandscapeMonitor(reference, every_n_steps=2, **arguments)])
        return load(folder / name / "lightning_logs" / "version_0")

    final = monitored("final", "final")
    return final, monitored("live", final.path / "reference.safetensors")


EXTRAS = {
    "segments": (Setting(Plain), lambda: [Segments(3)], {}),
    "layers": (Setting(Plain), lambda: [Layers()], {}),
    "held_out": (Setting(Plain), lambda: [HeldOut(batches, fixed=2)], {}),
    "secant": (Setting(Plain), lambda: [Secant()], {}),
    "per_sample": (
        Setting(per_sample.Perceptron),
        lambda: [PerSample()],
        {"loss": per_sample.losses},
    ),
    "mixing": (
        Setting(per_sample.Mixing),
        lambda: [PerSample(mixing=True)],
        {"loss": per_sample.losses},
    ),
    "all": (
        SETTINGS["accumulation"],
        lambda: [Segments(2), Layers(), HeldOut(batches), Secant()],
        {},
    ),
}


@pytest.mark.parametrize("name", some_slow(EXTRAS, {"mixing"}))
def test_extras_have_the_same_rows(name, tmp_path):
    setting, extras, arguments = EXTRAS[name]
    final, live = both(setting, tmp_path, extras=extras(), **arguments)
    assert final.tables
    assert list(final.tables) == list(live.tables)
    for table, rows in final.tables.items():
        assert len(rows) > 1
        assert rows == live.tables[table], table
    assert final.table == live.table


TABLES = {
    "plain": (SETTINGS["plain"], {}),
    "accumulation": (SETTINGS["accumulation"], {}),
    "scaler": (SETTINGS["scaler"], {}),
    "teacher": (SETTINGS["target_moves_in_a_window"], {}),
    "recurrent": (SETTINGS["recurrent"], {}),
    "loss": (SETTINGS["plain"], {"loss": plain_loss}),
    "manual": (Setting(Manual), {"loss": plain_loss}),
    "thinned": (SETTINGS["plain"], {"max_probes": 4}),
}
SLOW = {"scaler", "recurrent", "loss", "plain", "teacher"}


@pytest.mark.parametrize("name", some_slow(TABLES, SLOW))
def test_the_tables_are_the_same(name, tmp_path):
    setting, arguments = TABLES[name]
    final, live = both(setting, tmp_path, **arguments)
    assert len(final.table) > 1
    assert all(probe.evaluated for probe in final.table)
    assert final.table == live.table


def test_the_comparison_can_fail(tmp_path):
    """In a lossy store x_k is rounded, and in memory it is not."""
    final, live = both(SETTINGS["plain"], tmp_path, store=Store(dtype="bfloat16"))
    columns = ("loss", "grad_sq_norm", "step_size")
    for one, two in zip(final.table, live.table, strict=True):
        assert [getattr(one, c) for c in columns] == [getattr(two, c) for c in columns]
    assert final.table != live.table


@pytest.mark.slow
def test_the_rows_of_an_extra_do_not_depend_on_the_others(tmp_path):
    alone, _ = both(SETTINGS["plain"], tmp_path / "alone", extras=[Secant()])
    among, _ = both(
        SETTINGS["plain"], tmp_path / "among", extras=[HeldOut(batches), Segments(), Secant()]
    )
    assert alone.tables["secant"] == among.tables["secant"]
    assert alone.table == among.table


def test_the_end_of_a_segment_is_the_row_of_its_probe(tmp_path):
    """Two extras and the table agree where they measure the same."""
    _, live = both(SETTINGS["plain"], tmp_path, extras=[Segments(32), Layers()])
    points = {(point.step, point.fraction): point.loss for point in live.tables["segments"]}
    for probe in live.table:
        assert points[probe.step, 0.0] == probe.loss
        assert points[probe.step, 1.0] == probe.reference_loss
        rows = [row for row in live.tables["layers"] if row.step == probe.step]
        assert sum(row.sq_distance for row in rows) == pytest.approx(probe.sq_distance)
        assert sum(row.grad_sq_norm for row in rows) == pytest.approx(probe.grad_sq_norm)


def test_a_held_out_batch_that_is_the_training_batch_gives_the_row_of_the_probe(tmp_path):
    """The same batch in the same state: the columns of ``held_out.csv`` are those of the probe."""
    seen = []

    class Notes(Plain):
        def compute_loss(self, batch):
            if self.trainer.training and len(seen) < 20:
                seen.append(tuple(part.clone() for part in batch))
            return super().compute_loss(batch)

    every_second = HeldOut(lambda trainer: seen[::2])
    monitor = LandscapeMonitor(every_n_steps=2, extras=[every_second])
    train(Setting(Notes), tmp_path, [monitor])
    run = load(tmp_path / "lightning_logs" / "version_0")
    for probe, row in zip(run.table, run.tables["held_out"], strict=True):
        assert (row.step, row.loss, row.reference_loss) == (
            probe.step,
            probe.loss,
            probe.reference_loss,
        )
        assert row.inner_product == pytest.approx(probe.inner_product, rel=1e-5)
        assert row.grad_sq_norm == pytest.approx(probe.grad_sq_norm, rel=1e-5)
