"""What only some loggers can show: a layout of charts, hyper-parameters with results, text, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CATEGORY = "Loss landscape"
"""Of the charts in TensorBoard's tab "Custom scalars" """

RESULTS = (
    "alpha_beta/alpha",
    "alpha_beta/beta",
    "alpha_beta/informativeness",
    "bound/final",
    "alpha_beta/rate",
    "alpha_beta/neighbourhood",
)
"""Curves whose last points are a run's results: metrics of TensorBoard's tab "HParams".

Its table shows the first five at once, ``hp_metric`` among them; the others are a click away.
"""


CONSTANTS = ("polyak_lojasiewicz/mu$", "restricted_secant/mu$", "aiming/theta$", "smoothness/L$")
"""Of single probes, in one chart: few enough to tell apart"""


def layout(prefix: str) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of one category, as ``SummaryWriter.add_custom_scalars`` takes them.

    Example:
        >>> layout("landscape")["Loss landscape"]["Loss gap and the bound in force"]
        ['Margin', ['landscape/bound/gap', 'landscape/bound/lower', 'landscape/bound/in_force']]
    """
    tag = (
        f"{prefix}/{{}}".format
    )  # a multiline chart takes regular expressions, a margin chart names
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
        "α, β and α − β before x_p is known": [
            "Multiline",
            [tag("live/alpha_beta/(alpha|beta|rate)$")],
        ],
    }
    return {CATEGORY: charts}


def declare(
    loggers: Iterable[Logger],
    prefix: str,
    *,
    with_layout: bool,
    hparams: Mapping[Logger, Mapping[str, Any]],
) -> None:
    """Declare layout and results before the module and Lightning do.

    Of two layouts TensorBoard takes the later one, of two declarations of results the first: a layout of the user's module
    replaces ours, and our results stand beside ``hp_metric``.

    Args:
        loggers: the Trainer's.
        prefix: group of all tags.
        with_layout: whether to write a layout.
        hparams: of the loggers to which Lightning is about to declare them with ``hp_metric``.
    """
    if with_layout:
        _each(
            loggers,
            "add_custom_scalars",
            lambda writer, _: writer.add_custom_scalars(layout(prefix)),
        )
    named = [logger for logger in loggers if logger in hparams]
    _each(
        named,
        "add_hparams",
        lambda writer, logger: _declare_results(writer, prefix, hparams[logger]),
    )


def _declare_results(writer: Any, prefix: str, params: Mapping[str, Any]) -> None:
    """Write which hyper-parameters and results there will be, without a value of any."""
    from torch.utils.tensorboard.summary import hparams

    results = ["hp_metric", *(f"{prefix}/{name}" for name in RESULTS)]
    experiment, _, _ = hparams(  # type: ignore[no-untyped-call]
        dict(params), dict.fromkeys(results, 0.0)
    )
    writer._get_file_writer().add_summary(
        experiment
    )  # as Lightning does; ``add_hparams`` would start a run of its own


def show_text(loggers: Iterable[Logger], prefix: str, text: str, step: int) -> None:
    """Write a text in Markdown under the tag ``<prefix>/verdict``."""
    _each(loggers, "add_text", lambda writer, _: writer.add_text(f"{prefix}/verdict", text, step))


def show_figures(
    loggers: Iterable[Logger], prefix: str, figures: Mapping[str, Figure], step: int
) -> None:
    """Give pictures to the loggers that take them: TensorBoard, Weights & Biases, MLflow; the others do without."""

    def in_tensorboard(writer: Any, _: Logger) -> None:
        for name, figure in figures.items():
            writer.add_figure(f"{prefix}/{name}", figure, step, close=False)

    def in_mlflow(client: Any, logger: Any) -> None:
        for name, figure in figures.items():
            client.log_figure(logger.run_id, figure, f"{prefix}/{name}.png")

    def in_wandb(_: Any, logger: Any) -> None:
        for name, figure in figures.items():
            logger.log_image(key=f"{prefix}/{name}", images=[figure])

    wandb = [logger for logger in loggers if hasattr(logger, "log_image")]
    _each(wandb, "log", in_wandb)
    others = [logger for logger in loggers if logger not in wandb]
    _each(others, "add_figure", in_tensorboard)
    _each(others, "log_figure", in_mlflow)


def _each(loggers: Iterable[Logger], method: str, show: Callable[[Any, Logger], None]) -> None:
    """Call ``show`` for each logger whose ``experiment`` has a method; one that fails is named, and costs nothing else."""
    for logger in loggers:
        if isinstance(logger, DummyLogger):
            continue
        try:
            experiment = getattr(logger, "experiment", None)
            if hasattr(experiment, method):
                show(experiment, logger)
        except Exception as error:
            rank_zero_warn(
                f"LandscapeMonitor could not show everything in {type(logger).__name__}: {error}; its files have it"
            )
