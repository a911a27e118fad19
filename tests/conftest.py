"""Fixtures of all tests, and one thread per process: test processes share the cores."""

import logging
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

# No deadline: on a busy machine any example can take long. Filtered examples do not count as tried.
settings.register_profile(
    "noisy",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("noisy")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# A shell makes its background processes ignore SIGINT, which the interrupt tests need.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _quiet_and_elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder and hide Lightning's advice."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _without_pictures(request, monkeypatch):
    """Draw no pictures at the end of a run, except in tests marked ``pictures``."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("lightning_landscape.reporting.pictures.draw", lambda *args: {})


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    """Return a folder with real runs of two widths and two seeds."""
    from tests.helpers.grid import train_grid

    return train_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture
def lightning_says(caplog):
    """Return a function that returns the log at INFO or above, including Lightning's logger."""
    logger = logging.getLogger("lightning.pytorch")
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)
