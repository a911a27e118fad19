"""Runs with probes stored through a codec beside the same runs that stored them natively.

Training is the same to the last bit, so x_k, g_k and x_p are those of the native run.
"""

import copy
import dataclasses
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint
from torch.utils.data import DataLoader

from demos.data import Images
from demos.mlp import MLP
from lightning_landscape import (
    HeldOut,
    LandscapeMonitor,
    Layers,
    Report,
    Secant,
    Segments,
    Store,
    load,
)
from tests.helpers import distributed
from tests.helpers.modules import Plain, loader
from tests.helpers.settings import SETTINGS
from tests.helpers.settings import train as train_with
from tests.helpers.slow import some
from tests.integration.test_bit_identity import assert_same, everything

CODED = ("bfloat16", "int8")
ROUNDING = 1e-5
EXACT = (
    *(
        "step",
        "epoch",
        "loss",
        "reference_loss",
        "loss_infimum",
        "grad_sq_norm",
        "step_size",
        "step_residual",
    ),
    *("initial_loss", "logged_step"),
)


def assert_within_what_is_said(coded, exact):
    """Assert that everything but p and D is the same, and that these are within their bounds.

    Returns:
        The largest relative error of each.
    """
    found = coded.summary["run"]["store"]["accuracy"]
    bounds = {row.step: row for row in coded.tables["store_accuracy"]}
    assert len(coded.table) == len(exact.table)
    assert coded.table[0] == exact.table[0]  # it is stored as it was
    assert set(bounds) == {probe.step for probe in exact.table[1:]}
    largest = {"inner_product": 0.0, "distance": 0.0}
    for one, other in zip(coded.table, exact.table, strict=True):
        for column in EXACT:
            assert getattr(one, column) == getattr(other, column), column
        size = math.sqrt(other.grad_sq_norm * other.sq_distance)
        distance = math.sqrt(other.sq_distance)
        errors = {
            "inner_product": abs(one.inner_product - other.inner_product) / size if size else 0.0,
            "distance": abs(math.sqrt(one.sq_distance) - distance) / distance if distance else 0.0,
        }
        for name, error in errors.items():
            bound = found[name]["bound"]
            assert bound is None or error <= bound + ROUNDING, (name, one.step)
            if one.step in bounds and error:
                of_probe = getattr(bounds[one.step], name)
                whole = size if name == "inner_product" else distance
                assert error * whole <= of_probe + ROUNDING * whole, (name, one.step)
            largest[name] = max(largest[name], error)
    assert min(largest.values()) > 0
    low, high = found["neighbourhood"]
    true = exact.summary["conditions"]["alpha_beta"]["neighbourhood"]
    assert low <= coded.summary["conditions"]["alpha_beta"]["neighbourhood"] <= high
    assert low - 1e-9 <= true <= high + 1e-9
    in_force = coded.summary["bound_in_force"]
    if in_force is not None:
        low, high = found["bound_in_force"]
        for value in (
            summary["bounds"][in_force]["value"] for summary in (coded.summary, exact.summary)
        ):
            assert low is None or value is None or low - 1e-9 <= value
            assert high is None or value is None or value <= high + 1e-9
    assert coded.summary["run"]["fidelity"]["exact"] is True
    assert f"stored as {coded.summary['run']['store']['dtype']}" in coded.summary["verdict"]
    return largest


def train_digits(folder, callbacks=(), **settings):
    pl.seed_everything(0, verbose=False)
    module = MLP(width=32)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=settings.pop("max_epochs", 4),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, ModelCheckpoint(folder / "checkpoints", save_last=True)],
        **settings,
    )
    trainer.fit(module, Images("digits"))
    return trainer, module


def digits(folder, codec, store=None, **arguments):
    monitor = LandscapeMonitor(
        every_n_steps=5,
        dirpath=folder,
        store=Store(dtype=codec, **(store or {})),
        report=Report(images=None),
        **arguments,
    )
    train_digits(folder, [monitor])
    return load(folder / "landscape")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    more = {"extras": [Layers(), Segments(3), HeldOut(of_training, fixed=2), Secant()]}
    return {codec: digits(folder / codec, codec, **more) for codec in ("native", *CODED)}


def of_training(trainer):
    data = Images("digits")
    data.setup("fit")
    return DataLoader(data.train_dataloader().dataset, 64, generator=torch.Generator())


@pytest.mark.parametrize("codec", some(CODED[::-1], every=2))
def test_digits(codec, runs):
    exact, coded = runs["native"], runs[codec]
    largest = assert_within_what_is_said(coded, exact)
    assert coded.summary["run"]["store"]["dtype"] == codec
    most = {"bfloat16": 0.01, "int8": 0.02}[codec]
    assert 0 < largest["inner_product"] < most
    assert "accuracy" not in exact.summary["run"]["store"]
    assert "store_accuracy" not in exact.tables
    assert "stored as" not in exact.summary["verdict"]


@pytest.mark.parametrize("codec", some(CODED[::-1], every=2))
def test_lines_layers_and_held_out_batches_are_of_what_was_decoded(codec, runs):
    exact, coded = runs["native"], runs[codec]
    assert len(coded.tables["segments"]) == len(exact.tables["segments"]) > 0
    for one, other in zip(coded.tables["segments"], exact.tables["segments"], strict=True):
        assert (one.step, one.fraction) == (other.step, other.fraction)
        assert one.loss == pytest.approx(other.loss, rel=0.01, abs=1e-3)
        if one.step == 0:  # x_0 is exact
            assert one.loss == other.loss
    for probe in coded.table:
        rows = [row for row in coded.tables["layers"] if row.step == probe.step]
        for column in ("inner_product", "grad_sq_norm", "sq_distance"):
            # the table has the squared norm of the gradient as it was
            error = 1e-2 if column == "grad_sq_norm" else 1e-4
            assert sum(getattr(row, column) for row in rows) == pytest.approx(
                getattr(probe, column), rel=error, abs=1e-5
            )
    secants = [run.summary["conditions"]["smoothness"]["secant"] for run in (coded, exact)]
    assert secants[0] == secants[1]  # x_(k+1) and g_k are stored natively for it
    ours, theirs = (
        [*run.tables["held_out"], *run.tables["fixed_batches"]] for run in (coded, exact)
    )
    assert len(coded.tables["held_out"]) == len(exact.tables["held_out"]) == len(coded.table)
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.02, abs=1e-3)
        assert one.reference_loss == other.reference_loss
        assert one.inner_product == pytest.approx(other.inner_product, rel=0.1, abs=0.02)


@pytest.mark.parametrize("codec", some(CODED[::-1], every=2))
def test_training_is_the_same_to_the_last_bit(codec, tmp_path):
    ends = {}
    for name, monitors in {
        "without": [],
        codec: [LandscapeMonitor(every_n_steps=1, store=Store(dtype=codec))],
    }.items():
        folder = tmp_path / name
        trainer, module = train_digits(folder, monitors, max_epochs=2)
        ends[name] = {**everything(trainer, module, folder), "checkpoint": None}
    assert_same(ends["without"], ends[codec])


@pytest.mark.parametrize("codec", some(CODED[::-1], every=2))
@pytest.mark.parametrize("name", some(sorted(SETTINGS), every=5))
def test_every_kind_of_run(name, codec, tmp_path):
    """For every module, precision and loss scale."""
    monitors = {}
    for dtype in ("native", codec):
        monitors[dtype] = LandscapeMonitor(
            every_n_steps=2, store=Store(dtype=dtype), report=Report(images=None)
        )
        train_with(SETTINGS[name], tmp_path / dtype, [monitors[dtype]])
    for one, other in zip(monitors[codec].table, monitors["native"].table, strict=True):
        assert dataclasses.replace(one, inner_product=0.0, sq_distance=0.0) == dataclasses.replace(
            other, inner_product=0.0, sq_distance=0.0
        )
        size = math.sqrt(other.grad_sq_norm * other.sq_distance)
        assert one.inner_product == pytest.approx(other.inner_product, abs=0.1 * size + 1e-12)
    assert (
        monitors[codec].summary["run"]["fidelity"]["exact"]
        is monitors["native"].summary["run"]["fidelity"]["exact"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("codec", some(CODED[::-1], every=2))
def test_two_processes(codec, tmp_path):
    found = {}
    for dtype in ("native", codec):
        monitor = LandscapeMonitor(
            every_n_steps=1, store=Store(dtype=dtype), report=Report(images=None)
        )
        distributed.train(tmp_path / dtype, [monitor])
        found[dtype] = load(tmp_path / dtype / "run")
    assert_within_what_is_said(found[codec], found["native"])
    for rank in range(2):
        ends = [torch.load(tmp_path / dtype / f"end-{rank}.pt") for dtype in found]
        assert_same(*ends)


@pytest.mark.slow
@pytest.mark.parametrize("codec", some(CODED[::-1], every=2))
def test_with_a_reference_the_codec_has_nothing_to_do(codec, tmp_path):
    first = digits(tmp_path / "first", "native")
    reference = str(first.path / "reference.safetensors")
    tables = [
        digits(tmp_path / dtype, dtype, reference=reference).table for dtype in ("native", codec)
    ]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_int8_has_room_for_more_probes(tmp_path):
    budget = 12 * 2 * 4 * sum(p.numel() for p in MLP(width=32).parameters()) / 2**30
    kept, sizes = {}, {}
    for codec in ("native", *CODED):
        run = digits(tmp_path / codec, codec, store={"gib": budget, "keep": True})
        kept[codec] = len(run.table)
        sizes[codec] = sum(
            {p.stat().st_ino: p.stat().st_size for p in (run.path / "store").rglob("*.*")}.values()
        )
        assert sizes[codec] <= budget * 2**30 * 1.05  # small files have headers
    assert kept["native"] < kept["int8"]


def test_too_little_room_even_for_a_codec_is_refused():
    module = Plain()
    before = copy.deepcopy(module.state_dict())
    parameters = sum(p.nbytes for p in module.parameters())
    monitor = LandscapeMonitor(store=Store(dtype="int8", gib=1.9 * parameters / 2**30))
    settings = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[monitor], **settings)
    with pytest.raises(MisconfigurationException, match="for x_0.*two probes or more"):
        trainer.fit(module, loader())
    assert_same(dict(before), dict(module.state_dict()))


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.05)


class OnlyTrained(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize("codec", some(CODED[::-1], every=2))
def test_layers_that_are_unfrozen_later(codec, tmp_path):
    runs = []
    for dtype in ("native", codec):
        monitor = LandscapeMonitor(
            every_n_steps=1,
            dirpath=tmp_path / dtype,
            store=Store(dtype=dtype),
            report=Report(images=None),
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Unfreeze(), monitor],
        )
        pl.seed_everything(4, verbose=False)
        trainer.fit(OnlyTrained(), loader())
        runs.append(load(tmp_path / dtype / "landscape"))
    assert len(runs[0].table) > 20
    assert_within_what_is_said(runs[1], runs[0])


@pytest.mark.slow
def test_workers_that_are_forked_while_probes_are_written(tmp_path):
    """Interrupts writing at every epoch."""
    tables = []
    for workers in (0, 2):
        pl.seed_everything(3, verbose=False)
        monitor = LandscapeMonitor(
            every_n_steps=1,
            dirpath=tmp_path / str(workers),
            store=Store(dtype="int8"),
            report=Report(images=None),
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=4,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[monitor],
        )
        forked = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
        data = loader(12).dataset
        trainer.fit(MLPOfBatches(), DataLoader(data, 4, **forked))
        tables.append(monitor.table)
    assert tables[0] == tables[1]


class MLPOfBatches(Plain):
    """So large that a probe is still being written when the next epoch's workers are forked."""

    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Parameter(torch.zeros(500_000))

    def compute_loss(self, batch):
        return super().compute_loss(batch) + (self.wide - 1).square().mean()
