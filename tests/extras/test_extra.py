"""An `Extra` that a user could write, with everything that belongs to it."""

import csv
import json
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_landscape import Extra, LandscapeMonitor, Layers, Report, Segments, load
from lightning_landscape.reporting import figures
from lightning_landscape.training.failures import NotMeasurable
from tests.helpers.brute_force import BruteForce, Recording, recorded
from tests.helpers.distributed import Net
from tests.helpers.modules import loader
from tests.helpers.settings import SETTINGS, train

PLAIN = SETTINGS["plain"]


@dataclass(frozen=True)
class NormRow:
    """The gradient of one parameter at x_p, on one probe's mini-batch."""

    step: int
    parameter: str
    norm: float


@dataclass(frozen=True)
class EntryRow:
    """The largest gradient entries of one probe."""

    step: int
    here: float
    there: float | None
    grew: bool


class Gradients(Extra):
    """The norm of each parameter's gradient at x_p, and the largest entries at x_k and x_p."""

    tables = {"gradient_norms": NormRow, "gradient_entries": EntryRow}

    def at(self, step):
        _, here = step.gradient()
        _, there = step.gradient(step.reference)
        norms = [
            NormRow(step.number, name, abs(there.factor) * float(part.double().norm()))
            for name, part in there.raw.items()
        ]
        return [*norms, EntryRow(step.number, largest(here), largest(there), False)]

    def evaluations(self, records):
        return 6 * records

    def describe(self):
        return "gradients at both ends"

    def summary(self, findings):
        rows = self.rows("gradient_entries")
        found = {"largest": max(row.here for row in rows), "probes": len(findings.table)}
        nested = {"conditions": {"smoothness": {"of_gradients": len(rows)}}}
        return {"gradients": found, **nested}

    def sentence(self, summary):
        return f" The largest gradient entry was {summary['gradients']['largest']:.4g}."

    def curves(self, rows):
        (row,) = [row for row in rows if isinstance(row, EntryRow)]
        return {"gradients/largest": row.here}

    @classmethod
    def figures(cls, drawn):
        from lightning_landscape.reporting.figures._style import picture

        def draw(axes, drawn):
            rows = drawn.tables["gradient_entries"]
            axes.plot([row.step for row in rows], [row.here for row in rows])

        return {"gradients": picture(draw)(drawn)}


class Norms(Extra):
    """Another extra, which adds to the same part of the summary."""

    tables = {"norms": NormRow}

    def at(self, step):
        return [NormRow(step.number, "all", step.evaluator.sq_norm(step.record.gradient) ** 0.5)]

    def summary(self, findings):
        return {"conditions": {"smoothness": {"of_norms": len(self.rows("norms"))}}}


def largest(gradient):
    return abs(gradient.factor) * max(float(part.abs().max()) for part in gradient.raw.values())


class Failing(Norms):
    """Fails from one step on."""

    tables = {"failing": NormRow}

    def __init__(self, error=None, only_there=False):
        self.error, self.only_there = error or ValueError("no idea"), only_there

    def at(self, step):
        if step.number == 4 or (step.number > 4 and not self.only_there):
            raise self.error
        return [NormRow(step.number, "all", 1.0)]

    def summary(self, findings):
        return {}


def run_of(folder):
    return load(folder / "lightning_logs" / "version_0")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with two extras of the user's, and a recording of the same run by brute force."""
    folder = tmp_path_factory.mktemp("measured")
    recording, module = Recording(), recorded(PLAIN.module)
    module.recording = recording
    train(PLAIN, folder / "recorded", [recording], module)
    extras = [Gradients(), Norms()]
    monitor = LandscapeMonitor(every_n_steps=4, extras=extras, report=Report(images="all"))
    with pytest.MonkeyPatch.context() as patch:  # the others take seconds, and are tested elsewhere
        patch.setattr(figures, "FIGURES", {"margin": figures.FIGURES["margin"]})
        train(PLAIN, folder / "run", [monitor])
    return recording, monitor, run_of(folder / "run"), folder / "run"


# ------------------------------------------------------------------------------------------- rows


def test_rows_equal_a_recomputation_by_brute_force(measured):
    recording, _, run, _ = measured
    brute = BruteForce(recording, PLAIN.module, PLAIN.autocast)
    norms = {(row.step, row.parameter): row.norm for row in run.tables["gradient_norms"]}
    entries = {row.step: row for row in run.tables["gradient_entries"]}
    assert list(entries) == [0, 4, 8, 12, 16]
    for step in recording.steps[::4]:
        _, here = brute.window(step, {n: step.before[n] for n in brute.names}, gradient=True)
        _, there = brute.window(step, brute.reference, gradient=True)
        row = entries[step.step]
        assert row.here == pytest.approx(max(float(g.abs().max()) for g in here.values()), rel=1e-6)
        expected = max(float(g.abs().max()) for g in there.values())
        assert row.there == pytest.approx(expected, rel=1e-6)
        for name, gradient in there.items():
            assert norms[step.step, name] == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_what_an_extra_does_outlasts_nothing(measured, tmp_path):
    """The table is that of a run without extras."""
    alone = LandscapeMonitor(every_n_steps=4)
    train(PLAIN, tmp_path, [alone])
    assert alone.table == measured[1].table


def test_its_csv_has_the_fields_of_its_rows(measured):
    _, _, run, _ = measured
    with (run.path / "gradient_entries.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "here", "there", "grew", "schema"]
    assert [float(row["here"]) for row in rows] == [
        row.here for row in run.tables["gradient_entries"]
    ]
    assert {row["grew"] for row in rows} == {"False"}


def test_load_gives_it_to_pandas(measured):
    _, _, run, _ = measured
    frame = run.to_pandas("gradient_norms")
    assert list(frame.columns) == ["step", "parameter", "norm"]
    assert len(frame) == len(run.tables["gradient_norms"]) == 5 * 6
    assert frame["parameter"].iloc[0] == "net.0.weight"
    assert frame["norm"].dtype == float
    assert run.to_pandas("gradient_entries")["grew"].dtype == bool


# -------------------------------------------------------------------------------------- the report


def test_its_part_of_the_summary_is_merged_key_by_key(measured):
    _, monitor, run, _ = measured
    smoothness = run.summary["conditions"]["smoothness"]
    assert smoothness["of_gradients"] == smoothness["of_norms"] == 5
    assert "value" in smoothness  # what was there stays
    assert run.summary["gradients"]["probes"] == 5
    assert json.loads((run.path / "summary.json").read_text()) == monitor.summary


def test_its_sentence_is_in_the_verdict(measured):
    _, _, run, _ = measured
    largest_entry = max(row.here for row in run.tables["gradient_entries"])
    assert f" The largest gradient entry was {largest_entry:.4g}." in run.summary["verdict"]


def test_its_curves_are_logged_at_the_steps_of_its_rows(measured):
    _, _, run, folder = measured
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {int(r["step"]): r["landscape/gradients/largest"] for r in rows}
    found = {step: float(value) for step, value in logged.items() if value}
    assert found == {row.step: row.here for row in run.tables["gradient_entries"]}


def test_its_picture_is_drawn_with_all_others(measured):
    _, _, run, _ = measured
    names = {path.name for path in (run.path / "figures").iterdir()}
    assert {"gradients.pdf", "gradients.png", "margin.pdf"} <= names


def test_its_cost_is_said_before_training(tmp_path, lightning_says):
    train(PLAIN, tmp_path, [LandscapeMonitor(extras=[Gradients()])], epochs=1)
    assert "gradients at both ends" in lightning_says()


# ---------------------------------------------------------------------------------- stop and resume


def fit(folder, monitor, epochs, ckpt_path=None):
    """Train a module without random numbers; a checkpoint is saved after each epoch."""
    pl.seed_everything(1, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[monitor, ModelCheckpoint(folder / "checkpoints", save_last=True)],
    )
    trainer.fit(Net(), loader(shuffle=False), ckpt_path=ckpt_path)
    return run_of(folder)


@pytest.fixture
def reference(tmp_path):
    return fit(tmp_path / "first", LandscapeMonitor(), 1).path / "reference.safetensors"


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_a_live_run_that_stopped_goes_on_with_its_rows(reference, tmp_path):
    def monitor():
        return LandscapeMonitor(reference, every_n_steps=3, extras=[Gradients(), Norms()])

    fit(tmp_path / "stopped", monitor(), 1)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    states = torch.load(last, weights_only=True)["callbacks"]  # plain values alone
    (state,) = [state for key, state in states.items() if "LandscapeMonitor" in key]
    rows = [row for part in state["extras"].values() for row in part["rows"]]
    assert {step for step, _, _ in rows} == {0, 3, 6, 9}
    resumed = fit(tmp_path / "resumed", monitor(), 2, last)
    straight = fit(tmp_path / "straight", monitor(), 2)
    assert [row.step for row in resumed.tables["norms"]] == [0, 3, 6, 9, 12, 15, 18]
    assert resumed.tables == straight.tables
    assert resumed.summary["gradients"] == straight.summary["gradients"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_two_objects_of_one_class_keep_their_rows_apart(reference, tmp_path):
    class Named(Norms):
        def __init__(self, name, value):
            self.tables, self.value = {name: NormRow}, value

        def at(self, step):
            return [NormRow(step.number, "all", self.value)]

        def summary(self, findings):
            return {}

    def monitor():
        extras = [Named("ones", 1.0), Named("twos", 2.0)]
        return LandscapeMonitor(reference, every_n_steps=3, extras=extras)

    fit(tmp_path / "stopped", monitor(), 1)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    run = fit(tmp_path / "resumed", monitor(), 2, last)
    assert [row.norm for row in run.tables["ones"]] == 7 * [1.0]
    assert [row.norm for row in run.tables["twos"]] == 7 * [2.0]


def test_a_probe_that_is_thinned_out_takes_its_rows_with_it(reference, tmp_path):
    arguments = {"every_n_steps": 1, "max_probes": 4, "extras": [Gradients()]}
    run = fit(tmp_path / "live", LandscapeMonitor(reference, **arguments), 1)
    steps = [probe.step for probe in run.table]
    assert steps == [0, 4, 8]
    assert [row.step for row in run.tables["gradient_entries"]] == steps


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("mode", ["final", "file"])
def test_an_extra_that_raises_ends_alone_with_a_warning(mode, reference, tmp_path):
    where = "final" if mode == "final" else reference
    extras = [Failing(), Norms()]
    with pytest.warns(UserWarning, match="Failing failed at step 4, ValueError: no idea. It ends"):
        run = fit(tmp_path, LandscapeMonitor(where, every_n_steps=2, extras=extras), 1)
    assert [row.step for row in run.tables["failing"]] == [0, 2]
    assert [row.step for row in run.tables["norms"]] == [0, 2, 4, 6, 8]
    assert all(probe.evaluated for probe in run.table)
    assert run.summary["run"]["complete"]


def test_a_record_that_is_not_measurable_costs_that_record_alone(tmp_path):
    failing = Failing(NotMeasurable("not this one"), only_there=True)
    monitor = LandscapeMonitor(every_n_steps=2, extras=[failing])
    run = fit(tmp_path, monitor, 1)
    assert [row.step for row in run.tables["failing"]] == [0, 2, 6, 8]
    assert [probe.step for probe in run.table] == [0, 2, 4, 6, 8]
    assert run.summary["run"]["dropped"] == {"non_finite": 0, "no_loss": 0, "unevaluable": 0}


def raises(*args, **kwargs):
    raise ValueError("no idea")


@pytest.mark.parametrize("method", ["summary", "sentence", "curves"])
@pytest.mark.parametrize("mode", ["final", "file"])
def test_a_failing_report_of_an_extra_costs_its_own_part_alone(mode, method, reference, tmp_path):
    broken = type("Broken", (Norms,), {method: raises})
    where = "final" if mode == "final" else reference
    with pytest.warns(UserWarning, match=f"Broken.{method} failed, ValueError: no idea"):
        run = fit(tmp_path, LandscapeMonitor(where, every_n_steps=2, extras=[broken()]), 1)
    assert len(run.tables["norms"]) == len(run.table) == 5
    assert run.summary["run"]["complete"]
    assert run.summary["verdict"].startswith("The α-β-condition")


def test_curves_are_asked_for_where_there_are_rows_alone(tmp_path):
    """`Gradients.curves` takes the one row of a probe: before x_p is known there is none."""
    monitor = LandscapeMonitor(every_n_steps=2, extras=[Gradients()])
    assert len(fit(tmp_path, monitor, 1).table) == 5


@pytest.mark.parametrize("value", [float("nan"), torch.ones(2), {1, 2}], ids=type)
def test_a_part_of_the_summary_that_json_cannot_hold_costs_that_part_alone(value, tmp_path):
    broken = type("Broken", (Norms,), {"summary": lambda self, findings: {"broken": value}})
    with pytest.warns(UserWarning, match=r"Broken.summary failed, (ValueError|TypeError)"):
        run = fit(tmp_path, LandscapeMonitor(every_n_steps=2, extras=[broken()]), 1)
    assert "broken" not in run.summary
    assert run.summary["run"]["complete"]


class WithPicture(Norms):
    @classmethod
    def figures(cls, drawn):
        return {"of_norms": drawn}


def test_a_failing_picture_costs_itself_alone(tmp_path, monkeypatch):
    broken = type("Broken", (Norms,), {"figures": classmethod(raises)})
    monkeypatch.setattr(figures, "FIGURES", {"margin": figures.FIGURES["margin"]})
    run = fit(tmp_path, LandscapeMonitor(every_n_steps=2, extras=[Norms()]), 1)
    data = figures.Drawn(run.table, run.summary, run.tables)
    with pytest.warns(UserWarning, match="Broken.figures failed, ValueError: no idea"):
        found = figures.draw_all(data, [broken, WithPicture])
    assert "of_norms" in found
    assert "margin" in found


# ---------------------------------------------------------------------------------------- refusals


def test_two_extras_with_one_table_are_refused():
    with pytest.raises(MisconfigurationException, match="the table 'norms' more than once"):
        LandscapeMonitor(extras=[Norms(), Norms()])


def test_a_table_called_probes_is_refused():
    kind = type("Probes", (Norms,), {"tables": {"probes": NormRow}})
    with pytest.raises(MisconfigurationException, match="'probes'"):
        LandscapeMonitor(extras=[kind()])


def test_a_table_with_the_name_of_ours_and_other_rows_is_refused():
    """`load` would read it as ours."""
    kind = type("Mine", (Norms,), {"tables": {"segments": NormRow}})
    with pytest.raises(
        MisconfigurationException,
        match="'segments' of NormRow; rows of that table are SegmentPoint",
    ):
        LandscapeMonitor(extras=[kind()])
    LandscapeMonitor(extras=[type("Mine", (Segments,), {})()])  # a subclass has our rows


@dataclass(frozen=True)
class VectorRow:
    step: int
    gradient: list[float]


def test_rows_with_a_field_that_a_csv_cannot_hold_are_refused_at_once():
    kind = type("Vectors", (Norms,), {"tables": {"vectors": VectorRow}})
    with pytest.raises(
        MisconfigurationException, match=r"Vectors.*a field gradient of type list\[float\]"
    ):
        LandscapeMonitor(extras=[kind()])


def test_rows_that_are_no_dataclass_are_refused_at_once():
    kind = type("Tuples", (Norms,), {"tables": {"tuples": tuple}})
    with pytest.raises(MisconfigurationException, match="Tuples"):
        LandscapeMonitor(extras=[kind()])


@pytest.mark.parametrize("value", [torch.tensor(1.0), np.float32(1.0), [1.0]], ids=type)
def test_a_value_that_a_csv_cannot_hold_ends_the_extra(value, tmp_path):
    """A tensor would be written as text, which nobody could read back."""

    class Tensors(Norms):
        def at(self, step):
            return [NormRow(step.number, "all", value)]

    with pytest.warns(UserWarning, match="Tensors failed at step 0.*the field norm of NormRow"):
        run = fit(tmp_path, LandscapeMonitor(every_n_steps=2, extras=[Tensors()]), 1)
    assert "norms" not in run.tables
    assert len(run.table) == 5


def test_a_row_of_another_class_ends_the_extra(tmp_path):
    class Other(Norms):
        def at(self, step):
            return [EntryRow(step.number, 1.0, None, True)]

    with pytest.warns(UserWarning, match="found a row of EntryRow from Other"):
        fit(tmp_path, LandscapeMonitor(every_n_steps=2, extras=[Other()]), 1)


# ------------------------------------------------------------------------------------------- copies


def test_each_fit_works_with_a_copy(tmp_path):
    extra = Gradients()
    monitor = LandscapeMonitor(every_n_steps=3, extras=[extra])
    one = fit(tmp_path / "one", monitor, 1)
    two = fit(tmp_path / "two", monitor, 1)
    assert one.tables == two.tables
    assert "_rows" not in vars(extra)


def test_two_monitors_may_share_an_extra(tmp_path):
    extra = Norms()
    often = LandscapeMonitor(every_n_steps=2, extras=[extra], prefix="often")
    rarely = LandscapeMonitor(every_n_steps=5, extras=[extra], prefix="rarely")
    train(PLAIN, tmp_path, [often, rarely], epochs=1)
    folder = tmp_path / "lightning_logs" / "version_0"
    found = [[row.step for row in load(folder / n).tables["norms"]] for n in ("often", "rarely")]
    assert found == [[0, 2, 4, 6, 8], [0, 5]]


def test_extras_of_the_package_and_of_the_user_go_together(tmp_path):
    extras = (Segments(2), Layers(), Norms())
    run = fit(tmp_path, LandscapeMonitor(every_n_steps=4, extras=extras), 1)
    assert sorted(run.tables) == ["layers", "norms", "segments"]
