"""One thread a test process: several processes share few cores, and small tensors gain nothing from more."""

import logging
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

# machines are noisy, and an example may take long for no fault of its own; filtered examples are counted as not tried
settings.register_profile(
    "noisy",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("noisy")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # inherited by what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _quiet_and_elsewhere(tmp_path, monkeypatch):
    """Keep default_root_dir and Lightning's advice out of the way."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _without_pictures(request, monkeypatch):
    """Draw no pictures at the end of the hundreds of runs here, but where a test is marked ``pictures``."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("lightning_landscape.reporting.pictures.draw", lambda *args: {})


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    """Return a folder with real runs of two widths and two seeds."""
    from tests.helpers.grid import train_grid

    return train_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture
def lightning_says(caplog):
    """Return a function that gives everything said at INFO or above, with Lightning's logger audible."""
    logger = logging.getLogger("lightning.pytorch")
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)
