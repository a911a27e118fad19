"""The phases of a monitor, from hook to hook."""

import pickle

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from safetensors.torch import load_file

from lightning_landscape import LandscapeMonitor
from lightning_landscape.monitor import Phase
from lightning_landscape.recording.recorder import Recorder
from tests.extras.test_one_path import Manual
from tests.helpers.modules import Plain, plain_loss
from tests.helpers.steps import fit


class Watch(Callback):
    """Notes the phase of a monitor in each hook; comes after it."""

    hooks = (
        "on_fit_start",
        "on_train_start",
        "on_train_batch_start",
        "on_before_optimizer_step",
        "on_train_batch_end",
    )

    def __init__(self, monitor):
        self.monitor, self.seen = monitor, []
        for name in self.hooks:
            setattr(self, name, self._noting(name))

    def _noting(self, name):
        return lambda *args: self.seen.append((name, self.monitor._phase))

    def in_hook(self, name):
        return [phase for hook, phase in self.seen if hook == name]


def test_phases_follow_the_steps_that_are_probed():
    monitor = LandscapeMonitor(every_n_steps=3)
    watch = Watch(monitor)
    assert monitor._phase is Phase.IDLE
    fit(Plain, [monitor, watch], batches=7)
    probed = [Phase.RECORDING if step % 3 == 0 else Phase.WAITING for step in range(7)]
    assert watch.in_hook("on_fit_start") == [Phase.IDLE]
    assert watch.in_hook("on_train_start") == [Phase.WAITING]
    assert watch.in_hook("on_train_batch_start") == probed
    assert watch.in_hook("on_before_optimizer_step") == probed
    assert watch.in_hook("on_train_batch_end") == 7 * [Phase.WAITING]
    assert monitor._phase is Phase.IDLE
    assert monitor._session is None
    assert [probe.step for probe in monitor.table] == [0, 3, 6]


def test_a_window_is_recorded_from_its_first_to_its_last_micro_batch():
    monitor = LandscapeMonitor(every_n_steps=2)
    watch = Watch(monitor)
    fit(Plain, [monitor, watch], batches=8, accumulate_grad_batches=2)
    recording, waiting = [Phase.RECORDING] * 2, [Phase.WAITING] * 2
    expected = [*recording, *waiting, *recording, *waiting]
    assert watch.in_hook("on_train_batch_start") == expected


def test_after_training_it_has_ended_until_it_has_reported():
    seen = []

    class Ends(Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append(monitor._phase)

        def on_fit_end(self, trainer, pl_module):
            seen.append((monitor._phase, monitor.table is not None))

    monitor = LandscapeMonitor()
    fit(Plain, [Ends(), monitor, Ends()], batches=2)
    assert seen == [
        Phase.WAITING,
        Phase.ENDED,
        (Phase.ENDED, False),  # before the monitor's on_fit_end
        (Phase.IDLE, True),
    ]


@pytest.mark.parametrize("method", ["watch", "read_gradient", "finish", "look_away"])
def test_a_failure_of_ours_stops_measuring_and_training_goes_on(method, monkeypatch):
    original, calls = getattr(Recorder, method), []

    def fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no idea")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Recorder, method, fails)
    monitor = LandscapeMonitor(every_n_steps=1)
    watch = Watch(monitor)
    with pytest.warns(UserWarning, match="stopped measuring at step .: RuntimeError: no idea"):
        trainer = fit(Plain, [monitor, watch], batches=6)
    assert trainer.global_step == 6
    assert watch.in_hook("on_train_batch_end")[-1] is Phase.STOPPED
    assert monitor._phase is Phase.IDLE
    assert not monitor.summary["run"]["complete"]
    assert "no idea" in monitor.summary["run"]["stopped_by"]
    assert 1 <= len(monitor.table) <= 3
    assert all(probe.evaluated for probe in monitor.table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"loss_infimum": 100.0}, "below loss_infimum"), ({"reference": "nowhere.pt"}, "no file")],
)
def test_after_a_refusal_it_is_idle_and_leaves_nothing(arguments, message, tmp_path):
    monitor = LandscapeMonitor(**arguments, dirpath=tmp_path / "runs")
    with pytest.raises(MisconfigurationException, match=message):
        fit(Plain, [monitor], batches=2)
    assert monitor._phase is Phase.IDLE
    assert monitor._session is None
    assert not (tmp_path / "runs" / "landscape").exists()


def test_a_run_without_batches_is_refused():
    monitor = LandscapeMonitor()
    with pytest.raises(MisconfigurationException, match="no training batches"):
        fit(Plain, [monitor], limit_train_batches=0)
    assert monitor._phase is Phase.IDLE


def test_an_exception_of_the_users_ends_the_run_and_keeps_the_rows():
    class Fails(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                raise ZeroDivisionError("theirs")

    monitor = LandscapeMonitor(every_n_steps=1)
    with pytest.raises(ZeroDivisionError, match="theirs"):
        fit(Plain, [monitor, Fails()], batches=6)
    assert monitor._phase is Phase.IDLE
    assert monitor.summary["run"]["stopped_by"] == "ZeroDivisionError"
    assert [probe.step for probe in monitor.table] == [0, 1, 2, 3]
    assert not any(probe.evaluated for probe in monitor.table)


def test_a_monitor_can_be_used_again():
    monitor = LandscapeMonitor(every_n_steps=2)
    fit(Plain, [monitor], batches=4)
    first = monitor.table
    fit(Plain, [monitor], batches=4)
    assert monitor.table == first
    assert monitor.table is not first


def test_manual_optimization_has_the_same_phases():
    monitor = LandscapeMonitor(every_n_steps=2, loss=plain_loss)
    watch = Watch(monitor)
    fit(Manual, [monitor, watch], batches=4)
    expected = [Phase.RECORDING, Phase.WAITING] * 2
    assert watch.in_hook("on_train_batch_start") == expected
    assert [probe.step for probe in monitor.table] == [0, 2]


def test_the_last_iterate_is_copied_when_training_ends(tmp_path):
    """No other callback overrides on_train_end here; what comes later does not count."""

    class Spoils(Plain):
        def on_train_end(self):  # after those of all callbacks
            self.kept = {name: p.detach().clone() for name, p in self.named_parameters()}
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.zero_()

    monitor = LandscapeMonitor(every_n_steps=2, dirpath=tmp_path)
    trainer = fit(Spoils, [monitor], batches=4)
    x_p = load_file(tmp_path / "landscape" / "reference.safetensors")
    kept = trainer.lightning_module.kept
    assert all(torch.equal(x_p[name], value) for name, value in kept.items())


def test_it_can_be_pickled_before_training():
    again = pickle.loads(pickle.dumps(LandscapeMonitor(every_n_steps=7)))
    assert again.settings.every_n_steps == 7
    assert again._phase is Phase.IDLE


def test_state_of_a_fit_that_is_over_is_that_of_its_end():
    monitor = LandscapeMonitor(every_n_steps=2)
    assert monitor.state_dict() == {}
    fit(Plain, [monitor], batches=4)
    state = monitor.state_dict()
    assert state["step"] == 4
    assert [row["step"] for row in state["rows"]] == [0, 2]
