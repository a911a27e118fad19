"""Trains what was drawn: without the monitor, with it, and without it but recording everything."""

import contextlib
from functools import partial

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision

from lightning_landscape import LandscapeMonitor, optim
from tests.helpers import foreign, modules, players
from tests.helpers.modules import plain_loss

EPOCHS = 2
_SGD = torch.optim.SGD
_OPTIMIZERS = {
    "sgd": partial(_SGD, lr=0.05),
    "momentum": partial(_SGD, lr=0.02, momentum=0.9),
    "nesterov_decay": partial(_SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "fused_adam": partial(torch.optim.Adam, lr=0.01, fused=True),
    "fused_sgd": partial(_SGD, lr=0.05, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "adagrad": partial(torch.optim.Adagrad, lr=0.02),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.003),
    "lbfgs": partial(torch.optim.LBFGS, lr=0.1, max_iter=2),
    "sps_max": partial(optim.SPSMax, lr=0.1),
    "dec_sps": partial(optim.DecSPS, lr=0.1),
    "ngn": partial(optim.NGN, lr=0.1),
    "adagrad_norm_max": partial(optim.AdaGradNormMax, lr=0.1),
}


@contextlib.contextmanager
def _default(dtype):
    """As Lightning's true precisions do: tensors that training_step makes are of that type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AUTOCAST = {
    "bf16-mixed": partial(torch.autocast, "cpu", dtype=torch.bfloat16, cache_enabled=False),
    "16-mixed": partial(torch.autocast, "cpu", dtype=torch.float16, cache_enabled=False),
    "64-true": partial(_default, torch.float64),
    "bf16-true": partial(_default, torch.bfloat16),
}


def autocast_of(configuration):
    return AUTOCAST.get(configuration.precision, contextlib.nullcontext)


def module_class(configuration):
    """Return the class, with the optimiser that was drawn in the place of its own."""
    name = configuration.model
    if configuration.player is not None:
        return getattr(players, name)
    base = foreign.FOREIGN[name].module if name in foreign.FOREIGN else getattr(modules, name)
    make, schedule = _OPTIMIZERS[configuration.optimizer], configuration.scheduler

    def configure_optimizers(self):
        own = base.configure_optimizers(self)
        own = own["optimizer"] if isinstance(own, dict) else own[0][0] if isinstance(own, (tuple, list)) else own
        optimizer = make([p for group in own.param_groups for p in group["params"]])
        if not schedule:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}

    return type(f"Drawn{base.__name__}", (base,), {"configure_optimizers": configure_optimizers})


def loader(configuration):
    if configuration.model in foreign.FOREIGN:
        return foreign.FOREIGN[configuration.model].loader()
    return modules.loader(configuration.batches)


def monitor_of(configuration, folder, reference=None):
    arguments = {"every_n_steps": configuration.every, "figures": False, "loss_infimum": -1e3, **configuration.monitor}
    if configuration.player is not None:
        arguments |= {"parameters": configuration.player, "loss": players.LOSSES[configuration.player]}
    elif configuration.loss:
        arguments["loss"] = plain_loss
    return LandscapeMonitor(dirpath=folder, **arguments, **({} if reference is None else {"reference": str(reference)}))


def train(configuration, folder, callbacks=(), kind=None, strategy=None):
    """Train; return (trainer, module)."""
    pl.seed_everything(configuration.number + 1, verbose=False)
    module = (kind or module_class(configuration))()
    scaler = configuration.precision == "16-mixed"
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))] if scaler else None
    distributed = configuration.strategy == "ddp"
    clipping = {}
    if configuration.clip is not None:
        clipping = {"gradient_clip_algorithm": configuration.clip[0], "gradient_clip_val": configuration.clip[1]}
    accumulation = {"accumulate_grad_batches": configuration.accumulate} if configuration.accumulate > 1 else {}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2 if distributed else 1,
        strategy="ddp_fork_find_unused_parameters_true" if distributed else "auto",
        max_epochs=EPOCHS,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=plugins,
        precision=None if scaler else configuration.precision,
        callbacks=list(callbacks),
        **clipping,
        **accumulation,
        **configuration.trainer,
    )
    trainer.fit(module, loader(configuration))
    return trainer, module
