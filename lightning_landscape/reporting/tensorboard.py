"""Output for loggers that can show it: a layout of charts, hyper-parameters, text, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CATEGORY = "Loss landscape"
"""Category of our charts in TensorBoard's tab "Custom scalars" """

RESULTS = (
    "alpha_beta/alpha",
    "alpha_beta/beta",
    "alpha_beta/informativeness",
    "bound/final",
    "alpha_beta/rate",
    "alpha_beta/neighbourhood",
)
"""Curves whose last points are the metrics of a run in TensorBoard's tab "HParams".

Its table shows five metrics at first, ``hp_metric`` and the first four of these.
"""


CONSTANTS = ("polyak_lojasiewicz/mu$", "restricted_secant/mu$", "aiming/theta$", "smoothness/L$")
"""Constants of single probes in one chart; with more of them the lines could not be told apart"""


def layout(prefix: str, *, live_losses: bool = False) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of one category in the form of ``SummaryWriter.add_custom_scalars``.

    Args:
        prefix: group of all tags.
        live_losses: whether losses are evaluated at the present iterate, hence α and β.

    Example:
        >>> layout("landscape")["Loss landscape"]["Loss gap and the bound in force"]
        ['Margin', ['landscape/bound/gap', 'landscape/bound/lower', 'landscape/bound/in_force']]
    """
    # Multiline charts match tags by regular expressions, margin charts by name.
    tag = f"{prefix}/{{}}".format
    live = {
        False: ("Cosine of gradient and x − the present iterate", tag("live/cosine")),
        True: ("α, β and α − β at the present iterate", tag("live/alpha_beta/(alpha|beta|rate)$")),
    }
    title, curves = live[live_losses]
    charts = {
        "Loss gap and the bound in force": [
            "Margin",
            [tag("bound/gap"), tag("bound/lower"), tag("bound/in_force")],
        ],
        "Margin of the α-β-condition": ["Multiline", [tag("alpha_beta/margin")]],
        "Cosine of gradient and x − x_p": ["Multiline", [tag("cosine")]],
        "α, β and α − β up to here": ["Multiline", [tag("alpha_beta/(alpha|beta|rate)$")]],
        "Neighbourhood up to here": ["Multiline", [tag("alpha_beta/neighbourhood$")]],
        "Constants of single probes": ["Multiline", [tag(name) for name in CONSTANTS]],
        title: ["Multiline", [curves]],
    }
    return {CATEGORY: charts}


def declare(
    loggers: Iterable[Logger],
    prefix: str,
    *,
    with_layout: bool,
    live_losses: bool = False,
    hparams: Mapping[Logger, Mapping[str, Any]],
) -> None:
    """Declare layout and results before the user's module and Lightning do.

    TensorBoard uses the last layout of a run, so a layout of the user's module replaces ours. It
    uses the first declaration of results, so ours has to come before Lightning's and includes
    ``hp_metric``.

    Args:
        loggers: the loggers of the Trainer.
        prefix: group of all tags.
        with_layout: whether to write a layout.
        live_losses: whether losses are evaluated at the present iterate.
        hparams: hyper-parameters by logger, for the loggers to which Lightning is about to write
            them with ``hp_metric``.
    """
    if with_layout:
        _each(
            loggers,
            "add_custom_scalars",
            lambda writer, _: writer.add_custom_scalars(layout(prefix, live_losses=live_losses)),
        )
    named = [logger for logger in loggers if logger in hparams]
    _each(
        named,
        "add_hparams",
        lambda writer, logger: _declare_results(writer, prefix, hparams[logger]),
    )


def _declare_results(writer: Any, prefix: str, params: Mapping[str, Any]) -> None:
    """Write the names of hyper-parameters and results, without values of results."""
    # Imported here because it is slow, and because only TensorBoard's logger needs it.
    from torch.utils.tensorboard.summary import hparams

    results = ["hp_metric", *(f"{prefix}/{name}" for name in RESULTS)]
    experiment, _, _ = hparams(  # type: ignore[no-untyped-call]
        dict(params), dict.fromkeys(results, 0.0)
    )
    # ``add_hparams`` would start a run of its own; Lightning writes the summary in this way too.
    writer._get_file_writer().add_summary(experiment)


def show_text(loggers: Iterable[Logger], prefix: str, text: str, step: int) -> None:
    """Write a text in Markdown under the tag ``<prefix>/verdict``."""
    _each(loggers, "add_text", lambda writer, _: writer.add_text(f"{prefix}/verdict", text, step))


def show_figures(
    loggers: Iterable[Logger], prefix: str, figures: Mapping[str, Figure], step: int
) -> None:
    """Give pictures to the loggers that take them: TensorBoard, Weights & Biases, MLflow."""

    def in_tensorboard(writer: Any, _: Logger) -> None:
        for name, figure in figures.items():
            # Other loggers and the files need the figure too, so it stays open.
            writer.add_figure(f"{prefix}/{name}", figure, step, close=False)

    def in_mlflow(client: Any, logger: Any) -> None:
        for name, figure in figures.items():
            client.log_figure(logger.run_id, figure, f"{prefix}/{name}.png")

    def in_wandb(_: Any, logger: Any) -> None:
        for name, figure in figures.items():
            logger.log_image(key=f"{prefix}/{name}", images=[figure])

    # Weights & Biases takes images through its logger, not through its experiment.
    wandb = [logger for logger in loggers if hasattr(logger, "log_image")]
    _each(wandb, "log", in_wandb)
    others = [logger for logger in loggers if logger not in wandb]
    _each(others, "add_figure", in_tensorboard)
    _each(others, "log_figure", in_mlflow)


def _each(loggers: Iterable[Logger], method: str, show: Callable[[Any, Logger], None]) -> None:
    """Call ``show`` for each logger whose ``experiment`` has the method; warn if it fails."""
    for logger in loggers:
        if isinstance(logger, DummyLogger):
            continue
        try:
            experiment = getattr(logger, "experiment", None)
            if hasattr(experiment, method):
                show(experiment, logger)
        # A logger's failure must not cost the run: the same results are in files.
        except Exception as error:
            rank_zero_warn(
                f"LandscapeMonitor could not show everything in {type(logger).__name__}: {error}. "
                "The files of the run have all results"
            )
