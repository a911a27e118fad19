"""Curves: which tag has which value at which probe, and writing them to any logger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_landscape import functional as F  # noqa: N812 - as torch users know it
from lightning_landscape.probes import Probe, ProbeTable

Curves = dict[str, Tensor]
"""Values by tag (without prefix), one for each row of a table; ``nan`` is no point"""


def known_while_training(table: ProbeTable) -> Curves:
    """Return the curves that need no reference."""
    loss, infimum, squares = (table.column(name) for name in ("loss", "loss_infimum", "grad_sq_norm"))
    return {
        "loss": loss,
        "grad_norm": squares.sqrt(),
        "step_size": table.column("step_size"),
        "polyak_lojasiewicz/mu": F.polyak_lojasiewicz_ratio(grad_sq_norm=squares, loss=loss, loss_infimum=infimum),
        "smoothness/L": F.smoothness_ratio(grad_sq_norm=squares, loss=loss, loss_infimum=infimum),
    }


def known_with_reference(table: ProbeTable) -> Curves:
    """Return the curves of a probe's own values that need the reference."""
    product, squares, distance = (table.column(n) for n in ("inner_product", "grad_sq_norm", "sq_distance"))
    return {
        "reference_loss": table.column("reference_loss"),
        "gap": table.column("loss") - table.column("reference_loss"),
        "inner_product": product,
        "distance": distance.sqrt(),
        "cosine": F.cosine(inner_product=product, grad_sq_norm=squares, sq_distance=distance),
    }


def running_alpha_beta(table: ProbeTable, drop: float | None = None) -> Curves:
    """Return the best pair over the probes up to each one; empty where no pair can be defined (an infimum too high).

    Args:
        table: rows whose reference columns are known.
        drop: what training achieved; without it there is no curve of informativeness.
    """
    columns = table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
    if not len(table) or bool((torch.minimum(columns["loss"], columns["reference_loss"]) < columns["loss_infimum"]).any()):
        return {}
    pairs = F.running_best_alpha_beta(**columns)
    excess = columns["reference_loss"] - columns["loss_infimum"]
    errors = excess.cumsum(0) / torch.arange(1, len(table) + 1)
    neighbourhood = torch.stack([pair.ratio for pair in pairs]) * errors
    curves = {
        f"alpha_beta/{name}": torch.stack([getattr(pair, name) for pair in pairs]) for name in ("alpha", "beta", "rate")
    }
    curves["alpha_beta/neighbourhood"] = neighbourhood
    if drop is not None and drop > 0:
        curves["alpha_beta/informativeness"] = neighbourhood / drop
    return curves


def alpha_beta_margin(table: ProbeTable, alpha: float | None, beta: float | None) -> Curves:
    """Return the margin of each probe for the reported pair; empty without one."""
    if alpha is None or beta is None:
        return {}
    columns = table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
    return {"alpha_beta/margin": F.alpha_beta_margin(alpha, beta, **columns)}


class CurveWriter:
    """Writes curves to loggers, each tag in ascending steps; a logger that fails is named once and then left alone.

    Args:
        loggers: any of Lightning's.
        prefix: group of all tags.
    """

    def __init__(self, loggers: Iterable[Logger], prefix: str) -> None:
        self._loggers = list(loggers)
        self._prefix = prefix

    def write(self, table: Iterable[Probe], curves: Mapping[str, Tensor]) -> None:
        """Write curves at the probes' own steps."""
        for row, probe in enumerate(table):
            values = {tag: float(curve[row]) for tag, curve in curves.items()}
            self.write_point(probe.logged_step, values)

    def write_point(self, step: int, values: Mapping[str, float]) -> None:
        """Write values at one step, but those that are not finite."""
        finite = {f"{self._prefix}/{tag}": value for tag, value in values.items() if math.isfinite(value)}
        if not finite:
            return
        for logger in tuple(self._loggers):
            separator = logger.group_separator
            try:
                logger.log_metrics({tag.replace("/", separator): value for tag, value in finite.items()}, step=step)
            except Exception as error:
                self._loggers.remove(logger)
                rank_zero_warn(f"LandscapeMonitor no longer logs to {type(logger).__name__}: {error}; its files go on")
