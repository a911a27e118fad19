"""On a GPU: training is not moved, replays are exact, the table equals a recomputation.

``pytest -m gpu`` runs them; elsewhere they are skipped.
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import random
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_landscape import LandscapeMonitor, Layers, Report, Secant, Store
from tests.helpers import modules
from tests.helpers.brute_force import Recording, recorded
from tests.helpers.settings import SETTINGS
from tests.integration.test_bit_identity import assert_same
from tests.integration.test_brute_force import assert_equals_brute_force

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

half = partial(torch.autocast, "cuda", dtype=torch.float16)
bf16 = partial(torch.autocast, "cuda", dtype=torch.bfloat16)
AUTOCAST = {"16-mixed": half, "bf16-mixed": bf16}

# the first two draw from or keep state on the CPU by construction; dropout of recurrent layers has
# a test of its own
NAMES = [name for name in SETTINGS if name not in {"own_generators", "object_batches", "recurrent"}]


def train(setting, folder, callbacks=(), module_class=None, **settings):
    """Train a module on the GPU, with the real GradScaler where the setting has one."""
    pl.seed_everything(1, verbose=False)
    module = (module_class or setting.module)()
    precision = {"precision": "16-mixed"} if setting.scaler else {}
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=2,
        logger=CSVLogger(folder, flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        deterministic="warn",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **{**setting.trainer, **precision, **settings},
    )
    trainer.fit(module, modules.loader(setting.batches))
    return trainer, module


def left(trainer, module):
    return {
        "module": module.state_dict(),
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "metrics": dict(trainer.callback_metrics),
        "rng": (
            torch.get_rng_state(),
            torch.cuda.get_rng_state(),
            random.getstate(),
            np.random.get_state(),
        ),
        "scaler": scaler.state_dict()
        if (scaler := getattr(trainer.precision_plugin, "scaler", None))
        else {},
    }


@pytest.mark.parametrize("name", NAMES)
def test_with_and_without_the_monitor(name, tmp_path):
    setting = SETTINGS[name]
    without = left(*train(setting, tmp_path / "without"))
    monitor = LandscapeMonitor(every_n_steps=3, extras=[Layers()], report=Report(images=None))
    assert_same(without, left(*train(setting, tmp_path / "with", [monitor])))
    assert len(monitor.table) > 1
    assert monitor.summary["run"]["fidelity"]["exact"] is True


@pytest.mark.parametrize("name", NAMES)
def test_the_table_equals_a_recomputation(name, tmp_path):
    setting = SETTINGS[name]
    precision = "16-mixed" if setting.scaler else setting.trainer.get("precision")
    setting = dataclasses.replace(
        setting,
        autocast=AUTOCAST.get(precision, contextlib.nullcontext),
        rtol=max(setting.rtol, 3e-3 if precision else 2e-4),
    )
    recording, module_class = Recording(), recorded(setting.module)
    module_class.recording = recording
    train(setting, tmp_path / "recorded", [recording], module_class)
    monitor = LandscapeMonitor(every_n_steps=1, report=Report(images=None))
    train(setting, tmp_path / "run", [monitor])
    assert_equals_brute_force(monitor.table, recording, setting)


def one_recurrent_run(folder, monitored):
    """Train a recurrent module with dropout between its layers; return weights and fidelity."""
    callbacks = [LandscapeMonitor(every_n_steps=3, report=Report(images=None))] if monitored else []
    _, module = train(SETTINGS["recurrent"], folder, callbacks)
    fidelity = callbacks[0].summary["run"]["fidelity"] if monitored else None
    return {name: value.cpu() for name, value in module.state_dict().items()}, fidelity


def in_a_fresh_process(*args):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(one_recurrent_run, *args).result()


def test_dropout_between_recurrent_layers_is_not_moved(tmp_path):
    """cuDNN keeps the state of its random numbers as long as the process lives."""
    plain, _ = in_a_fresh_process(tmp_path / "a", False)
    again, _ = in_a_fresh_process(tmp_path / "b", False)
    assert_same(plain, again)
    monitored, fidelity = in_a_fresh_process(tmp_path / "c", True)
    assert_same(plain, monitored)
    assert fidelity["exact"] is False  # its masks cannot be drawn again, and the report says so


def test_secants_and_exact_sums(tmp_path):
    setting = SETTINGS["plain"]
    without = left(*train(setting, tmp_path / "without"))
    monitor = LandscapeMonitor(
        every_n_steps=2, every_step=True, extras=[Secant()], report=Report(images=None)
    )
    assert_same(without, left(*train(setting, tmp_path / "with", [monitor])))
    assert monitor.summary["run"]["exact_sums"]["steps"] == 20
    assert monitor.summary["conditions"]["smoothness"]["secant"]["probes"] > 1


@pytest.mark.parametrize("codec", ["native", "bfloat16", "int8"])
def test_what_is_queued_is_on_the_host_and_training_is_not_moved(codec, tmp_path, monkeypatch):
    """Records are copied off the device before the next step: they hold x_k and g_k."""
    from lightning_landscape.store.store import RecordStore

    original, devices = RecordStore._write, set()

    def write(store, record):
        parts = (record.x, record.gradient.raw)
        devices.update(tensor.device.type for part in parts for tensor in part.values())
        original(store, record)

    monkeypatch.setattr(RecordStore, "_write", write)
    ends = []
    for monitors in ([], [LandscapeMonitor(every_n_steps=1, store=Store(dtype=codec))]):
        ends.append(left(*train(SETTINGS["plain"], tmp_path / str(len(ends)), monitors)))
    assert devices == {"cpu"}
    assert_same(*ends)
    assert monitors[0].summary["run"]["fidelity"]["exact"] is True
