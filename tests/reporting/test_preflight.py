"""What is said when training starts, for real trainers."""

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

from lightning_landscape import (
    HeldOut,
    LandscapeMonitor,
    Layers,
    PerSample,
    Secant,
    Segments,
    Store,
    bounds,
    load,
)
from lightning_landscape.optim import NGN, SPSMax
from lightning_landscape.reporting.preflight import expected_probes
from tests.helpers.modules import CLASSES, FEATURES, Plain, loader, plain_loss


class MLP(pl.LightningModule):
    def __init__(self, make, scheduler=None):
        super().__init__()
        self.net, self.make, self.scheduler = (
            nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
            make,
            scheduler,
        )

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        return (
            optimizer
            if self.scheduler is None
            else {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}
        )


class Deep(Plain):
    """Adam, BatchNorm, dropout, and a layer that is not trained."""

    def configure_optimizers(self):
        return torch.optim.Adam(list(self.net[:2].parameters()), lr=0.01)


class Endless(IterableDataset):
    def __iter__(self):
        for _ in range(3):
            yield torch.randn(6, FEATURES), torch.randint(CLASSES, (6,))


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


@pytest.fixture
def said(tmp_path, lightning_says):
    """Return a function that trains and gives the message, its line breaks removed."""

    def fit(module, data=None, monitor=None, **kwargs):
        monitor = monitor or LandscapeMonitor(dirpath=tmp_path)
        settings = {
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "accelerator": "cpu",
            **kwargs,
        }
        trainer = pl.Trainer(
            enable_progress_bar=False, enable_model_summary=False, callbacks=[monitor], **settings
        )
        trainer.fit(module, loader() if data is None else data)
        message = next(
            m
            for m in lightning_says().split("LandscapeMonitor")
            if m.startswith(" is going to measure:")
        )
        lines = message.split("\n")
        assert all(len(line) <= 118 for line in lines if str(tmp_path) not in line)
        assert len(lines) <= 18
        return " ".join(message.split())

    return fit


def test_plain_sgd(said, tmp_path):
    message = said(MLP(sgd))
    assert "f_i: the loss of training_step in training mode on a mini-batch with its" in message
    assert "≥ 0 (loss_infimum)" in message
    assert "dropout" not in message
    assert "BatchNorm" not in message
    assert "x: the 140 parameters of SGD, which are all of the module" in message
    assert "x_p: the last iterate of this run" in message
    assert "probes: about 2 in 20 steps, 10 steps apart at the end" in message
    assert "1.09 KiB per probe, and your mini-batches; 2.19 KiB or more" in message
    assert f"removed at the end; in {tmp_path / 'landscape'}" in message
    assert "at the end: about 4 forward passes, at x_p and x_0 " in message
    assert "conditions: α-β, quasar convexity" in message
    assert (
        "theory that may apply: SGD with a constant step, SGD with a schedule, the certificate of "
        "this trajectory" in message
    )
    assert (
        "gradient descent on the full batch (a step takes a part of an epoch's batches)" in message
    )


def test_adam_batch_norm_and_dropout(said):
    message = said(Deep())
    assert "dropout: each step draws a new mask" in message
    assert "BatchNorm uses batch statistics, so f_i depends on the whole mini-batch" in message
    assert "x: the 240 parameters of Adam; 68 other parameters of the module are not" in message
    assert "no theorem can apply: steps of Adam are not along the mini-batch gradient" in message


@pytest.mark.parametrize(
    ("make", "trainer", "words"),
    [
        (lambda p: SPSMax(p, lr=0.5), {}, ["may apply: SPS_max, the certificate"]),
        (
            lambda p: NGN(p, lr=0.5),
            {},
            ["may apply: NGN, the certificate", "(there is no scheduler)"],
        ),
        (
            lambda p: SPSMax(p, lr=0.5, loss_infimum=-1.0),
            {},
            [
                "may apply: the certificate",
                "SPS_max (the optimizer has loss_infimum=-1, the monitor 0",
            ],
        ),
        (
            lambda p: SPSMax(p, lr=0.5),
            {"accumulate_grad_batches": 2},
            ["SPS_max (gradients are accumulated"],
        ),
        (
            lambda p: SPSMax(p, lr=0.5),
            {"gradient_clip_val": 0.5},
            ["SPS_max (gradients are clipped"],
        ),
        (
            sgd,
            {"gradient_clip_val": 0.5},
            ["may apply: the certificate", "(gradients that are clipped make the step size depend"],
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            {},
            ["no theorem can apply", "momentum=0.9"],
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
            {},
            ["may apply: the certificate", "weight_decay=0.01"],
        ),
    ],
)
def test_theory_by_optimizer(said, make, trainer, words):
    message = said(MLP(make), **trainer)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("scheduler", "possible", "impossible"),
    [
        (
            lambda o: torch.optim.lr_scheduler.StepLR(o, 1),
            ["SGD with a schedule"],
            "StepLR changes lr, the theorem has one",
        ),
        (
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: (k + 1) ** -0.5),
            ["SGD with a schedule", "SGD with a step that falls as 1/√(k + 1)"],
            "LambdaLR changes lr",
        ),
    ],
)
def test_theory_by_scheduler(said, scheduler, possible, impossible):
    message = said(MLP(sgd, scheduler))
    assert (
        f"theory that may apply: {', '.join([*possible, 'the certificate of this trajectory'])}"
        in message
    )
    assert impossible in message


def test_sequential_batches_and_a_full_batch(said):
    assert "the training loader does not shuffle" in said(MLP(sgd), loader(shuffle=False))


def test_full_batch(said):
    message = said(MLP(sgd), loader(1, shuffle=False))
    assert "gradient descent on the full batch" in message
    assert "does not shuffle" not in message


def test_loss_of_the_user(said, tmp_path):
    message = said(
        Plain(), monitor=LandscapeMonitor(dirpath=tmp_path, loss=plain_loss, loss_infimum=-2.0)
    )
    assert "the loss of plain_loss in training mode" in message
    assert "≥ -2 (loss_infimum)" in message


def test_extras_have_their_part_of_the_cost(said, tmp_path):
    extras = [Segments(2), Layers(), Secant(), HeldOut(held_out_batches, fixed=2)]
    message = said(
        MLP(sgd), monitor=LandscapeMonitor(dirpath=tmp_path, every_n_steps=5, extras=extras)
    )
    # 4 probes at x_p and at x_0; 9 points on each of two lines; 3 for a gradient; 3 batches
    assert f"about {4 + 4 + 2 * 9 + 4 * 3 + 4 * 3 * 4} forward passes, at x_p and x_0" in message
    assert "x_0, and 3 held-out batches a probe (a backward pass counts as two)" in message


def held_out_batches(trainer):
    return [batch for _, batch in zip(range(3), loader(), strict=False)]


def sample_losses(module, batch):
    return cross_entropy(module.net(batch[0]), batch[1], reduction="none")


def test_single_samples(said, tmp_path):
    arguments = {"loss": sample_losses, "dirpath": tmp_path, "extras": [PerSample()]}
    message = said(MLP(sgd), monitor=LandscapeMonitor(every_n_steps=5, **arguments))
    assert "f_i: the mean of the sample losses of sample_losses in training mode" in message
    assert f"about {4 + 4 + 3 * 4} forward passes, at x_p and x_0, and every single" in message
    assert "every single sample (3 passes) a probe (a backward pass counts as two)" in message


def test_single_samples_live(said, tmp_path):
    torch.save({name: p.detach() for name, p in MLP(sgd).named_parameters()}, tmp_path / "x.pt")
    arguments = {"loss": sample_losses, "dirpath": tmp_path, "extras": [PerSample()]}
    live = said(MLP(sgd), monitor=LandscapeMonitor(reference=str(tmp_path / "x.pt"), **arguments))
    assert "which calls training_step again; also every single sample (3 passes) a probe" in live


def test_reference_file(said, tmp_path):
    torch.save({name: p.detach() for name, p in MLP(sgd).named_parameters()}, tmp_path / "x.pt")
    message = said(
        MLP(sgd), monitor=LandscapeMonitor(dirpath=tmp_path, reference=str(tmp_path / "x.pt"))
    )
    assert f"x_p: {tmp_path / 'x.pt'}; every curve is logged during training" in message
    size = in_words(4 * sum(p.numel() for p in MLP(sgd).parameters()))
    assert f"disk: one of your mini-batches and x_0, {size}; removed at the end" in message
    assert "evaluation: after the step of each probe, which calls training_step again" in message


def test_reference_file_is_stored_natively(said, tmp_path):
    torch.save({name: p.detach() for name, p in MLP(sgd).named_parameters()}, tmp_path / "x.pt")
    arguments = {"dirpath": tmp_path, "store": Store(dtype="int8")}
    monitor = LandscapeMonitor(tmp_path / "x.pt", **arguments)
    size = in_words(4 * sum(p.numel() for p in MLP(sgd).parameters()))
    assert f"disk: one of your mini-batches and x_0, {size};" in said(MLP(sgd), monitor=monitor)


def test_a_codec(said, tmp_path):
    module = MLP(sgd)
    sizes = [p.numel() for p in module.parameters()]
    message = said(module, monitor=LandscapeMonitor(dirpath=tmp_path, store=Store(dtype="int8")))
    probe = sum(2 * min(n + 4 * math.ceil(n / 128), 4 * n) for n in sizes)
    once = sum(2 * 4 * n for n in sizes) - probe  # the first probe is stored natively
    words = f"disk: {in_words(probe)} per probe, {in_words(once)} more for x_0, and your mini-"
    assert words in message


def in_words(count):
    return f"{count / 1024:.3g} KiB" if count >= 1024 else f"{count} bytes"


def test_unknown_number_of_batches(said, tmp_path):
    data = torch.utils.data.DataLoader(Endless(), batch_size=None)
    monitor = LandscapeMonitor(
        dirpath=tmp_path, every_n_steps=3, max_overhead=0.2, store=Store(keep=True)
    )
    message = said(MLP(sgd), data, monitor)
    assert "probes: every 3rd step at first, at most 128 in all; the number of" in message
    assert "fewer if measuring would take more than 20 % of the time (max_overhead)" in message
    assert "kept (Store(keep=True))" in message
    assert "up to 160 forward passes" in message


def test_fast_dev_run(said):
    message = said(MLP(sgd), fast_dev_run=True)
    assert "probes: about 1 in 1 steps" in message
    assert "; in a temporary folder, removed at the end (fast_dev_run)" in message


def test_a_failure_is_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_landscape.fit.plan.preflight", lambda plan: 1 / 0)
    monitor = LandscapeMonitor(dirpath=tmp_path, loss_infimum=-1e9)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    with pytest.warns(UserWarning, match="could not say what it will measure: ZeroDivisionError"):
        trainer.fit(BoringModel())
    assert len(load(tmp_path / "landscape").table) == 1


def test_what_is_foreseen_to_be_impossible_is_not_certified(grid):
    """The rules that foresee and those that certify agree on real runs."""
    checked = 0
    for summary in grid.rglob("summary.json"):
        run = load(summary.parent)
        for theorem in bounds.THEOREMS:
            if theorem.foreseen(run.summary["run"]) is not None:
                assert not run.summary["bounds"][theorem.name]["applies"], theorem.name
                checked += 1
    assert checked


@pytest.mark.parametrize(
    ("steps", "every", "most"),
    [(1, 1, 2), (7, 3, 2), (1000, 10, 256), (2560, 10, 256), (2561, 10, 256)],
)
def test_the_number_of_probes_is_the_schedules(steps, every, most):
    from lightning_landscape.recording.schedule import Schedule

    schedule = Schedule(every, most)
    for step in range(steps):
        schedule.make_room(step)
        if schedule.due(step):
            schedule.keep(step)
    assert expected_probes(steps, every, most) == (len(schedule.kept), schedule.stride)
