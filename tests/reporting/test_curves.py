"""Curves while training: from one row, and only for loggers that are there."""

import math

import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.reporting import scalars
from lightning_landscape.reporting.conditions import metrics
from lightning_landscape.reporting.curves import RunCurves

PROBE = Probe(3, 0, 2.0, 1.5, 0.25, 0.5, 4.0, 1.0, 0.1, 0.0, None, 3)


class Listing(DummyLogger):
    """Keeps what it is told, until it fails."""

    def __init__(self):
        super().__init__()
        self.values, self.fails = {}, False

    def log_metrics(self, metrics, step=None):
        if self.fails:
            raise OSError("full")
        self.values |= metrics


def test_the_constants_of_a_single_probe_are_those_of_the_metrics():
    logger = Listing()
    RunCurves([logger], "landscape", live=True).add(PROBE, 0.01, {"extra/value": 7.0})
    assert logger.values["landscape/extra/value"] == 7.0
    assert logger.values["landscape/overhead"] == 0.01
    for key, metric in metrics().items():
        metric.update(**ProbeTable([PROBE]).columns(*metric.columns))
        value = float(metric.compute()["ratio"])
        assert logger.values.get(f"landscape/{key}/{metric.constant}", math.nan) == pytest.approx(
            value, rel=0, nan_ok=True
        )


def test_nothing_is_computed_for_no_logger(monkeypatch):
    logger = Listing()
    curves = RunCurves([logger], "landscape", live=True)
    logger.fails = True
    with pytest.warns(UserWarning, match="no longer logs to Listing"):
        curves.add(PROBE, 0.01, {})
    monkeypatch.setattr(
        scalars, "known_while_training", lambda _: pytest.fail("computed for nobody")
    )
    curves.add(PROBE, 0.01, {})
    RunCurves([], "landscape", live=True).add(PROBE, 0.01, {})
