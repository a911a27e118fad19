"""Several optimizers: one monitor and one table for each player of a GAN."""

import contextlib
import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from lightning_landscape import LandscapeMonitor, Layers, Secant, Store, load
from tests.helpers.modules import Momentum, Plain, loader
from tests.helpers.players import (
    LATENT,
    LOSSES,
    PLAYERS,
    Accumulating,
    Critic,
    Gan,
    PlayersRecording,
    Seldom,
)
from tests.helpers.slow import some
from tests.integration.test_bit_identity import assert_same, everything
from tests.integration.test_refusals import assert_refused

bf16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
fp16 = partial(torch.autocast, "cpu", dtype=torch.float16)


class Compiled(Gan):
    def __init__(self):
        super().__init__()
        self.generator = torch.compile(self.generator, backend="eager")


# module, arguments of the trainer, autocast, batches per step of the generator
WAYS = {
    "gan": (Gan, {}, contextlib.nullcontext, 1),
    "critic": (Critic, {}, contextlib.nullcontext, 1),
    "seldom": (Seldom, {}, contextlib.nullcontext, 1),
    "accumulating": (Accumulating, {}, contextlib.nullcontext, 2),
    "bf16": (Critic, {"precision": "bf16-mixed"}, bf16, 1),
    "compiled": (Compiled, {}, contextlib.nullcontext, 1),
    "scaler": (Gan, {}, fp16, 1),
}


def monitors(**arguments):
    """Return a monitor for each player."""
    return [
        LandscapeMonitor(
            **{"parameters": p, "prefix": f"landscape-{p}", "loss": LOSSES[p], "every_n_steps": 1}
            | arguments
        )
        for p in PLAYERS
    ]


def fit(way, folder, callbacks, epochs=2, ckpt_path=None):
    module_class, kwargs, autocast, _ = WAYS[way]
    pl.seed_everything(1, verbose=False)
    module = module_class()
    plugins = (
        [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]
        if autocast is fp16
        else None
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=CSVLogger(folder, flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=plugins,
        callbacks=[*callbacks, ModelCheckpoint(folder / "checkpoints", save_last=True)],
        **kwargs,
    )
    trainer.fit(module, loader(6), ckpt_path=ckpt_path)
    return trainer, module


def left_behind(way, folder, callbacks):
    trainer, module = fit(way, folder, callbacks)
    left = everything(trainer, module, folder)
    return {
        **copy.deepcopy({key: value for key, value in left.items() if key != "python"}),
        "python": left["python"],
    }


def assert_is_the_obvious_table(monitor, recording, autocast, secants=None, reference=None):
    rtol = 2e-5 if autocast is contextlib.nullcontext else 3e-3
    assert [probe.step for probe in monitor.table] == [step.step for step in recording.steps]
    assert len(monitor.table) > 3
    for probe, step in zip(monitor.table, recording.steps, strict=True):
        expected = recording.row(step, autocast, reference)
        for column in ("loss", "reference_loss", "initial_loss"):
            assert getattr(probe, column) == expected[column], (step.step, column)
        size = (expected["grad_sq_norm"] * expected["sq_distance"]) ** 0.5
        assert probe.inner_product == pytest.approx(expected["inner_product"], abs=rtol * size)
        assert probe.grad_sq_norm == pytest.approx(expected["grad_sq_norm"], rel=rtol)
        assert probe.sq_distance == pytest.approx(expected["sq_distance"], rel=1e-6)
        assert probe.step_size == pytest.approx(expected["step_size"], rel=10 * rtol, abs=1e-9)
        if secants is not None:
            assert secants[probe.step] == pytest.approx(
                expected["secant"], rel=10 * rtol, abs=rtol * expected["grad_sq_norm"]
            )


@pytest.mark.parametrize("way", some(WAYS, every=2))
def test_each_player_has_the_obvious_table_and_nobody_is_moved(way, tmp_path):
    _, _, autocast, batches = WAYS[way]
    recordings = [PlayersRecording("discriminator"), PlayersRecording("generator", batches)]
    plainly = left_behind(way, tmp_path / "without", recordings)
    players = monitors(extras=[Secant()])
    assert_same(plainly, left_behind(way, tmp_path / "with", players))
    for monitor, recording in zip(players, recordings, strict=True):
        folder = tmp_path / "with" / "lightning_logs" / "version_0" / monitor.settings.prefix
        run = load(folder)
        secants = {row.step: row.grad_sq_change for row in run.tables["secant"]}
        assert_is_the_obvious_table(monitor, recording, autocast, secants)
        assert run.summary["run"]["fidelity"]["exact"] is True
        assert run.summary["run"]["fidelity"]["gradient"] < 1e-6
        assert run.summary["run"]["steps"] == recording.made
        assert (
            run.summary["run"]["optimizer"]["class"]
            == {"discriminator": "SGD", "generator": "Adam"}[monitor.settings.parameters]
        )
        assert run.summary["run"]["moved_between"] == 0


@pytest.mark.parametrize("way", some(["gan", "critic"], every=2))
def test_with_a_reference_from_a_file_the_table_is_the_same(way, tmp_path):
    recordings = [PlayersRecording(player) for player in PLAYERS]
    plainly = left_behind(way, tmp_path / "without", recordings)
    # A reference that is not the end of the run, in one file for both players.
    generator = torch.Generator().manual_seed(0)
    state = {
        n: p + 0.1 * torch.randn(p.shape, generator=generator)
        for n, p in recordings[0].last.items()
    }
    torch.save({"state_dict": state}, tmp_path / "reference.ckpt")
    players = monitors(reference=str(tmp_path / "reference.ckpt"))
    assert_same(plainly, left_behind(way, tmp_path / "with", players))
    for monitor, recording in zip(players, recordings, strict=True):
        there = {name: state[name] for name in recording.names()}
        assert_is_the_obvious_table(monitor, recording, contextlib.nullcontext, reference=there)
        assert monitor.summary["run"]["fidelity"]["exact"] is True


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_counts_the_players_own_steps(tmp_path):
    whole = monitors()
    fit("critic", tmp_path / "whole", whole)
    first = monitors(store=Store(keep=True))
    fit("critic", tmp_path / "first", first, epochs=1)
    again = monitors()
    fit(
        "critic",
        tmp_path / "again",
        again,
        ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt",
    )
    for whole_one, part, resumed in zip(whole, first, again, strict=True):
        assert [probe.step for probe in resumed.table] == [probe.step for probe in whole_one.table]
        assert [probe.loss for probe in resumed.table][: len(part.table)] == [
            probe.loss for probe in part.table
        ]
        assert resumed.summary["run"]["steps"] == whole_one.summary["run"]["steps"]
    assert [probe.step for probe in again[0].table][-1] == 33
    assert [probe.step for probe in again[1].table][-1] == 11


def test_a_second_fit_counts_on(tmp_path):
    players = monitors(dirpath=tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=players,
    )
    module = Critic()
    trainer.fit(module, loader(6))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(6))
    assert [probe.step for probe in players[0].table] == [18, 21, 24, 27, 30, 33]
    assert [probe.step for probe in players[1].table] == [6, 7, 8, 9, 10, 11]


def test_states_are_told_apart_by_prefix_and_parameters():
    keys = {
        LandscapeMonitor(prefix=prefix, parameters=part).state_key
        for prefix in "ab"
        for part in (None, "x", "y")
    }
    assert len(keys) == 6


def test_theorems_about_fixed_losses_do_not_apply_and_schedulers_of_the_other_are_not_ours(
    tmp_path,
):
    class Scheduled(Gan):
        """Draws no random numbers, so that the measured losses are the trained ones."""

        def __init__(self):
            super().__init__()
            self.discriminator[2].p = 0.0

        def fake(self, real):
            return self.generator(real[:, :LATENT])

        def configure_optimizers(self):
            discriminator, generator = super().configure_optimizers()
            return [discriminator, generator], [
                torch.optim.lr_scheduler.ReduceLROnPlateau(generator)
            ]

    players = monitors(dirpath=tmp_path)
    WAYS["scheduled"] = (Scheduled, {}, contextlib.nullcontext, 1)
    fit("scheduled", tmp_path, players)
    discriminator, generator = (monitor.summary for monitor in players)
    assert discriminator["run"]["lr_schedulers"] == []
    assert [s["class"] for s in generator["run"]["lr_schedulers"]] == ["ReduceLROnPlateau"]
    for name in ("sgd", "sgd_schedule", "gradient_descent"):
        assert discriminator["bounds"][name]["value"] is None
    assert "parameter tensors beside x were trained too" in discriminator["bounds"]["sgd"]["reason"]
    assert discriminator["bounds"]["trajectory"]["value"] is not None
    assert "x is 'discriminator'. 6 other tensors" in discriminator["verdict"]


def test_part_of_the_parameters_of_one_optimizer_under_automatic_optimization(tmp_path):
    """x is the last layer; other layers move too, and a probe uses their values at its step."""

    def run(folder, *callbacks):
        pl.seed_everything(3, verbose=False)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
        module = Plain()
        trainer.fit(module, loader())
        return module

    head = LandscapeMonitor(
        dirpath=tmp_path, every_n_steps=1, parameters="net.4", prefix="head", every_step=True
    )
    every = LandscapeMonitor(dirpath=tmp_path, every_n_steps=1, extras=[Layers()])
    plain, watched = run(tmp_path), run(tmp_path, head, every)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )
    assert [p.loss for p in head.table] == [p.loss for p in every.table]
    rows = load(tmp_path / "landscape").tables["layers"]
    layers = {row.step: row for row in rows if row.layer == "net.4"}
    for probe in head.table:
        assert probe.grad_sq_norm == pytest.approx(layers[probe.step].grad_sq_norm, rel=1e-6)
        assert probe.sq_distance == pytest.approx(
            layers[probe.step].sq_distance, rel=1e-6, abs=1e-12
        )
    summary = head.summary["run"]
    assert (summary["parameters"], summary["part"], summary["trained_elsewhere"]) == (
        68,
        "net.4",
        4,
    )
    assert summary["fidelity"]["exact"] is True
    assert summary["exact_sums"]["steps"] == 10
    assert sum(p.step_size for p in head.table) == pytest.approx(
        summary["exact_sums"]["step_size"], rel=1e-6
    )
    # At the second to last step x_p differs from x_k only in the last layer.
    assert head.table[-1].reference_loss != every.table[-1].reference_loss


def distance_to_key(module, batch):
    return (module.net[0](batch[0]) - module.key(batch[0])).square().mean()


def test_a_loss_of_the_user_sees_what_training_step_has_made_of_other_parameters(tmp_path):
    """A momentum encoder moves inside training_step, before the optimizer steps."""
    seen = []

    class Seeing(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.batch = batch

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(distance_to_key(pl_module, self.batch).item())

    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=1, loss=distance_to_key)
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, Seeing()],
    )
    trainer.fit(Momentum(), loader())
    assert [probe.loss for probe in monitor.table] == seen
    assert monitor.summary["run"]["fidelity"]["exact"] is True


class Late(Plain):
    """Steps manually after the end of a batch, with the gradient of that batch only."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.trained_losses = []

    def training_step(self, batch, batch_idx):
        loss = late_loss(self, batch)
        self.trained_losses.append(loss.item())
        self.optimizers().zero_grad()
        self.manual_backward(loss)

    def on_train_batch_end(self, *args):
        self.optimizers().step()

    def on_train_epoch_end(self):
        pass


def late_loss(module, batch):
    return module.net(batch[0]).square().mean()


def test_a_step_after_the_batch_has_ended_is_of_that_batch(tmp_path):
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=1, loss=late_loss)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    module = Late()
    trainer.fit(module, loader())
    # Training ends before the last step is complete.
    assert [probe.step for probe in monitor.table] == list(range(9))
    assert [probe.loss for probe in monitor.table] == module.trained_losses[:9]
    assert monitor.table.column("step_size").tolist() == pytest.approx([0.1] * 9, rel=1e-3)
    assert monitor.summary["run"]["fidelity"]["exact"] is True


# ----------------------------------------------------------------------------------------- refusals


def refused(monitor, *words, module=None):
    assert_refused(monitor, *words, module=module or Gan())


def test_several_optimizers_without_a_choice():
    refused(
        LandscapeMonitor(loss=LOSSES["generator"]),
        "2 optimizers",
        "parameters='generator'",
        "prefix=",
    )


@pytest.mark.parametrize("name", ["generators", "generator.9", "generator.0.weight"])
def test_a_name_that_is_no_submodule(name):
    refused(
        LandscapeMonitor(loss=LOSSES["generator"], parameters=name),
        f"{name!r}",
        "'generator', 'discriminator'",
    )


@pytest.mark.parametrize("name", ["", 3])
def test_a_name_that_is_none(name):
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException) as refusal:
        LandscapeMonitor(loss=LOSSES["generator"], parameters=name)
    assert f"parameters={name!r}): supported are the dotted name" in str(refusal.value)


def test_a_submodule_without_parameters_in_training():
    refused(
        LandscapeMonitor(loss=LOSSES["generator"], parameters="generator.2"),
        "none of the 0 parameters of 'generator.2'",
    )


def test_parameters_in_two_optimizers():
    class Both(Gan):
        def __init__(self):
            super().__init__()
            self.players = torch.nn.ModuleList([self.generator, self.discriminator])

    refused(
        LandscapeMonitor(loss=LOSSES["generator"], parameters="players"),
        "2 optimizers, SGD and Adam",
        module=Both(),
    )


def test_two_monitors_of_one_name(tmp_path):
    players = [LandscapeMonitor(dirpath=tmp_path, loss=LOSSES[p], parameters=p) for p in PLAYERS]
    with pytest.raises(
        pl.utilities.exceptions.MisconfigurationException,
        match="2 monitors with prefix='landscape'; supported",
    ):
        fit("gan", tmp_path, players)


def test_sums_over_every_step_are_not_for_a_loss_of_the_user():
    with pytest.raises(
        pl.utilities.exceptions.MisconfigurationException,
        match=r"every_step=True, loss=\.\.\..*leave every_step out",
    ):
        LandscapeMonitor(loss=LOSSES["generator"], parameters="generator", every_step=True)


def test_a_reference_that_lacks_the_players_parameters(tmp_path):
    torch.save(
        {n: p for n, p in Gan().state_dict().items() if "discriminator" in n},
        tmp_path / "reference.pt",
    )
    monitor = LandscapeMonitor(
        loss=LOSSES["generator"], parameters="generator", reference=str(tmp_path / "reference.pt")
    )
    refused(monitor, "holds none of 'generator.0.weight'")


def test_a_budget_without_room_for_the_other_player(tmp_path):
    sizes = {
        player: sum(p.nbytes for p in getattr(Gan(), player).parameters()) for player in PLAYERS
    }
    room = (4 * sizes["generator"] + 2 * sizes["discriminator"]) / 2**30
    monitor = LandscapeMonitor(
        loss=LOSSES["generator"], parameters="generator", store=Store(gib=0.99 * room)
    )
    refused(monitor, "of them for other parameters in training", "two probes or more")
