"""Bad input: one clear message before the first optimizer step; after it nothing of ours raises."""

import threading
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from lightning_landscape import LandscapeMonitor, PerSample, Report, Store, load
from lightning_landscape.recording.recorder import Recorder
from lightning_landscape.store.store import RecordStore
from tests.helpers.modules import Plain, loader, plain_loss


def fit(monitor, module=None, data=None, **kwargs):
    """Train for one epoch; return the trainer."""
    settings = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(
        **settings,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
        **kwargs,
    )
    trainer.fit(module or Plain(), loader() if data is None else data)
    return trainer


def assert_refused(monitor, *words, module=None, data=None, **kwargs):
    """Assert a refusal with all the words, before any parameter changes."""
    module = module or Plain()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with pytest.raises(MisconfigurationException) as refusal:
        fit(monitor, module, data, **kwargs)
    for word in ("LandscapeMonitor", "upported", *words):
        assert word in str(refusal.value)
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: LandscapeMonitor(every_n_steps=0), "LandscapeMonitor(every_n_steps=0)"),
        (lambda: LandscapeMonitor(max_probes=1), "LandscapeMonitor(max_probes=1)"),
        (lambda: LandscapeMonitor(max_probes="many"), "LandscapeMonitor(max_probes='many')"),
        (lambda: LandscapeMonitor(loss_infimum=float("nan")), "LandscapeMonitor(loss_infimum=nan)"),
        (lambda: LandscapeMonitor(loss_infimum="x"), "LandscapeMonitor(loss_infimum='x')"),
        (lambda: LandscapeMonitor(prefix="a/b"), "LandscapeMonitor(prefix='a/b')"),
        (lambda: LandscapeMonitor(None), "LandscapeMonitor(reference=None)"),
        (lambda: LandscapeMonitor(store={"gib": 1.0}), "LandscapeMonitor(store={'gib': 1.0})"),
        (lambda: LandscapeMonitor(extras=[PerSample]), "LandscapeMonitor(extras=["),
        (lambda: Store(dtype="int4"), "store=Store(dtype='int4')"),
        (lambda: Store(gib=0.0), "store=Store(gib=0.0)"),
        (lambda: Store(keep="false"), "store=Store(keep='false')"),
        (lambda: Report(windows=0), "report=Report(windows=0)"),
        (lambda: Report(images=True), "report=Report(images=True)"),
    ],
)
def test_arguments_are_checked_when_they_are_given(make, found):
    with pytest.raises(MisconfigurationException) as refusal:
        make()
    assert str(refusal.value).startswith(found)
    assert "supported are" in str(refusal.value)


def test_a_reference_that_is_not_there():
    assert_refused(LandscapeMonitor(reference="nowhere.ckpt"), "nowhere.ckpt")


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert_refused(
        LandscapeMonitor(dirpath=tmp_path / "file" / "sub"), "dirpath", "is not a folder"
    )


def refused_strategy(kind, world_size=1, **attributes):
    """Return the refusal of a strategy whose class is derived from one of the given name."""
    from lightning_landscape.training.refusals import check_strategy

    class Trainer:
        strategy = type("MyOwn", (type(kind, (), {}),), attributes)()

    Trainer.world_size = world_size
    with pytest.raises(MisconfigurationException, match="MyOwn.*supported are ") as refusal:
        check_strategy(Trainer())
    return str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("FSDPStrategy", "FSDP1"), ("DeepSpeedStrategy", "DeepSpeed"), ("XLAStrategy", "XLA")],
)
def test_strategies_that_hide_parameters(kind, why):
    assert why in refused_strategy(kind)


def test_several_processes_of_a_strategy_that_is_not_known():
    assert "4 processes" in refused_strategy("ParallelStrategy", world_size=4)


def test_model_averaging_in_a_real_strategy():
    from lightning.pytorch.strategies import DDPStrategy

    from lightning_landscape.training.refusals import check_strategy

    strategy = DDPStrategy(model_averaging_period=4)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    with pytest.raises(
        MisconfigurationException, match="model averaging.*leave model_averaging_period out"
    ):
        check_strategy(trainer)


class Manual(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().compute_loss(batch))
        optimizer.step()

    def on_train_epoch_end(self):
        pass


def test_manual_optimization_needs_a_loss():
    assert_refused(LandscapeMonitor(), "manual optimization", "loss=", module=Manual())


def test_manual_optimization_with_a_loss_is_measured():
    monitor = LandscapeMonitor(every_n_steps=1, loss=plain_loss)
    fit(monitor, Manual())
    assert [probe.step for probe in monitor.table] == list(range(10))
    assert monitor.summary["run"]["fidelity"]["exact"]
    # Plain SGD trains another loss than the measured one. The monitor has to see that the step is
    # not along the measured gradient.
    assert all(probe.step_residual > 0 for probe in monitor.table)


def test_several_optimizers():
    class Two(Manual):
        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.net[:2].parameters(), 0.1),
                torch.optim.SGD(self.net[2:].parameters(), 0.1),
            ]

    assert_refused(LandscapeMonitor(loss=plain_loss), "2 optimizers", module=Two())


def test_lbfgs():
    class Quasi(Plain):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    assert_refused(LandscapeMonitor(), "LBFGS", module=Quasi())


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
def test_dataloader_iter():
    class Iterating(Plain):
        def training_step(self, dataloader_iter):
            return self.compute_loss(next(dataloader_iter)[0])

    assert_refused(LandscapeMonitor(), "dataloader_iter", module=Iterating())


def test_no_optimizer():
    class Idle(Plain):
        def configure_optimizers(self):
            return None

    with pytest.warns(UserWarning, match="no optimizer"):
        assert_refused(LandscapeMonitor(), "no parameters", module=Idle())


def test_parameters_that_are_not_registered():
    class Hidden(Plain):
        def __init__(self):
            super().__init__()
            self.hidden = [torch.nn.Linear(2, 2)]

        def configure_optimizers(self):
            return torch.optim.SGD([*self.parameters(), *self.hidden[0].parameters()], lr=0.1)

    assert_refused(
        LandscapeMonitor(), "2 parameters in SGD that are not registered", module=Hidden()
    )


def test_no_training_batches():
    assert_refused(LandscapeMonitor(), "no training batches", limit_train_batches=0)


@pytest.mark.filterwarnings("ignore:Total length of")
def test_an_empty_loader():
    assert_refused(LandscapeMonitor(), "no training batches", data=DataLoader([]))


@pytest.mark.parametrize("loss", [lambda x: torch.stack([x, x]), lambda x: x.expand(2, 1)])
def test_a_loss_that_is_no_scalar(loss):
    class Vector(Plain):
        def compute_loss(self, batch):
            return loss(super().compute_loss(batch))

        def training_step(self, batch, batch_idx):
            return self.compute_loss(batch)

    assert_refused(LandscapeMonitor(), "tensor of shape (2", module=Vector())


def test_a_loss_below_its_infimum():
    assert_refused(
        LandscapeMonitor(loss_infimum=50.0), "below loss_infimum=50", "smaller loss_infimum"
    )


def test_a_refusal_at_the_first_batch_leaves_nothing_behind(tmp_path):
    assert_refused(LandscapeMonitor(loss_infimum=50.0, dirpath=tmp_path), "below loss_infimum=50")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "broken", [torch.nn.functional.mse_loss, lambda m, b: torch.zeros(()), lambda m, b: m.net(b[0])]
)
def test_a_broken_loss_of_the_user(broken):
    assert_refused(LandscapeMonitor(loss=broken), "loss=...", "function of (module, batch)")


def test_a_loss_that_falls_below_its_infimum_later_is_kept_and_said():
    monitor = LandscapeMonitor(every_n_steps=1, loss_infimum=1.5)
    pl.seed_everything(1, verbose=False)
    fit(monitor)
    alpha_beta = monitor.summary["conditions"]["alpha_beta"]
    assert len(monitor.table) == 10
    assert monitor.table.column("loss").min() < 1.5
    assert alpha_beta["alpha"] is None
    assert alpha_beta["informative"] is False
    assert "below loss_infimum 1.5: pass as loss_infimum=" in alpha_beta["reason"]
    assert alpha_beta["reason"] in monitor.summary["verdict"]
    assert monitor.summary["run"]["drop"]["value"] is not None


def test_a_budget_below_two_probes_by_parameters():
    assert_refused(
        LandscapeMonitor(store=Store(gib=1e-6)), "Store(gib=1e-06)", "two probes or more"
    )


def test_a_budget_below_two_probes_by_the_first_batch():
    parameters = sum(p.nbytes for p in Plain().parameters())
    assert_refused(
        LandscapeMonitor(store=Store(gib=4.5 * parameters / 2**30)),
        "raise gib= of Store",
        "two probes or more",
    )


def test_a_small_budget_halves_the_table_instead(tmp_path):
    parameters = sum(p.nbytes for p in Plain().parameters())
    monitor = LandscapeMonitor(
        every_n_steps=1, dirpath=tmp_path, store=Store(gib=60 * parameters / 2**30)
    )
    fit(monitor)
    assert 2 <= len(monitor.table) < 10
    assert monitor.summary["run"]["store"]["bytes"] <= 60 * parameters


class Unkeepable:
    """A batch that can be neither pickled nor copied."""

    def __init__(self, batch):
        self.batch, self.lock = batch, threading.Lock()


class UnkeepableBatches(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return Unkeepable(batch)

    def compute_loss(self, batch):
        return super().compute_loss(batch.batch)


def test_a_batch_that_cannot_be_kept():
    assert_refused(LandscapeMonitor(), "cannot keep this batch", module=UnkeepableBatches())


@pytest.mark.parametrize("change", ["missing", "shape", "frozen"])
def test_a_reference_of_another_model(change, tmp_path):
    class Frozen(Plain):
        def __init__(self):
            super().__init__()
            self.frozen = torch.nn.Linear(2, 2)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    module = Frozen()
    state = module.state_dict()
    words = {
        "missing": "holds none of 'net.0.weight'",
        "shape": "other shapes for 'net.4.bias'",
        "frozen": "'frozen.weight'",
    }
    if change == "missing":
        del state["net.0.weight"]
    elif change == "shape":
        state["net.4.bias"] = torch.zeros(3)
    else:
        state["frozen.weight"] = state["frozen.weight"] + 1
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    assert_refused(
        LandscapeMonitor(reference=str(tmp_path / "other.ckpt")), words[change], module=module
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("text.ckpt", b"no checkpoint"), ("text.safetensors", b"no tensors"), ("empty.pt", b"")],
)
def test_an_unreadable_reference(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert_refused(LandscapeMonitor(reference=str(tmp_path / name)), name, "cannot be read")


def test_a_reference_that_would_run_code_is_not_unpickled(tmp_path):
    torch.save({"state_dict": Unpickled()}, tmp_path / "code.ckpt")
    assert_refused(LandscapeMonitor(reference=str(tmp_path / "code.ckpt")), "weights_only=True")
    assert not (tmp_path / "ran").exists()


class Unpickled:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("hook", ["read_gradient", "finish", "watch"])
def test_a_failure_of_ours_leaves_training_alone(hook, monkeypatch):
    monitor = LandscapeMonitor(every_n_steps=1)
    trained = fit(monitor, seeded(Plain))
    original, calls = getattr(Recorder, hook), []

    def failing(self, *args, **kwargs):
        calls.append(hook)
        if len(calls) == 4:
            raise RuntimeError("broken on purpose")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Recorder, hook, failing)
    broken = LandscapeMonitor(every_n_steps=1)
    with pytest.warns(
        UserWarning,
        match="stopped measuring at step . RuntimeError: broken on purpose. "
        "Training goes on|broken",
    ):
        again = fit(broken, seeded(Plain))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            trained.lightning_module.parameters(), again.lightning_module.parameters(), strict=True
        )
    )
    assert len(calls) == 4
    assert len(broken.table) == 3
    assert all(probe.evaluated for probe in broken.table)
    assert broken.summary["run"]["complete"] is False
    assert "broken on purpose" in broken.summary["run"]["stopped_by"]


class OnceOnly(Plain):
    """Refuses to evaluate a batch twice; keeps the seen ones where replays do not restore them."""

    SEEN: ClassVar[set] = set()

    def training_step(self, batch, batch_idx):
        if batch_idx in self.SEEN:
            raise MisconfigurationException("found a batch twice")
        self.SEEN.add(batch_idx)
        return super().training_step(batch, batch_idx)


def assert_same_parameters(one, other):
    pairs = zip(one.lightning_module.parameters(), other.lightning_module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_loss_that_cannot_be_evaluated_again_costs_the_evaluation_alone(tmp_path):
    """Recording never calls the module, so that this shows after training."""
    plain = fit(pl.Callback(), seeded(Plain))
    monitor = LandscapeMonitor(every_n_steps=1, dirpath=tmp_path)
    OnceOnly.SEEN.clear()
    said = "found a batch twice, while evaluating at the reference. The rest is reported"
    with pytest.warns(UserWarning, match=f"found MisconfigurationException: {said}"):
        again = fit(monitor, seeded(OnceOnly))
    assert_same_parameters(plain, again)
    assert [probe.evaluated for probe in monitor.table] == [False] * 10
    assert monitor.summary["run"]["complete"] is False
    assert "found a batch twice" in monitor.summary["run"]["stopped_by"]
    assert len(load(tmp_path).table) == 10
    assert (tmp_path / "landscape" / "store").is_dir()


# x_0 is stored: it is tried once more after training
@pytest.mark.filterwarnings("ignore:LandscapeMonitor found MisconfigurationException")
def test_against_a_file_a_loss_that_cannot_be_evaluated_again_ends_the_monitor(tmp_path):
    plain = fit(LandscapeMonitor(dirpath=tmp_path), seeded(Plain))
    file = tmp_path / "landscape" / "reference.safetensors"
    monitor = LandscapeMonitor(reference=file, every_n_steps=1)
    OnceOnly.SEEN.clear()
    said = "MisconfigurationException: found a batch twice. Training goes on"
    with pytest.warns(UserWarning, match=f"stopped measuring at step 1: {said}"):
        again = fit(monitor, seeded(OnceOnly))
    assert_same_parameters(plain, again)
    assert [probe.step for probe in monitor.table] == [0]  # its row was recorded before


def seeded(kind):
    pl.seed_everything(5, verbose=False)
    return kind()


def test_a_failing_report_leaves_files_and_training(monkeypatch, tmp_path):
    def failing(*args):
        raise RuntimeError("broken report")

    monkeypatch.setattr("lightning_landscape.fit.ending.summarise", failing)
    with pytest.warns(
        UserWarning, match="could not finish its report: RuntimeError: broken report"
    ):
        fit(LandscapeMonitor(dirpath=tmp_path))
    assert (tmp_path / "landscape" / "probes.jsonl").exists()


def test_a_full_disk_thins_once_and_then_ends_the_monitor(monkeypatch):
    import errno

    original, room = RecordStore._write_files, [5]

    def full(self, folder, record):
        original(self, folder, record)
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordStore, "_write_files", full)
    monitor = LandscapeMonitor(every_n_steps=1)
    with pytest.warns(UserWarning, match="stopped measuring .* No space left on device"):
        fit(monitor)
    assert [probe.step for probe in monitor.table] == [0, 2, 4]
    assert all(probe.evaluated for probe in monitor.table)


@pytest.mark.filterwarnings("ignore:LandscapeMonitor evaluated a mini-batch loss again")
def test_an_infidelity_is_said_with_its_size():
    class Forgetful(Plain):
        outside = 0.0  # a state that belongs to the class, not to the module

        def compute_loss(self, batch):
            type(self).outside += 0.125
            return super().compute_loss(batch) + self.outside

    monitor = LandscapeMonitor(every_n_steps=2)
    with pytest.warns(UserWarning, match="the value is off by 1.25"):
        fit(monitor, Forgetful())
    fidelity = monitor.summary["run"]["fidelity"]
    assert fidelity["exact"] is False
    assert fidelity["max_abs"] == pytest.approx(1.25, rel=1e-5)
    assert "replays differ from the recorded losses" in monitor.summary["verdict"]


def test_an_infidelity_that_comes_later_is_said_once_too(tmp_path):
    """With a file as reference, replays are checked while training."""

    class Forgetful(Plain):
        outside = 0.0

        def compute_loss(self, batch):
            type(self).outside += 0.125 * (self.trainer.global_step >= 2)
            return super().compute_loss(batch) + self.outside

    fit(LandscapeMonitor(dirpath=tmp_path))
    file = tmp_path / "landscape" / "reference.safetensors"
    monitor = LandscapeMonitor(reference=file, every_n_steps=1)
    with pytest.warns(UserWarning, match="the value is off by") as said:
        fit(monitor, Forgetful())
    assert sum("the value is off by" in str(warning.message) for warning in said) == 1
    assert monitor.summary["run"]["fidelity"]["steps"] == [0, 1, 2, 4, 8]
    assert monitor.summary["run"]["fidelity"]["exact"] is False


def test_a_diverged_run_is_reported_as_such():
    class Diverging(Plain):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            return loss * float("inf") if self.counts["steps"] >= 5 else loss

    monitor = LandscapeMonitor(every_n_steps=1)
    fit(monitor, Diverging())
    assert len(monitor.table) == 0
    assert monitor.summary["run"]["dropped"]["non_finite"] == 10
    assert "has no result" in monitor.summary["verdict"]


def test_fast_dev_run_writes_nothing(tmp_path):
    monitor = LandscapeMonitor(dirpath=tmp_path)
    fit(monitor, fast_dev_run=True)
    assert list(tmp_path.rglob("*")) == []
    assert len(monitor.table) == 1


def test_testing_alone_needs_nothing():
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[LandscapeMonitor(reference="nowhere.ckpt")],
    )
    module = BoringModel()
    assert trainer.test(module, module.test_dataloader(), verbose=False) is not None


def test_a_second_fit_gets_a_folder_of_its_own(tmp_path, lightning_says):
    for _ in range(2):
        fit(LandscapeMonitor(dirpath=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["landscape", "landscape-1"]
    assert f"writes to {tmp_path / 'landscape-1'}" in lightning_says()
