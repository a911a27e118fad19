"""Held-out batches: brute force, unchanged training, both modes, several processes, refusals."""

import copy
import csv
import io
import itertools
import math
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger

from lightning_landscape import HeldOut, LandscapeMonitor, Report, load
from lightning_landscape.functional import alpha_beta_margin, alpha_beta_violations, beta_min
from lightning_landscape.probes import ProbeTable
from tests.helpers import distributed
from tests.helpers.brute_force import BruteForce
from tests.helpers.modules import CLASSES, FEATURES, Plain, loader, plain_loss
from tests.helpers.settings import SETTINGS, train
from tests.helpers.slow import some
from tests.integration.test_brute_force import record

FIXED = 2
NAMES = [
    *(
        "plain",
        "accumulation",
        "bf16_mixed",
        "scaler",
        "annealed",
        "momentum_encoder",
        "unfreezing_late",
        "gradient_penalty",
    ),
    *("recurrent", "target_in_buffers", "teacher_and_unfreezing"),
]


def held_out_batches(trainer):
    """Return three batches, always the same."""
    generator = torch.Generator().manual_seed(11)
    return [
        (
            torch.randn(size, FEATURES, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for size in (6, 6, 6)
    ]


def with_batch(step, batch):
    """Return a recorded step with another batch as its only micro-batch, in the same state."""
    micro = copy.copy(step.micro_batches[0])
    micro.args = (batch, micro.args[1])
    return replace(step, micro_batches=[micro])


def held_out(run):
    return ProbeTable(run.tables["held_out"])


def assert_equal_brute_force(run, recording, setting, loss=None):
    brute = BruteForce(recording, setting.module, setting.autocast, loss)
    batches = held_out_batches(None)
    in_turn = itertools.cycle(batches)
    by_step = {step.step: step for step in recording.steps}
    first = recording.steps[0]
    assert [probe.step for probe in held_out(run)] == [probe.step for probe in run.table]
    assert [(row.step, row.batch) for row in run.tables["fixed_batches"]] == [
        (p.step, i) for p in run.table for i in range(FIXED)
    ]
    fixed = iter(run.tables["fixed_batches"])
    for probe, own in zip(held_out(run), run.table, strict=True):
        assert (probe.step_size, probe.logged_step, probe.sq_distance) == (
            own.step_size,
            own.logged_step,
            own.sq_distance,
        )
        for row, batch in [
            (probe, next(in_turn)),
            *((next(fixed), batches[i]) for i in range(FIXED)),
        ]:
            expected = brute.row(with_batch(by_step[probe.step], batch), first)
            for column in ("loss", "reference_loss"):
                assert getattr(row, column) == pytest.approx(expected[column], rel=1e-6), (
                    probe.step,
                    column,
                )
            size = math.sqrt(expected["grad_sq_norm"] * expected["sq_distance"])
            assert row.inner_product == pytest.approx(
                expected["inner_product"], abs=setting.rtol * size
            )
            assert row.grad_sq_norm == pytest.approx(expected["grad_sq_norm"], rel=setting.rtol)


@pytest.mark.parametrize("name", some(NAMES, every=6))
def test_each_row_is_a_recomputation_from_scratch(name, tmp_path):
    setting = SETTINGS[name]
    recording = record(setting, tmp_path)
    monitor = LandscapeMonitor(every_n_steps=1, extras=[HeldOut(held_out_batches, fixed=FIXED)])
    train(setting, tmp_path / "run", [monitor])
    assert_equal_brute_force(
        load(tmp_path / "run" / "lightning_logs" / "version_0"), recording, setting
    )


def test_with_a_loss_of_the_user(tmp_path):
    setting = SETTINGS["accumulation"]
    recording = record(setting, tmp_path)
    monitor = LandscapeMonitor(
        every_n_steps=1, loss=plain_loss, extras=[HeldOut(held_out_batches, fixed=FIXED)]
    )
    train(setting, tmp_path / "run", [monitor])
    run = load(tmp_path / "run" / "lightning_logs" / "version_0")
    assert_equal_brute_force(run, recording, setting, loss=plain_loss)


@pytest.mark.parametrize(
    "name", some(["momentum_encoder", "plain", "accumulation", "scaler"], every=4)
)
def test_live_against_a_reference_is_the_same(name, tmp_path):
    setting = SETTINGS[name]
    arguments = {"every_n_steps": 1, "extras": [HeldOut(held_out_batches, fixed=FIXED)]}
    train(setting, tmp_path / "one", [LandscapeMonitor(**arguments)])
    one = load(tmp_path / "one" / "lightning_logs" / "version_0")
    train(
        setting,
        tmp_path / "two",
        [LandscapeMonitor(reference=str(one.path / "reference.safetensors"), **arguments)],
    )
    two = load(tmp_path / "two" / "lightning_logs" / "version_0")
    assert len(held_out(one)) == len(held_out(two)) > 1
    for a, b in zip(
        [*held_out(one), *one.tables["fixed_batches"]],
        [*held_out(two), *two.tables["fixed_batches"]],
        strict=True,
    ):
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
        assert a.reference_loss == pytest.approx(b.reference_loss, rel=1e-6)
        assert a.grad_sq_norm == pytest.approx(b.grad_sq_norm, rel=setting.rtol)


class Validated(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.compute_loss(batch))


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
@pytest.mark.parametrize("sanity", [0, 2])
def test_training_and_validation_are_the_same_with_and_without(mode, sanity, tmp_path):
    """Also if held-out batches come from a shuffling validation loader with its own generator."""
    reference = "final"
    if mode == "file":
        fit(tmp_path / "first", [LandscapeMonitor()], sanity)
        reference = str(load(tmp_path / "first" / "log").path / "reference.safetensors")
    monitor = LandscapeMonitor(
        every_n_steps=2, reference=reference, extras=[HeldOut("val", fixed=1)]
    )
    without, with_monitor = (
        fit(tmp_path / "without", [], sanity),
        fit(tmp_path / "with", [monitor], sanity),
    )
    assert (tmp_path / "without" / "log" / "metrics.csv").read_text() == metrics_without_ours(
        tmp_path / "with" / "log"
    )
    for (name, a), b in zip(without[0].items(), with_monitor[0].values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(without[1], with_monitor[1])
    assert torch.equal(without[2], with_monitor[2])
    run = load(tmp_path / "with" / "log")
    assert len(held_out(run)) == len(run.table) == 10


def fit(folder, callbacks, sanity):
    pl.seed_everything(1, verbose=False)
    module, generator = Validated(), torch.Generator().manual_seed(5)
    validation = loader(4)
    validation = torch.utils.data.DataLoader(
        validation.dataset, 6, shuffle=True, generator=generator
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=sanity,
        logger=CSVLogger(folder, name="", version="log"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, loader(), validation)
    return module.state_dict(), generator.get_state(), torch.get_rng_state()


def metrics_without_ours(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if not name.startswith("landscape")]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        row for row in rows if any(row[name] for name in names if name not in ("epoch", "step"))
    )
    return out.getvalue()


def assert_same_held_out(one, two):
    for table, each in {"held_out": 1, "fixed_batches": FIXED}.items():
        here, there = one.tables[table], two.tables[table]
        assert len(here) == len(there) == each * len(one.table)
        for a, b in zip(here, there, strict=True):
            for column in ("loss", "reference_loss", "grad_sq_norm"):
                assert getattr(a, column) == pytest.approx(getattr(b, column), rel=2e-5), column
            assert a.inner_product == pytest.approx(b.inner_product, abs=1e-5)


def test_two_processes_give_the_table_of_one(tmp_path):
    """Each process has its part of a batch; one process has all of it."""
    tables = []
    for processes in (1, 2):
        monitor = LandscapeMonitor(
            every_n_steps=2, extras=[HeldOut(distributed.held_out_batches, fixed=FIXED)]
        )
        distributed.train(tmp_path / str(processes), [monitor], processes=processes)
        tables.append(load(tmp_path / str(processes) / "run"))
    assert_same_held_out(*tables)


def test_the_summary_puts_the_pair_to_the_test(tmp_path):
    monitor = LandscapeMonitor(every_n_steps=1, extras=[HeldOut(held_out_batches, fixed=FIXED)])
    train(SETTINGS["plain"], tmp_path, [monitor])
    run = load(tmp_path / "lightning_logs" / "version_0")
    found, held, fixed = (
        monitor.summary["conditions"]["alpha_beta"],
        monitor.summary["held_out"],
        monitor.summary["fixed_batches"],
    )
    names = ("loss", "reference_loss", "inner_product", "loss_infimum")
    columns = held_out(run).columns(*names)
    violated = int(alpha_beta_violations(found["alpha"], found["beta"], **columns).sum())
    # Labels are random, so training on some batches does not help on others.
    assert held["violated"] == violated > 0
    assert held["violated_share"] == violated / len(held_out(run))
    margins = alpha_beta_margin(found["alpha"], found["beta"], **columns)
    assert held["smallest_margin"]["value"] == float(margins.min())
    assert held["smallest_margin"]["step"] == held_out(run)[int(margins.argmin())].step
    together = held["together"]
    for table in (run.table, held_out(run)):
        assert not alpha_beta_violations(
            together["alpha"], together["beta"], **table.columns(*names)
        ).any()
    assert f"is violated on {violated}" in monitor.summary["verdict"]
    assert fixed["batches"] == FIXED
    assert [step["step"] for step in fixed["steps"]] == [probe.step for probe in run.table]
    for step in fixed["steps"]:
        rows = [row for row in run.tables["fixed_batches"] if row.step == step["step"]]
        columns = {
            name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
            for name in names[:3]
        }
        worst = max(
            float(beta_min(found["rate"], **{n: v[i : i + 1] for n, v in columns.items()}))
            for i in range(FIXED)
        )
        assert step["beta"] == pytest.approx(worst)
        assert step["smallest_margin"] == float(
            alpha_beta_margin(found["alpha"], found["beta"], **columns).min()
        )


def test_without_held_out_batches_the_summary_says_nothing_of_them(tmp_path):
    monitor = LandscapeMonitor(every_n_steps=1)
    train(SETTINGS["plain"], tmp_path, [monitor])
    assert not {"held_out", "fixed_batches"} & set(monitor.summary)
    assert "held_out" not in load(tmp_path / "lightning_logs" / "version_0").tables
    assert "held out" not in monitor.summary["verdict"]


def test_thinning_drops_their_rows_too(tmp_path):
    setting = SETTINGS["plain"]
    train(setting, tmp_path / "first", [LandscapeMonitor()])
    reference = str(
        load(tmp_path / "first" / "lightning_logs" / "version_0").path / "reference.safetensors"
    )
    monitor = LandscapeMonitor(
        every_n_steps=1,
        max_probes=4,
        reference=reference,
        extras=[HeldOut(held_out_batches, fixed=1)],
    )
    train(setting, tmp_path / "run", [monitor])
    run = load(tmp_path / "run" / "lightning_logs" / "version_0")
    kept = [probe.step for probe in run.table]
    assert kept == [0, 8, 16]
    assert [probe.step for probe in held_out(run)] == kept
    assert [row.step for row in run.tables["fixed_batches"]] == kept


@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
def test_a_batch_that_cannot_be_evaluated_costs_nothing_else(mode, tmp_path):
    def unsuitable(trainer):
        return [torch.zeros(3), torch.zeros(3)]

    setting, reference = SETTINGS["plain"], "final"
    if mode == "file":
        train(setting, tmp_path / "first", [LandscapeMonitor()])
        reference = str(
            load(tmp_path / "first" / "lightning_logs" / "version_0").path / "reference.safetensors"
        )
    monitor = LandscapeMonitor(every_n_steps=4, reference=reference, extras=[HeldOut(unsuitable)])
    with pytest.warns(
        UserWarning, match="HeldOut could not evaluate a batch at step 0.*training_step"
    ):
        train(setting, tmp_path / "run", [monitor])
    assert monitor.summary["run"]["complete"] is True
    assert len(monitor.table) == 5
    assert all(probe.evaluated for probe in monitor.table)
    assert "held_out" not in monitor.summary


def test_more_fixed_batches_than_there_are_is_said_once_and_those_that_are_there_are_evaluated(
    tmp_path,
):
    monitor = LandscapeMonitor(every_n_steps=4, extras=[HeldOut(held_out_batches, fixed=5)])
    with pytest.warns(
        UserWarning, match=r"HeldOut\(fixed=5\) found 3 batches.*let it yield more"
    ) as said:
        train(SETTINGS["plain"], tmp_path, [monitor])
    assert sum("found 3 batches" in str(warning.message) for warning in said) == 1
    assert monitor.summary["fixed_batches"]["batches"] == 3
    assert monitor.summary["run"]["complete"] is True


def test_a_run_without_a_validation_loader_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="found no validation loader"):
        train(SETTINGS["plain"], tmp_path, [LandscapeMonitor(extras=[HeldOut("val")])])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"source": "test"}, r"HeldOut\(source='test'\).*'val' and functions of the trainer"),
        ({"fixed": -1}, r"HeldOut\(fixed=-1\).*whole numbers of 0 or more"),
        ({"fixed": True}, r"HeldOut\(fixed=True\).*whole numbers of 0 or more"),
    ],
)
def test_refused(arguments, said):
    with pytest.raises(MisconfigurationException, match=said):
        HeldOut(**arguments)


@pytest.mark.pictures
def test_they_are_in_the_picture_of_the_margin(tmp_path):
    from lightning_landscape.reporting.figures import Drawn

    monitor = LandscapeMonitor(
        every_n_steps=1, extras=[HeldOut(held_out_batches, fixed=FIXED)], report=Report(images=None)
    )
    train(SETTINGS["plain"], tmp_path, [monitor])
    run = load(tmp_path / "lightning_logs" / "version_0")
    figure = HeldOut.figures(Drawn(run.table, run.summary, run.tables))["held_out"]
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert f"held out, {run.summary['held_out']['violated']} violated" in labels
    assert f"smallest over {FIXED} fixed batches" in labels
