"""Recording never calls the user's code: until training has ended, nothing can tell it is there.

Each run is made twice, with and without the monitor. A module that reaches outside of itself counts
every call of its code (`tests.helpers.everywhere`), until the last ``on_train_end`` has run.
"""

import functools
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from torch.optim.swa_utils import get_ema_avg_fn

from lightning_landscape import HeldOut, LandscapeMonitor, Layers, Secant, Segments, Store, load
from tests.helpers import everywhere
from tests.helpers.everywhere import (
    assert_same,
    checkpoints,
    ends,
    functional_loss,
    logged,
    loss_of_the_module,
    train,
)

pytestmark = [
    # the loss depends on what lies outside of the module: replays, after training, are not exact
    pytest.mark.filterwarnings("ignore:LandscapeMonitor evaluated a mini-batch loss again"),
    pytest.mark.filterwarnings("ignore:It is recommended to use `self.log"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]


def scaler():
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))


class Ema(WeightAveraging):
    def __init__(self):
        super().__init__(avg_fn=get_ema_avg_fn(decay=0.9))


def swa():
    return StochasticWeightAveraging(0.05, swa_epoch_start=2)


def held_out(trainer):
    return [everywhere.collate([everywhere.Samples(8)[i] for i in range(8)])]


CASES = {
    "defaults": {"monitor": dict},
    "plain": {},
    "accumulation": {"trainer": lambda: {"accumulate_grad_batches": 2}},
    "scaler": {"trainer": lambda: {"plugins": [scaler()]}},
    "bf16": {"trainer": lambda: {"precision": "bf16-mixed"}},
    "two_processes": {"trainer": lambda: {"processes": 2}},
    "manual": {
        "trainer": lambda: {"manual": True},
        "loss": functional_loss,
    },
    "loss": {"loss": functional_loss},
    "swa": {"trainer": lambda: {"beside": [swa()], "epochs": 4}, "averaged": True},
    "ema": {"trainer": lambda: {"beside": [Ema()]}, "averaged": True},
    "every_step": {"monitor": lambda: {"every_step": True, "every_n_steps": 2}},
    "extras": {
        "monitor": lambda: {
            "every_n_steps": 2,
            "extras": [Segments(), Layers(), Secant(), HeldOut(held_out, fixed=1)],
        }
    },
    "lossy_store": {"monitor": lambda: {"every_n_steps": 2, "store": Store(dtype="int8")}},
    "thinned": {"monitor": lambda: {"every_n_steps": 1, "max_probes": 4}},
}
# what these say, another one says too
SLOW = {
    "swa",
    "accumulation",
    "every_step",
    "lossy_store",
    "thinned",
    "loss",
    "plain",
    "extras",
    "bf16",
}


def parameter(name):
    group = pytest.mark.xdist_group(f"recording-{name}")  # one worker makes these two runs
    return pytest.param(name, marks=[group, *([pytest.mark.slow] if name in SLOW else [])])


@pytest.fixture(scope="module", params=map(parameter, CASES))
def pair(request, tmp_path_factory):
    """Two runs, of which one is monitored."""
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    arguments = case.get("monitor", lambda: {"every_n_steps": 2})()
    monitor = LandscapeMonitor(**arguments, loss=case.get("loss"))
    options = case.get("trainer", dict)
    train(folder / "without", **options())
    train(folder / "monitored", [monitor], **options())
    return SimpleNamespace(
        without=folder / "without",
        monitored=folder / "monitored",
        run=load(folder / "monitored" / "run"),
        loss=case.get("loss"),
        averaged=case.get("averaged", False),
    )


# ----------------------------------------------------------------- the observer does not move


def test_every_piece_of_code_is_called_exactly_as_often(pair):
    """Only a ``loss=`` of the user's is called besides: once a probe."""
    for without, monitored in zip(ends(pair.without), ends(pair.monitored), strict=True):
        calls = monitored["counts"]
        assert calls.pop("loss", 0) == (len(pair.run.table) if pair.loss else 0)
        assert calls == without["counts"]


def test_something_is_counted(pair):
    counts = ends(pair.without)[0]["counts"]
    assert counts["training_step"] >= 21
    assert counts["sampler updated"] == counts["closure"] == counts["training_step"]
    assert counts["hook of net.0.weight"] > 0
    assert counts["backward of an autograd.Function"] > 0
    assert counts["forward of module"] > 0
    assert counts["Before.on_train_end"] == counts["After.on_train_end"] == 1


@pytest.mark.parametrize(
    "part", ["module", "gradients", "optimizer", "random", "metrics", "outside"]
)
def test_the_run_is_the_same_to_the_last_bit(pair, part):
    for without, monitored in zip(ends(pair.without), ends(pair.monitored), strict=True):
        assert_same(without[part], monitored[part], part)


def test_logged_metrics_are_the_same(pair):
    assert len(logged(pair.without)) >= 15
    assert logged(pair.without) == logged(pair.monitored)


def test_checkpoints_are_the_same_but_for_the_state_of_the_monitor(pair):
    without, monitored = checkpoints(pair.without), checkpoints(pair.monitored)
    assert "last.ckpt" in without
    assert_same(without, monitored, "checkpoints")


# --------------------------------------------------------------------- and what is recorded


def test_probes_are_recorded_and_evaluated(pair):
    assert len(pair.run.table) >= 3
    assert all(probe.evaluated for probe in pair.run.table)
    assert pair.run.summary["run"]["complete"]


def test_x_p_is_the_last_iterate(pair):
    """No average that another callback puts in its place when training ends."""
    x_p = load_file(pair.run.path / "reference.safetensors")
    iterate = torch.load(pair.monitored / "iterate.pt")
    assert_same(dict(sorted(iterate.items())), dict(sorted(x_p.items())), "x_p")
    module = ends(pair.monitored)[0]["module"]
    averaged = not torch.equal(module["net.0.weight"], x_p["net.0.weight"])
    assert averaged == pair.averaged


def test_evaluation_comes_after_every_other_callback_and_after_the_last_checkpoint(pair):
    events = torch.load(pair.monitored / "events-0.pt")
    last = events.index("the last on_train_end")
    assert events.count("the last on_train_end") == 1
    training, late = events[:last], events[last + 1 :]
    steps = ends(pair.monitored)[0]["counts"]["training_step"]
    assert training.count("training_step") == steps
    # Lightning calls the module's hook after those of all callbacks
    assert late[0] == "module.on_train_end"
    assert set(late[1:]) <= {"training_step"}
    if pair.loss is None:
        assert len(late[1:]) >= len(pair.run.table)
    first_end = training.index("Before.on_train_end")
    assert "training_step" not in training[first_end:]
    assert "After.on_train_end" in training[first_end:]


# ---------------------------------------------------------------------- the checks can fail


def test_a_reference_from_a_file_calls_the_code_more_often(tmp_path):
    """There the user asks for an evaluation after each probe: the same counts show it."""
    train(tmp_path / "one", [LandscapeMonitor(every_n_steps=2)])
    reference = load(tmp_path / "one" / "run").path / "reference.safetensors"
    train(tmp_path / "two", [LandscapeMonitor(reference, every_n_steps=2)])
    (one,), (two,) = ends(tmp_path / "one"), ends(tmp_path / "two")
    for name in ("training_step", "sampler updated", "closure", "forward of net.0"):
        assert two["counts"][name] > one["counts"][name], name
    assert two["outside"]["global"] != one["outside"]["global"]
    for part in ("module", "outside"):
        with pytest.raises(AssertionError):
            assert_same(one[part], two[part], part)


@pytest.mark.parametrize(
    ("name", "values"),
    [("training_step", {"live_losses": True}), ("loss", {"loss": functional_loss})],
)
def test_what_the_user_asks_for_is_counted(name, values, tmp_path):
    train(tmp_path / "one", [])
    train(tmp_path / "two", [LandscapeMonitor(every_n_steps=2, **values)])
    (one,), (two,) = ends(tmp_path / "one"), ends(tmp_path / "two")
    assert two["counts"][name] > one["counts"].get(name, 0)


# ----------------------------------------------------------------------- a loss of the user's


@pytest.mark.parametrize("manual", [False, True])
def test_a_loss_calls_the_parts_that_it_uses_once_a_probe(manual, tmp_path):
    """Hooks of parameters are set aside; those of submodules belong to the user's function."""
    monitor = LandscapeMonitor(every_n_steps=3, loss=loss_of_the_module)
    train(tmp_path / "without", manual=manual)
    train(tmp_path / "monitored", [monitor], manual=manual)
    (without,), (monitored,) = ends(tmp_path / "without"), ends(tmp_path / "monitored")
    calls, probes = monitored["counts"], len(monitor.table)
    more = {name: n - without["counts"].get(name, 0) for name, n in calls.items()}
    parts = ["net", *(f"net.{i}" for i in range(5))]
    expected = {
        f"{when} of {part}": probes for when in ("before forward", "forward") for part in parts
    }
    expected |= {f"backward of {part}": probes for part in parts}
    assert probes == 7
    assert {name: n for name, n in more.items() if n} == {**expected, "loss": probes}
    assert_same(without["module"], monitored["module"])
    assert_same(without["random"], monitored["random"])


# ---------------------------------------------------------------------------------- resuming


class SavesAtTheEnd(Callback):
    """Saves a checkpoint when training ends."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(pl_module.folder / "end.ckpt")


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_run_resumes_from_a_checkpoint_that_was_saved_when_training_ended(place, tmp_path):
    """There the store is whole, and nothing is evaluated yet."""
    settings = functools.partial(LandscapeMonitor, every_n_steps=3, store=Store(keep=True))
    first, saves = settings(), SavesAtTheEnd()
    train(tmp_path / "first", [saves, first] if place == "before" else [first, saves])
    path = tmp_path / "first" / "end.ckpt"
    states = torch.load(path, weights_only=False)["callbacks"]
    (state,) = [state for key, state in states.items() if "LandscapeMonitor" in key]
    assert state["step"] == 21
    assert len(state["rows"]) == len(first.table) == 7
    assert all(row["reference_loss"] is None for row in state["rows"])
    second = settings()
    train(tmp_path / "second", [second], epochs=5, ckpt_path=path)
    assert [probe.step for probe in second.table] == list(range(0, 35, 3))
    assert all(probe.evaluated for probe in second.table)
    for one, two in zip(first.table, second.table, strict=False):
        for column in ("step", "epoch", "loss", "grad_sq_norm", "step_size", "logged_step"):
            assert getattr(one, column) == getattr(two, column), column
        assert one.sq_distance != two.sq_distance  # another x_p
