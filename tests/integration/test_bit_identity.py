"""Runs with and without the monitor are bitwise the same."""

import copy
import csv
import random
import types

import numpy as np
import pytest
import torch

from lightning_landscape import LandscapeMonitor
from tests.helpers.settings import SETTINGS, train
from tests.helpers.slow import some


def everything(trainer, module, folder):
    """Return the last state of a run."""
    metrics, logged = folder / "lightning_logs" / "version_0" / "metrics.csv", []
    if metrics.exists():
        with metrics.open() as file:
            logged = [
                {k: v for k, v in row.items() if v and not k.startswith("landscape")}
                for row in csv.DictReader(file)
            ]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)
    # Leave out our own state, and paths that differ between the two runs.
    checkpoint["callbacks"] = sorted(
        key.partition("{")[0] for key in checkpoint["callbacks"] if "Landscape" not in key
    )
    return {
        "module": module.state_dict(),
        "python": {path: plain(vars(m)) for path, m in module.named_modules()},
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "metrics": trainer.callback_metrics,
        "logged": [row for row in logged if set(row) - {"step", "epoch"}],
        "rng": (torch.get_rng_state(), random.getstate(), np.random.get_state()),
        "checkpoint": checkpoint,
    }


def plain(attributes):
    """Return the comparable attributes of a module."""
    kept = {}
    for name, value in attributes.items():
        if isinstance(value, torch.Generator):
            kept[name] = value.get_state()
        elif isinstance(value, np.random.Generator):
            kept[name] = value.bit_generator.state
        elif isinstance(value, random.Random):
            kept[name] = value.getstate()
        elif type(value).__name__ == "Meter":
            kept[name] = vars(value)
        elif (
            isinstance(value, (bool, int, float, str, list, dict, tuple, torch.Tensor, type(None)))
            and name[0] != "_"
        ):
            kept[name] = value
    return kept


def assert_same(a, b, where="run"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b) or (
            torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        ), where
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    elif not isinstance(a, (types.FunctionType, types.MethodType)):
        assert a == b or (a != a and b != b), where


def run(setting, folder, callbacks):
    trainer, module = train(setting, folder, callbacks)
    return copy.deepcopy(
        {k: v for k, v in everything(trainer, module, folder).items() if k != "python"}
    ) | {"python": everything(trainer, module, folder)["python"]}


@pytest.mark.parametrize("name", some(reversed(SETTINGS), every=4))
def test_with_and_without_the_monitor(name, tmp_path):
    setting = SETTINGS[name]
    without = run(setting, tmp_path / "without", [])
    final = LandscapeMonitor(every_n_steps=2)
    assert_same(without, run(setting, tmp_path / "final", [final]))
    assert len(final.table) > 1
    if SETTINGS[name].joins_late:  # a reference that differs in frozen parameters is refused
        return
    reference = (
        tmp_path / "final" / "lightning_logs" / "version_0" / "landscape" / "reference.safetensors"
    )
    live = LandscapeMonitor(every_n_steps=2, reference=str(reference))
    assert_same(without, run(setting, tmp_path / "live", [live]))
    assert len(live.table) == len(final.table)


def test_the_comparison_can_fail(tmp_path):
    setting = SETTINGS["plain"]
    with pytest.raises(AssertionError):
        assert_same(run(setting, tmp_path / "a", []), run(SETTINGS["clipping"], tmp_path / "b", []))


def test_the_module_keeps_the_identity_of_what_it_holds(tmp_path):
    seen = {}

    class Watcher(LandscapeMonitor):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            seen.update(
                losses=pl_module.losses,
                counts=pl_module.counts,
                step=vars(pl_module).get("training_step"),
            )

    _, module = train(SETTINGS["plain"], tmp_path, [Watcher(every_n_steps=1)])
    assert module.losses is seen["losses"]
    assert module.counts is seen["counts"]
    assert "training_step" not in vars(module)
    assert not {"log", "log_dict", "print"} & set(vars(module))
