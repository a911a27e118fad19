"""Curves before x_p is known, lines to it, and parts of a module, against a slow recomputation."""

import copy
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_landscape import LandscapeMonitor, Layers, Segments, load
from lightning_landscape import functional as F
from lightning_landscape.evaluation.evaluation import Evaluation
from lightning_landscape.extras.layers import LayerRow
from lightning_landscape.extras.segments import SegmentPoint
from tests.helpers.modules import FEATURES, loader
from tests.helpers.slow import some
from tests.integration.test_event_files import curves


class Recorded(pl.LightningModule):
    """A deterministic module that keeps every batch, iterate and gradient of its training."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(FEATURES, 8), torch.nn.Linear(8, 4)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.steps, self.ends = [], []

    def loss_of(self, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(
            self.scale * self.second(torch.tanh(self.first(x))), y
        )

    def training_step(self, batch, batch_idx):
        return self.loss_of(batch)

    def on_before_optimizer_step(self, optimizer):
        x = {name: p.detach().double().clone() for name, p in self.named_parameters()}
        g = {name: p.grad.double().clone() for name, p in self.named_parameters()}
        self.steps.append((x, g))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.steps[-1] += (batch,)

    def on_train_epoch_end(self):
        self.ends.append({name: p.detach().double().clone() for name, p in self.named_parameters()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)

    def loss_at(self, parameters, batch):
        twin = copy.deepcopy(self).double()
        twin.load_state_dict(parameters)
        with torch.no_grad():
            return float(twin.loss_of((batch[0].double(), batch[1])))


def fit(folder, epochs=5, **ours):
    pl.seed_everything(5, verbose=False)
    module = Recorded()
    monitor = LandscapeMonitor(**{"every_n_steps": 3, **ours})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=TensorBoardLogger(folder, name="", version="run"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(module, loader(12))
    return module, monitor


def dot(a, b):
    return sum(float((a[name] * b[name]).sum()) for name in a)


def minus(a, b):
    return {name: a[name] - b[name] for name in a}


@pytest.mark.parametrize(
    "live_epochs", [pytest.param("doubling", marks=pytest.mark.slow), [1, 3], None]
)
def test_provisional_values_are_those_at_the_iterate_of_that_epoch(live_epochs, tmp_path):
    module, monitor = fit(tmp_path, live_epochs=live_epochs, live_losses=True)
    ours, _ = curves(tmp_path / "run")
    expected = {"doubling": [1, 2, 4], None: []}.get(
        live_epochs if live_epochs is None else str(live_epochs), [1, 3]
    )
    for tag in ("alpha", "beta", "rate", "neighbourhood"):
        assert [step for step, _ in ours.get(f"live/alpha_beta/{tag}", [])] == [
            12 * epoch for epoch in expected
        ]
    for epoch, at in zip(expected, range(len(expected)), strict=True):
        there = module.ends[epoch - 1]
        rows = [module.steps[k] for k in range(0, 12 * epoch, 3)]
        columns = {
            "loss": [module.loss_at(x, batch) for x, _, batch in rows],
            "reference_loss": [module.loss_at(there, batch) for _, _, batch in rows],
            "inner_product": [dot(g, minus(x, there)) for x, g, _ in rows],
            "loss_infimum": [0.0] * len(rows),
        }
        columns = {
            name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()
        }
        best = F.best_alpha_beta(**columns)
        for tag in ("alpha", "beta", "rate"):
            assert ours[f"live/alpha_beta/{tag}"][at][1] == pytest.approx(
                float(getattr(best, tag)), rel=1e-3, abs=1e-5
            )
        smallest = min(
            dot(g, minus(x, there)) / dot(minus(x, there), minus(x, there)) for x, g, _ in rows
        )
        assert ours["live/restricted_secant/mu"][at][1] == pytest.approx(smallest, rel=1e-3)
    assert len(monitor.table) == 20  # nothing of the table has changed
    assert all(probe.evaluated for probe in monitor.table)


def norm(a):
    return math.sqrt(dot(a, a))


@pytest.mark.slow
@pytest.mark.parametrize("share", some([0.0, math.inf], every=2))
def test_without_losses_values_come_from_the_copies_as_far_as_there_is_time(
    share, tmp_path, monkeypatch
):
    monkeypatch.setattr("lightning_landscape.fit.live.SHARE", share)
    module, monitor = fit(tmp_path, live_epochs=[1, 3])
    ours, _ = curves(tmp_path / "run")
    assert not any(tag.startswith(("live/alpha_beta", "live/aiming")) for tag in ours)
    for at, epoch in enumerate([1, 3]):
        there = module.ends[epoch - 1]
        steps = range(0, 12 * epoch, 3) if share else [0]  # the first row is always there
        away = [minus(module.steps[k][0], there) for k in steps]
        gradients = [module.steps[k][1] for k in steps]
        products = [dot(g, d) for g, d in zip(gradients, away, strict=True)]
        distances, sizes = [norm(d) for d in away], [norm(g) for g in gradients]
        rows = list(zip(products, distances, sizes, strict=True))
        expected = {
            "inner_product": sum(products) / len(rows),
            "distance": sum(distances) / len(rows),
            "cosine": sum(p / (d * g) for p, d, g in rows) / len(rows),
            "restricted_secant/mu": min(p / d**2 for p, d, _ in rows),
            "error_bound/mu": min(g / d for _, d, g in rows),
            "upper_error_bound/L": max(g / d for _, d, g in rows),
        }
        for tag, value in expected.items():
            assert ours[f"live/{tag}"][at] == (12 * epoch, pytest.approx(value, rel=1e-3)), tag
    assert all(probe.evaluated for probe in monitor.table)


def test_the_table_is_the_same_whatever_is_seen_on_the_way(tmp_path):
    plain = {"live_epochs": None}
    everything = {"extras": [Layers(), Segments(7)], "live_losses": True}
    one, first = fit(tmp_path / "a", **plain)
    other, second = fit(tmp_path / "b", **everything)
    assert first.table == second.table
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert not (tmp_path / "a" / "run" / "landscape" / "segments.csv").exists()
    assert not (tmp_path / "a" / "run" / "landscape" / "layers.csv").exists()


@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
def test_lines_to_the_reference_are_the_losses_there(mode, tmp_path):
    module, monitor = fit(tmp_path, extras=[Segments(4)])
    folder = tmp_path / "run"
    if mode == "file":
        reference = folder / "landscape" / "reference.safetensors"
        folder = tmp_path / "second" / "run"
        module, monitor = fit(folder.parent, extras=[Segments(4)], reference=reference)
    points = load(folder).tables["segments"]
    starts = sorted({point.step for point in points})
    assert starts == [0, 24, 48]  # at most four, evenly spaced by powers of two, x_0 among them
    end = module.ends[-1]
    for point in points:
        x, _, batch = module.steps[point.step]
        there = {name: x[name] + point.fraction * (end[name] - x[name]) for name in x}
        assert point.loss == pytest.approx(module.loss_at(there, batch), rel=1e-5)
    for step in starts:
        mine = [point for point in points if point.step == step]
        assert [point.fraction for point in mine] == [k / 10 for k in range(11)]
        probe = monitor.table.at_step(step)
        assert (mine[0].loss, mine[-1].loss) == (probe.loss, probe.reference_loss)
    assert all(isinstance(point, SegmentPoint) for point in points)


@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
def test_parts_sum_to_the_whole_and_are_those_of_the_recording(mode, tmp_path):
    module, monitor = fit(tmp_path, extras=[Layers()])
    folder, end = tmp_path / "run", module.ends[-1]
    if mode == "file":
        reference = str(folder / "landscape" / "reference.safetensors")
        module, monitor = fit(tmp_path / "second", extras=[Layers()], reference=reference)
        folder = tmp_path / "second" / "run"
    rows = load(folder).tables["layers"]
    ours, _ = curves(folder)
    assert {row.layer for row in rows} == {"scale", "first", "second"}
    for probe in monitor.table:
        mine = [row for row in rows if row.step == probe.step]
        assert [row.layer for row in mine] == ["scale", "first", "second"]
        for column in ("inner_product", "grad_sq_norm", "sq_distance"):
            whole, size = getattr(probe, column), math.sqrt(probe.grad_sq_norm * probe.sq_distance)
            # The sum has another order, so it agrees up to the rounding of float32.
            assert sum(getattr(row, column) for row in mine) == pytest.approx(
                whole, rel=1e-6, abs=1e-6 * size
            )
        x, g, _ = module.steps[probe.step]
        for row in mine:
            names = [name for name in x if name.split(".")[0] == row.layer]
            difference = {name: x[name] - end[name] for name in names}
            assert row.inner_product == pytest.approx(dot(difference, g), rel=1e-4, abs=1e-7)
            assert row.sq_distance == pytest.approx(dot(difference, difference), rel=1e-4, abs=1e-9)
    for layer in ("scale", "first", "second"):
        mine = [row for row in rows if row.layer == layer]
        sizes = [math.sqrt(row.grad_sq_norm * row.sq_distance) for row in mine]
        expected = {
            "inner_product": [row.inner_product for row in mine],
            "distance": [math.sqrt(row.sq_distance) for row in mine],
            "cosine": [row.inner_product / size for row, size in zip(mine, sizes, strict=True)],
        }
        for name, values in expected.items():
            points = ours[f"layers/{layer}/{name}"]
            assert [step for step, _ in points] == [row.logged_step for row in mine]
            assert [value for _, value in points] == pytest.approx(values, rel=1e-6)
    assert all(isinstance(row, LayerRow) for row in rows)


@pytest.mark.slow
def test_parts_of_earlier_probes_go_on_after_a_resume(tmp_path):
    fit(tmp_path)
    reference = str(tmp_path / "run" / "landscape" / "reference.safetensors")
    pl.seed_everything(6, verbose=False)
    settings = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    }
    monitor = LandscapeMonitor(
        every_n_steps=3, reference=reference, dirpath=tmp_path / "a", extras=[Layers()]
    )
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "x", every_n_epochs=1)
    pl.Trainer(max_epochs=2, callbacks=[monitor, saving], **settings).fit(Recorded(), loader(12))
    later = LandscapeMonitor(
        every_n_steps=3, reference=reference, dirpath=tmp_path / "b", extras=[Layers()]
    )
    trainer = pl.Trainer(max_epochs=3, callbacks=[later, saving], **settings)
    trainer.fit(Recorded(), loader(12), ckpt_path=tmp_path / "x.ckpt")
    rows = load(tmp_path / "b").tables["layers"]
    assert (
        sorted({row.step for row in rows})
        == [probe.step for probe in later.table]
        == list(range(0, 36, 3))
    )
    assert rows[: 3 * len(monitor.table)] == load(tmp_path / "a").tables["layers"]


def test_a_failure_before_x_p_is_known_costs_nothing_else(tmp_path, monkeypatch):
    def failing(self, **arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Evaluation, "at_present", failing)
    said = "could not evaluate at the present iterate: RuntimeError: out of memory"
    with pytest.warns(UserWarning, match=said) as warned:
        _, monitor = fit(tmp_path)
    assert sum("present iterate" in str(w.message) for w in warned) == 1
    assert len(monitor.table) == 20
    assert monitor.summary["run"]["complete"] is True


def test_a_failure_on_a_line_costs_nothing_else(tmp_path, monkeypatch):
    def failing(self, step):
        yield SegmentPoint(step.number, 0.0, step.probe.loss)
        raise RuntimeError("a point that was never there")

    monkeypatch.setattr(Segments, "at", failing)
    with pytest.warns(UserWarning, match="Segments failed at step 0, RuntimeError: a point"):
        _, monitor = fit(tmp_path, extras=[Segments(), Layers()])
    assert monitor.summary["run"]["complete"] is True
    assert "gap" in curves(tmp_path / "run")[0]
    tables = load(tmp_path / "run").tables
    assert "segments" not in tables
    assert len(tables["layers"]) == 3 * len(monitor.table)
