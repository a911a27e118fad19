"""Output of loggers besides curves: layout, hyper-parameters, text, pictures; progress bars."""

import copy
import html
import json

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata

from lightning_landscape import LandscapeMonitor, Report, Segments, load
from lightning_landscape.reporting.tensorboard import RESULTS
from tests.helpers.modules import FEATURES, loader


class Saved(pl.LightningModule):
    def __init__(self, width=8, lr=0.1, name="small"):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, width), torch.nn.Tanh(), torch.nn.Linear(width, 4)
        )

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class WithLayout(Saved):
    """Writes its own layout when training starts."""

    def on_train_start(self):
        self.logger.experiment.add_custom_scalars({"Mine": {"loss": ["Multiline", ["train_loss"]]}})


def fit(folder, module=None, monitor=None, loggers=None, callbacks=(), **settings):
    pl.seed_everything(5, verbose=False)
    monitor = monitor or LandscapeMonitor(every_n_steps=3)
    loggers = [TensorBoardLogger(folder, name="", version="run")] if loggers is None else loggers
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 3,
            "logger": loggers,
            "enable_checkpointing": False,
            "enable_progress_bar": bool(callbacks),
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "callbacks": [monitor, *callbacks],
            **settings,
        }
    )
    trainer.fit(module or Saved(), loader(12))
    return trainer, monitor


def read(folder):
    accumulator = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}
    )
    accumulator.Reload()
    return accumulator


def layouts(folder):
    """Return the categories of each written layout, in order."""
    events = read(folder).Tensors("custom_scalars__config__")
    found = []
    for event in events:
        layout = layout_pb2.Layout()
        layout.ParseFromString(event.tensor_proto.string_val[0])
        found.append(layout.category)
    return found


@pytest.mark.parametrize("live_losses", [False, True])
def test_the_layout_names_tags_that_there_are(live_losses, tmp_path):
    fit(tmp_path, monitor=LandscapeMonitor(every_n_steps=3, live_losses=live_losses))
    ((category,),) = layouts(tmp_path / "run")
    assert category.title == "Loss landscape"
    tags = read(tmp_path / "run").Tags()["scalars"]
    charts = {chart.title: chart for chart in category.chart}
    margin = charts["Loss gap and the bound in force"].margin.series[0]
    assert {margin.value, margin.lower, margin.upper} <= set(tags)
    assert margin.upper == "landscape/bound/in_force"
    steps = [
        [e.step for e in read(tmp_path / "run").Scalars(tag)]
        for tag in (margin.value, margin.lower, margin.upper)
    ]
    # With different steps TensorBoard shows an error in place of the chart.
    assert steps[0] == steps[1] == steps[2]
    assert len(steps[0]) > 5
    import re

    for chart in category.chart:
        for pattern in chart.multiline.tag:
            assert any(re.search(pattern, tag) for tag in tags), (chart.title, pattern)


def test_a_layout_of_the_module_replaces_ours(tmp_path):
    fit(tmp_path, WithLayout())
    assert [[category.title for category in one] for one in layouts(tmp_path / "run")] == [
        ["Loss landscape"],
        ["Mine"],
    ]


def test_no_layout_where_none_is_wanted(tmp_path):
    fit(tmp_path, monitor=LandscapeMonitor(every_n_steps=3, report=Report(layout=False)))
    assert "custom_scalars__config__" not in read(tmp_path / "run").Tags()["tensors"]


def experiment(folder):
    """Return the declaration of a run that TensorBoard's HParams tab uses."""
    content = read(folder).SummaryMetadata(hparams_metadata.EXPERIMENT_TAG).plugin_data.content
    return hparams_metadata.parse_experiment_plugin_data(content)


def test_results_are_declared_beside_hp_metric_and_have_values_at_the_end(tmp_path):
    _, monitor = fit(tmp_path)
    found = experiment(tmp_path / "run")
    ours = [f"landscape/{name}" for name in RESULTS]
    assert [info.name.tag for info in found.metric_infos] == ["hp_metric", *ours]
    assert {info.name for info in found.hparam_infos} == {"width", "lr", "name"}
    accumulator = read(tmp_path / "run")
    last = {tag: accumulator.Scalars(tag)[-1].value for tag in ours}
    report, bounds = monitor.summary["conditions"]["alpha_beta"], monitor.summary["bounds"]
    for name in ("alpha", "beta", "rate", "neighbourhood", "informativeness"):
        assert last[f"landscape/alpha_beta/{name}"] == pytest.approx(report[name], rel=1e-6)
    in_force = bounds[monitor.summary["bound_in_force"]]
    assert last["landscape/bound/final"] == pytest.approx(in_force["value"], rel=1e-6)
    assert accumulator.Scalars("hp_metric")[0].value == -1


class OwnResults(Saved):
    """Declares its own results as in Lightning's documentation."""

    def on_train_start(self):
        self.logger.log_hyperparams(self.hparams, {"hp/best": 0.0})


def test_results_that_the_user_declares_stay(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
    fit(tmp_path, OwnResults(), loggers=[logger])
    assert [info.name.tag for info in experiment(tmp_path / "run").metric_infos] == ["hp/best"]


def test_nothing_is_declared_where_hyper_parameters_are_not_logged(tmp_path):
    fit(tmp_path, enable_autolog_hparams=False)
    assert not [
        tag for tag in read(tmp_path / "run").Tags()["tensors"] if tag.startswith("_hparams_")
    ]


def test_a_module_without_hyper_parameters_declares_nothing(tmp_path):
    class Unsaved(Saved):
        def __init__(self):
            pl.LightningModule.__init__(self)
            self.net = torch.nn.Linear(FEATURES, 4)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit(tmp_path, Unsaved())
    assert not [
        tag for tag in read(tmp_path / "run").Tags()["tensors"] if tag.startswith("_hparams_")
    ]


def test_the_text_is_the_verdict_and_its_tables(tmp_path):
    _, monitor = fit(tmp_path)
    accumulator = read(tmp_path / "run")
    (event,) = accumulator.Tensors("landscape/verdict/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert monitor.summary["verdict"] in html.unescape(text.replace("\\", ""))  # no markup in it
    assert "|" in text
    assert f"{monitor.summary['conditions']['alpha_beta']['alpha']:.4g}" in text


def with_pictures(images):
    return LandscapeMonitor(
        every_n_steps=3, report=Report(images=images), extras=[Segments(iterates=2)]
    )


@pytest.mark.slow
@pytest.mark.pictures
def test_pictures_are_in_the_logger_and_in_files(tmp_path):
    from lightning_landscape.reporting.figures import FIGURES

    for images, names in {"overview": {"overview"}, "all": {*FIGURES, "segments"}}.items():
        fit(tmp_path / images, monitor=with_pictures(images))
        run = tmp_path / images / "run"
        assert set(read(run).Tags()["images"]) == {f"landscape/{name}" for name in names}
        files = {path.name for path in (run / "landscape" / "figures").iterdir()}
        assert files == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")}


@pytest.mark.pictures
def test_one_picture_is_drawn_where_nothing_is_said(tmp_path):
    fit(tmp_path)
    assert read(tmp_path / "run").Tags()["images"] == ["landscape/overview"]


@pytest.mark.pictures
def test_no_pictures_where_none_are_wanted_and_a_failing_one_costs_nothing_else(
    tmp_path, monkeypatch
):
    fit(tmp_path / "a", monitor=LandscapeMonitor(every_n_steps=3, report=Report(images=None)))
    assert not read(tmp_path / "a" / "run").Tags()["images"]
    assert not (tmp_path / "a" / "run" / "landscape" / "figures").exists()

    def failing(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr("lightning_landscape.reporting.figures.overview", failing)
    with pytest.warns(UserWarning, match="could not draw its pictures: RuntimeError: no ink"):
        _, monitor = fit(tmp_path / "b")
    assert load(tmp_path / "b" / "run").summary == json.loads(json.dumps(monitor.summary))


@pytest.mark.pictures
def test_without_matplotlib_everything_else_works(tmp_path, monkeypatch, lightning_says):
    import sys

    for name in [
        name
        for name in sys.modules
        if name.startswith(("matplotlib", "lightning_landscape.reporting.figures"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("lightning_landscape.reporting.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, monitor = fit(tmp_path)
    assert (
        "draws no pictures without matplotlib: pip install lightning-landscape[plots]"
        in lightning_says()
    )
    assert monitor.summary["run"]["complete"]
    assert not (tmp_path / "run" / "landscape" / "figures").exists()


@pytest.mark.slow
@pytest.mark.pictures
def test_a_csv_logger_has_the_curves_and_no_pictures(tmp_path):
    fit(tmp_path, loggers=[CSVLogger(tmp_path, name="", version="run")])
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "landscape/alpha_beta/alpha" in header
    assert (tmp_path / "run" / "landscape" / "figures" / "overview.pdf").exists()


def test_the_progress_bar_shows_two_values_on_request(tmp_path):
    shown = {}

    class Looking(pl.callbacks.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            shown.update(trainer.progress_bar_metrics)

    _, monitor = fit(tmp_path / "a", callbacks=[TQDMProgressBar(), Looking()])
    assert not [name for name in shown if name.startswith("landscape/")]
    _, monitor = fit(
        tmp_path / "b",
        monitor=LandscapeMonitor(every_n_steps=3, report=Report(progress_bar=True)),
        callbacks=[TQDMProgressBar(), Looking()],
    )
    newest = monitor.table[-1]
    assert shown["landscape/grad_norm"] == pytest.approx(newest.grad_sq_norm**0.5, rel=1e-3)
    assert shown["landscape/smoothness"] == pytest.approx(
        newest.grad_sq_norm / (2 * newest.loss), rel=1e-3
    )


def test_the_progress_bar_does_not_take_the_users_names(tmp_path):
    class Named(Saved):
        """Logs values under names that we might use; a scheduler reads one of them."""

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("grad_norm", 1.0 + batch_idx, on_step=True)
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.log("smoothness", 1.0, logger=True)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
            return [optimizer], [
                {"scheduler": scheduler, "monitor": "grad_norm", "interval": "step"}
            ]

    bars = [TQDMProgressBar()]
    pl.seed_everything(1, verbose=False)
    one = Named()
    other = copy.deepcopy(one)
    plain, _ = fit(tmp_path / "a", one, LandscapeMonitor(every_n_steps=3), callbacks=bars)
    shown, monitor = fit(
        tmp_path / "b",
        other,
        LandscapeMonitor(every_n_steps=3, report=Report(progress_bar=True)),
        callbacks=bars,
    )
    for a, b in zip(
        plain.lightning_module.parameters(), shown.lightning_module.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    assert len(monitor.table) == 12


def test_the_evaluation_at_the_end_has_tqdms_bar(tmp_path, capfd):
    fit(tmp_path, callbacks=[TQDMProgressBar()])
    assert "landscape: probes at x_p" in capfd.readouterr().err


def test_the_evaluation_at_the_end_has_richs_bar_where_the_trainer_has(tmp_path, capfd):
    fit(
        tmp_path, callbacks=[RichProgressBar(console_kwargs={"force_terminal": True, "width": 120})]
    )
    captured = capfd.readouterr()
    assert "landscape: probes at x_p" in captured.out
    assert "landscape" not in captured.err


@pytest.mark.pictures
def test_weights_and_biases_gets_curves_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="landscape", save_dir=str(tmp_path), offline=True)
    fit(tmp_path, monitor=with_pictures("all"), loggers=[logger])
    assert "landscape/gap" in logger.experiment.summary.keys()  # noqa: SIM118 - it is no dictionary
    logger.experiment.finish()
    names = {path.name.split("_")[0] for path in tmp_path.rglob("media/images/landscape/*.png")}
    assert names == {"feasible", "bounds", "angle", "constants", "margin", "segments"}


@pytest.mark.pictures
@pytest.mark.filterwarnings("default")  # MLflow's own
def test_mlflow_gets_curves_and_pictures(tmp_path):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(
        "x",
        tracking_uri=f"sqlite:///{tmp_path}/runs.db",
        artifact_location=str(tmp_path / "artifacts"),
    )
    fit(tmp_path, monitor=with_pictures("all"), loggers=[logger])
    assert "landscape/gap" in logger.experiment.get_run(logger.run_id).data.metrics
    assert len(list((tmp_path / "artifacts").rglob("landscape/*.png"))) == 6
