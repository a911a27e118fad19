"""With a real Trainer: automatic and manual optimization, schedulers, checkpoints, precision."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lightning_landscape.optim import NGN, SPSMax
from tests.optim.problems import METHODS, OF_THE_LOSS, REFERENCES

EPOCHS, BATCHES = 4, 5


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(BATCHES * 4, 3, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), 4)


class Regression(pl.LightningModule):
    """Records loss, gradient norm and step size of every step."""

    def __init__(self, name, schedule=None, **constants):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
        ).double()
        self.name, self.schedule, self.constants = name, schedule, constants
        self.losses, self.sq_norms, self.steps = [], [], []

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def loss(self, batch):
        return mse_loss(
            self.net(batch[0].to(self.net[0].weight.dtype)), batch[1].to(self.net[0].weight.dtype)
        )

    def configure_optimizers(self):
        groups = [{"params": self.net[0].parameters()}, {"params": self.net[2].parameters()}]
        optimizer = METHODS[self.name](groups, **self.constants)
        if self.schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_before_optimizer_step(self, optimizer):
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self.sq_norms.append(sum(g.square().sum().item() for g in gradients))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item() if outputs else None)
        self.steps.append(self.optimizers().step_size)


class Manual(Regression):
    """Manual optimization: Lightning wraps the optimizer and adds a closure."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        optimizer.step(loss=loss)
        return loss


class SkipsEveryThird(Regression):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 2 else self.loss(batch)


def fit(module, epochs=EPOCHS, checkpoint=None, **trainer):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "max_epochs": epochs,
    }
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(**settings | quiet | trainer).fit(module, data(), ckpt_path=checkpoint)
    return module


def scaler():
    return {
        "plugins": [
            MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
        ]
    }


def formula(module, schedule=lambda k: 1.0, lr=1.0):
    """Return the step sizes of the formula for the losses and norms that the module recorded."""
    steps = []
    for k in range(len(module.losses)):
        so_far = (module.losses[: k + 1], module.sq_norms[: k + 1])
        steps.append(REFERENCES[module.name](*so_far, steps, lr=lr * schedule(k)))
    return steps


@pytest.mark.parametrize("module_class", [Regression, Manual])
@pytest.mark.parametrize("name", METHODS)
def test_every_step_is_the_formula(name, module_class):
    module = fit(module_class(name))
    assert len(module.steps) == EPOCHS * BATCHES
    assert module.steps == pytest.approx(formula(module), rel=1e-10)
    assert min(module.losses[-BATCHES:]) < min(module.losses[:BATCHES])


@pytest.mark.parametrize("name", METHODS)
def test_lightning_steps_the_scheduler(name):
    module = fit(Regression(name, lambda k: (k + 1) ** -0.5, lr=2.0))
    assert module.steps == pytest.approx(
        formula(module, lambda k: (k + 1) ** -0.5, lr=2.0), rel=1e-10
    )


def test_the_learning_rate_monitor_sees_lr(tmp_path):
    logger = CSVLogger(tmp_path)
    module = Regression("NGN", lambda k: 0.5**k, lr=2.0)
    fit(
        module,
        epochs=1,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[LearningRateMonitor("step")],
    )
    table = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().split()
    assert "lr-NGN/pg1" in table[0]
    assert [float(row.split(",")[0]) for row in table[1:]] == [2.0 * 0.5**k for k in range(BATCHES)]


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_resumed_from_a_checkpoint_is_the_uninterrupted_one(name, tmp_path):
    def run(checkpoint=None):
        module, saving = (
            Regression(name, lambda k: 0.9**k),
            ModelCheckpoint(tmp_path, "{step}", every_n_epochs=2, save_top_k=-1),
        )
        return fit(module, checkpoint=checkpoint, enable_checkpointing=True, callbacks=[saving])

    whole, resumed = run(), run(tmp_path / "step=10.ckpt")
    assert len(resumed.steps) == 10
    assert resumed.steps == whole.steps[10:]
    assert all(
        torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", OF_THE_LOSS)
def test_under_a_grad_scaler_the_loss_is_missing_and_that_is_said(name):
    with pytest.raises(
        RuntimeError,
        match=rf"{name} .* GradScaler .*16-mixed.* {name}.step\(loss=...\) in manual optimization",
    ):
        fit(Regression(name), **scaler())


@pytest.mark.parametrize(
    ("name", "module_class"),
    [("AdaGradNormMax", Regression), *((name, Manual) for name in METHODS)],
)
def test_what_trains_under_a_grad_scaler(name, module_class):
    module = module_class(name)
    module.net.float()
    fit(module, **scaler())
    if module_class is Manual:
        assert None not in module.steps
    else:
        # Lightning has unscaled the gradients by then.
        assert module.steps == pytest.approx(formula(module), rel=1e-5)
    assert min(module.losses[-BATCHES:]) < min(module.losses[:BATCHES])


def test_bf16_mixed_passes_the_closure():
    module = Regression("SPSMax")
    module.net.float()
    fit(module, precision="bf16-mixed")
    assert module.steps == pytest.approx(formula(module), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_that_returns_none_is_no_step(name):
    module = fit(SkipsEveryThird(name))
    skipped = [k for k, loss in enumerate(module.losses) if loss is None]
    assert skipped == [2, 7, 12, 17]
    assert all(module.steps[k] == module.steps[k - 1] for k in skipped)
    for column in (module.losses, module.sq_norms, module.steps):
        column[:] = [value for k, value in enumerate(column) if k not in skipped]
    assert module.steps == pytest.approx(formula(module), rel=1e-10)


def test_a_window_whose_last_micro_batch_has_no_loss_is_refused():
    class LastIsNone(Regression):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) if batch_idx % 2 == 0 else None

    with pytest.raises(
        RuntimeError, match="NGN .* found a closure that returned None, and gradients"
    ):
        fit(LastIsNone("NGN"), accumulate_grad_batches=2)


def test_accumulation_takes_the_loss_that_is_passed():
    class Windows(Regression):
        def on_train_batch_start(self, batch, batch_idx):
            self.window = 0.0 if batch_idx % 2 == 0 else self.window

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.window += loss.item() / 2
            return loss

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer_closure()
            self.on_before_optimizer_step(optimizer)
            optimizer.optimizer.step(loss=self.window)
            self.losses.append(self.window)
            self.steps.append(optimizer.step_size)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            pass

    module = fit(
        Windows("SPSMax", lr=100.0), accumulate_grad_batches=2, limit_train_batches=4, epochs=1
    )
    assert len(module.steps) == 2
    assert module.steps == pytest.approx(formula(module, lr=100.0), rel=1e-10)


def test_the_command_line_builds_them():
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningArgumentParser, instantiate_class

    parser = LightningArgumentParser()
    parser.add_optimizer_args((NGN, SPSMax))
    chosen = {"class_path": "lightning_landscape.optim.SPSMax", "init_args": {"lr": 0.25, "c": 0.5}}
    parsed = parser.parse_object({"optimizer": chosen})
    optimizer = instantiate_class(
        [torch.nn.Parameter(torch.zeros(1))], parsed["optimizer"].as_dict()
    )
    assert isinstance(optimizer, SPSMax)
    assert optimizer.defaults == {"lr": 0.25, "c": 0.5, "loss_infimum": 0.0}
