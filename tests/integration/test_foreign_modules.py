"""Modules of others: training is not moved, replays are exact, the table is that of brute force."""

import copy

import pytest

from lightning_landscape import LandscapeMonitor
from tests.helpers.brute_force import Recording, recorded
from tests.helpers.foreign import FOREIGN, train
from tests.helpers.slow import some
from tests.integration.test_bit_identity import assert_same, everything
from tests.integration.test_brute_force import assert_equals_brute_force


@pytest.mark.parametrize("name", some(FOREIGN, every=3))
def test_a_foreign_module(name, tmp_path):
    setting, recording = FOREIGN[name], Recording()
    module_class = recorded(setting.module)
    module_class.recording = recording
    train(setting, tmp_path / "recorded", [recording], module_class)
    plainly = left_behind(setting, tmp_path / "without", [])
    monitor = LandscapeMonitor(every_n_steps=1)
    assert_same(plainly, left_behind(setting, tmp_path / "final", [monitor]))
    assert_equals_brute_force(monitor.table, recording, setting)
    assert monitor.summary["run"]["fidelity"]["exact"] is True
    reference = (
        tmp_path / "final" / "lightning_logs" / "version_0" / "landscape" / "reference.safetensors"
    )
    live = LandscapeMonitor(every_n_steps=2, reference=str(reference))
    assert_same(plainly, left_behind(setting, tmp_path / "live", [live]))
    assert_equals_brute_force(live.table, recording, setting, every=2)
    assert live.summary["run"]["fidelity"]["exact"] is True


def left_behind(setting, folder, callbacks):
    trainer, module = train(setting, folder, callbacks)
    left = everything(trainer, module, folder)
    return {
        **copy.deepcopy({key: value for key, value in left.items() if key != "python"}),
        "python": left["python"],
    }
