"""Event files read back: tags, steps and values."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_landscape import LandscapeMonitor, load
from lightning_landscape.functional import best_alpha_beta, interpolation_error
from tests.helpers.modules import Plain, loader

WHILE_TRAINING = {
    "loss",
    "grad_norm",
    "step_size",
    "polyak_lojasiewicz/mu",
    "smoothness/L",
    "overhead",
}
WITH_REFERENCE = {
    "reference_loss",
    "gap",
    "inner_product",
    "cosine",
    "distance",
    "alpha_beta/margin",
}
RUNNING = {
    f"alpha_beta/{name}" for name in ("alpha", "beta", "rate", "neighbourhood", "informativeness")
}
CONDITIONS = {
    "quasar_convexity/theta",
    "star_convexity/share",
    "aiming/theta",
    "relaxed_polyak_lojasiewicz/mu",
    "restricted_secant/mu",
    "error_bound/mu",
    "upper_error_bound/L",
    "quadratic_growth/mu",
    "weak_strong_convexity/mu",
    "gradient_angle/cosine",
}
WITHOUT_LOSSES = {
    *("live/inner_product", "live/cosine", "live/distance"),
    *("live/restricted_secant/mu", "live/error_bound/mu", "live/upper_error_bound/L"),
}
"""At the present iterate, by default"""
WITH_LOSSES = {f"live/alpha_beta/{name}" for name in ("alpha", "beta", "rate", "neighbourhood")} | {
    f"live/{tag}" for tag in CONDITIONS | {"polyak_lojasiewicz/mu", "smoothness/L"}
}
"""At the present iterate, with ``live_losses=True``"""
BOUNDS = {"bound/sgd_schedule", "bound/trajectory"}  # the step size of `Plain` changes once
BOUNDS |= {f"bound/{name}" for name in ("lower", "gap", "in_force", "final")}


def fit(folder, monitor, loggers=None, epochs=2, **kwargs):
    pl.seed_everything(3, verbose=False)
    loggers = [TensorBoardLogger(folder, name="", version="run")] if loggers is None else loggers
    settings = {
        "accelerator": "cpu",
        "max_epochs": epochs,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
    }
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, **kwargs}
    trainer = pl.Trainer(logger=loggers, callbacks=[monitor], **settings)
    trainer.fit(Plain(), loader(12))
    return trainer


def curves(folder, prefix="landscape"):
    """Return {tag: [(step, value)]} in file order, with all points."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    read = {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}
    ours = {
        tag.removeprefix(f"{prefix}/"): points
        for tag, points in read.items()
        if tag.startswith(f"{prefix}/")
    }
    return ours, read


def expected_values(table):
    """Return the expected points of each tag, from the table alone."""
    c = {
        name: table.column(name).numpy()
        for name in ("loss", "reference_loss", "inner_product", "grad_sq_norm")
    }
    distance, gap = table.column("sq_distance").sqrt().numpy(), c["loss"] - c["reference_loss"]
    grad_norm, product = np.sqrt(c["grad_sq_norm"]), c["inner_product"]
    return {
        "quasar_convexity/theta": np.where(gap > 0, product / gap, np.nan),
        "star_convexity/share": (product >= gap).astype(float),
        "aiming/theta": product / c["loss"],
        "relaxed_polyak_lojasiewicz/mu": np.where(
            gap > 0, c["grad_sq_norm"] / (2 * gap**2), np.nan
        ),
        "restricted_secant/mu": product / distance**2,
        "error_bound/mu": grad_norm / distance,
        "upper_error_bound/L": grad_norm / distance,
        "quadratic_growth/mu": 2 * gap / distance**2,
        "weak_strong_convexity/mu": 2 * (product - gap) / distance**2,
        "gradient_angle/cosine": product / (grad_norm * distance),
        "loss": c["loss"],
        "grad_norm": np.sqrt(c["grad_sq_norm"]),
        "step_size": table.column("step_size").numpy(),
        "polyak_lojasiewicz/mu": c["grad_sq_norm"] / (2 * c["loss"]),
        "smoothness/L": c["grad_sq_norm"] / (2 * c["loss"]),
        "reference_loss": c["reference_loss"],
        "gap": gap,
        "inner_product": c["inner_product"],
        "distance": distance,
        "cosine": c["inner_product"] / (np.sqrt(c["grad_sq_norm"]) * distance),
    }


@pytest.fixture(params=["final", "file"])
def run(request, tmp_path):
    """Yield (mode, run read back, all points of ours, all points)."""
    monitor = LandscapeMonitor(every_n_steps=2)
    fit(tmp_path, monitor)
    folder = tmp_path / "run"
    if request.param == "file":
        reference = str(folder / "landscape" / "reference.safetensors")
        fit(tmp_path / "second", LandscapeMonitor(every_n_steps=2, reference=reference))
        folder = tmp_path / "second" / "run"
    return request.param, load(folder), *curves(folder)


def test_tags_are_those_of_the_contract(run):
    mode, _, ours, _ = run
    live = WITHOUT_LOSSES if mode == "final" else set()
    assert set(ours) == WHILE_TRAINING | WITH_REFERENCE | RUNNING | CONDITIONS | BOUNDS | live


def test_every_tag_ascends_and_is_written_once_a_step(run):
    _, _, ours, _ = run
    for tag, points in ours.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), tag


def test_values_are_those_of_the_table_to_float32_rounding(run):
    _, loaded, ours, _ = run
    steps = [probe.logged_step for probe in loaded.table]
    for tag, values in expected_values(loaded.table).items():
        finite = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
        assert [step for step, _ in ours[tag]] == [step for step, _ in finite], tag
        for (_, seen), (_, value) in zip(ours[tag], finite, strict=True):
            assert seen == pytest.approx(value, rel=2**-23, abs=1e-12), tag


def test_the_bound_of_the_trajectory_is_that_of_so_many_steps_with_the_final_pair(run):
    _, loaded, ours, _ = run
    table, entry = loaded.table, loaded.summary["bounds"]["trajectory"]
    expected = []
    for k in range(1, len(table)):

        def total(value, k=k):
            """Sum a value over the steps before probe k, on straight lines between probes."""
            known = {p.step: value(p) for p in table[:k]}
            steps = range(table[0].step, table[k].step)
            return sum(np.interp(list(steps), list(known), list(known.values())))

        rest = total(lambda p: p.step_residual**2 / 2 + p.step_residual * p.sq_distance**0.5)
        excess = total(lambda p: p.step_size * p.reference_loss)
        above = total(lambda p: p.step_size * p.inner_product) + rest + entry["beta"] * excess
        expected.append(
            (
                table[k].logged_step,
                above / ((entry["alpha"] - entry["beta"]) * total(lambda p: p.step_size)),
            )
        )
    expected.append(
        (max(loaded.summary["run"]["steps"], table[-1].logged_step + 1), entry["value"])
    )
    assert [step for step, _ in ours["bound/trajectory"]] == [step for step, _ in expected]
    assert [value for _, value in ours["bound/trajectory"]] == pytest.approx(
        [value for _, value in expected], rel=1e-5
    )
    margin = {tag: dict(ours[f"bound/{tag}"]) for tag in ("lower", "gap", "in_force")}
    assert margin["lower"] == dict.fromkeys((p.logged_step for p in table[1:]), 0.0)
    assert margin["gap"] == {step: value for step, value in ours["gap"] if step in margin["lower"]}
    assert margin["in_force"] == dict(ours[f"bound/{loaded.summary['bound_in_force']}"][:-1])
    (final,) = ours["bound/final"]
    assert final[1] == pytest.approx(
        loaded.summary["bounds"][loaded.summary["bound_in_force"]]["value"], rel=1e-6
    )


def test_the_loss_lies_on_lightnings_own_curve(run):
    _, _, ours, read = run
    logged = dict(read["train_loss_step"])
    for step, value in ours["loss"]:
        assert logged[step] == value


def test_the_last_running_values_are_the_reports(run):
    _, loaded, ours, _ = run
    report = loaded.summary["conditions"]["alpha_beta"]
    for tag in RUNNING:
        assert ours[tag][-1][1] == pytest.approx(
            report[tag.removeprefix("alpha_beta/")], rel=2**-23
        ), tag


def test_running_values_are_the_worst_case_so_far(run):
    _mode, loaded, ours, _ = run
    for k in range(1, len(loaded.table) + 1):
        columns = type(loaded.table)(loaded.table[:k]).columns(
            "loss", "reference_loss", "inner_product"
        )
        pair = best_alpha_beta(**columns)
        size = pair.ratio * interpolation_error(reference_loss=columns["reference_loss"])[0]
        step, seen = ours["alpha_beta/neighbourhood"][k - 1]
        assert step == loaded.table[k - 1].logged_step
        assert seen == pytest.approx(size.item(), rel=2**-22)


def test_margins_of_the_reported_pair_are_not_negative(run):
    _, _, ours, _ = run
    assert min(value for _, value in ours["alpha_beta/margin"]) >= -1e-6


@pytest.mark.parametrize("live_losses", [False, True])
def test_what_is_known_live_is_written_live(live_losses, tmp_path):
    """When training ends, the loss is there; columns that need x_p follow the evaluation."""
    seen = {}

    class Looking(LandscapeMonitor):
        def on_fit_end(self, trainer, pl_module):
            trainer.logger.experiment.flush()
            seen.update(curves(tmp_path / "run")[0])
            super().on_fit_end(trainer, pl_module)

    fit(tmp_path, Looking(every_n_steps=2, live_losses=live_losses))
    live = WITH_LOSSES if live_losses else WITHOUT_LOSSES
    assert set(seen) == WHILE_TRAINING | live
    for tag in live:
        assert [step for step, _ in seen[tag]] == [12], tag  # after the first epoch
    assert set(curves(tmp_path / "run")[0]) >= WITH_REFERENCE | RUNNING | CONDITIONS | BOUNDS


def test_a_live_run_thinned_without_a_further_probe_still_ends_with_the_reports_values(tmp_path):
    fit(tmp_path, LandscapeMonitor(every_n_steps=2))
    reference = str(tmp_path / "run" / "landscape" / "reference.safetensors")
    fit(tmp_path / "second", LandscapeMonitor(every_n_steps=2, max_probes=3, reference=reference))
    ours, _ = curves(tmp_path / "second" / "run")
    report = load(tmp_path / "second" / "run").summary["conditions"]["alpha_beta"]
    assert ours["alpha_beta/neighbourhood"][-1][1] == pytest.approx(
        report["neighbourhood"], rel=2**-23
    )
    steps = [step for step, _ in ours["alpha_beta/neighbourhood"]]
    assert steps == sorted(set(steps))


def test_prefix_is_group_and_folder(tmp_path):
    fit(tmp_path, LandscapeMonitor(prefix="other"))
    assert (tmp_path / "run" / "other" / "summary.json").is_file()
    assert set(curves(tmp_path / "run", "other")[0]) >= WHILE_TRAINING
    assert curves(tmp_path / "run")[0] == {}


def test_csv_logger_gets_the_curves_and_no_logger_gets_the_files(tmp_path):
    fit(tmp_path, LandscapeMonitor(), [CSVLogger(tmp_path, name="", version="csv")])
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"landscape/loss", "landscape/gap", "landscape/alpha_beta/beta"} <= set(header)
    trainer = fit(tmp_path, LandscapeMonitor(), loggers=False, default_root_dir=tmp_path / "root")
    assert trainer.loggers == []
    assert len(load(tmp_path / "root").table) == 3
    assert not (tmp_path / "root" / "landscape" / "probes.jsonl").exists()


class Failing(Logger):
    """A logger whose service is down."""

    name, version, save_dir = "failing", "1", None

    def log_metrics(self, metrics, step=None):
        if any("landscape" in tag for tag in metrics):
            raise ConnectionError("service is gone")

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_a_failing_logger_is_named_once_and_the_files_go_on(tmp_path):
    monitor = LandscapeMonitor(every_n_steps=2, dirpath=tmp_path)
    with pytest.warns(UserWarning, match="no longer logs to Failing: service is gone") as warned:
        fit(tmp_path, monitor, [Failing()])
    assert sum("no longer logs" in str(w.message) for w in warned) == 1
    assert len(load(tmp_path).table) == 12


def test_the_folder_of_other_loggers_is_save_dir_name_version(tmp_path):
    class Elsewhere(Failing):
        save_dir = str(tmp_path / "saved")

        def log_metrics(self, metrics, step=None):
            pass

    fit(tmp_path, LandscapeMonitor(), [Elsewhere()])
    assert (tmp_path / "saved" / "failing" / "1" / "landscape" / "probes.csv").is_file()
