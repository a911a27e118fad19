"""One run of a configuration: its module, data and trainer, and what each process ends with."""

import contextlib
import random
from functools import partial

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_landscape import LandscapeMonitor, Layers, Report, Secant, Segments, optim
from tests.helpers import foreign, modules, players
from tests.helpers.modules import CLASSES, FEATURES, plain_loss
from tests.integration.test_bit_identity import plain


class Mlp(modules.Plain):
    """Nothing random."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES))


class Cnn(modules.Plain):
    def __init__(self):
        super().__init__()
        body = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        self.net = nn.Sequential(nn.Unflatten(1, (1, 3, 4)), *body, nn.Linear(48, CLASSES))


class Dropout(modules.Plain):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, CLASSES)
        )


class Manual(Mlp):
    """Manual optimization."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.compute_loss(batch))
        optimizer.step()

    def on_train_epoch_end(self):
        """Nothing is collected."""


OF_HELPERS = {
    **{
        "plain": "Plain",
        "skips_micro_batch": "SkipsMicroBatch",
        "annealed": "Annealed",
        "target_in_buffers": "TargetInBuffers",
    },
    **{
        "target_in_parameters": "TargetInParameters",
        "spectral": "Spectral",
        "non_leaf": "NonLeaf",
        "unfreezing": "Unfreezing",
    },
    **{
        "unfreezing_late": "UnfreezingLate",
        "own_generators": "OwnGenerators",
        "mutating": "Mutating",
        "tied": "Tied",
    },
    **{
        "object_batches": "ObjectBatches",
        "partly_unused": "PartlyUnused",
        "gradient_penalty": "GradientPenalty",
    },
    **{"recurrent": "Recurrent", "momentum_encoder": "Momentum", "overflowing": "Overflowing"},
}
MODULES = {
    **{"mlp": Mlp, "cnn": Cnn, "dropout": Dropout, "manual": Manual, "manual_without_loss": Manual},
    **{"gan": players.Gan, "critic": players.Critic, "seldom": players.Seldom},
    **{name: setting.module for name, setting in foreign.FOREIGN.items()},
    **{name: getattr(modules, kind) for name, kind in OF_HELPERS.items()},
}

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "weight_decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.01),
    "sgd_fused": partial(torch.optim.SGD, lr=0.1, fused=True),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "adam_fused": partial(torch.optim.Adam, lr=0.01, fused=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01),
    "sps_max": partial(optim.SPSMax, lr=0.5),
    "ngn": partial(optim.NGN, lr=0.5),
    "dec_sps": partial(optim.DecSPS, lr=0.5),
    "adagrad_norm_max": partial(optim.AdaGradNormMax, lr=0.5),
    "lbfgs": partial(torch.optim.LBFGS, lr=0.1, max_iter=3),
}


def build(name, parameters):
    if name == "groups":
        return torch.optim.SGD(
            [{"params": [p], "lr": 0.05 * (1 + i % 3)} for i, p in enumerate(parameters)], lr=0.1
        )
    return OPTIMIZERS[name](parameters)


def module_class(one):
    """Return the configuration's module, with the drawn optimizer over the same parameters."""
    base = MODULES[one.model]

    class Drawn(base):
        def configure_optimizers(self):
            found = super().configure_optimizers()
            if one.players:
                return tuple(
                    build(one.optimizer, [p for g in o.param_groups for p in g["params"]])
                    for o in found
                )
            found = found["optimizer"] if isinstance(found, dict) else found
            found = found[0][0] if isinstance(found, tuple) else found
            optimizer = build(
                one.optimizer, [p for group in found.param_groups for p in group["params"]]
            )
            if one.scheduler == "none" or not self.automatic_optimization:
                return optimizer
            rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (k + 1) ** -0.5)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": rate, "interval": one.scheduler},
            }

        def validation_step(self, batch, batch_idx):
            self.log("noise", torch.rand(()), sync_dist=True)  # validation draws random numbers too

    Drawn.__qualname__ = Drawn.__name__ = base.__name__
    return Drawn


def loader(one):
    size = {"1": 5, "2": 7, "3": 8, "schedule": 7}[one.accumulation]
    if one.model in foreign.FOREIGN:
        made = foreign.FOREIGN[one.model].loader()
        if one.model == "lstm":
            return made
        dataset, collate, batch = made.dataset, made.collate_fn, 4 // one.processes
    else:
        dataset, collate, batch = modules.loader(size).dataset, None, 6 // one.processes
    if one.uneven:
        dataset = Subset(dataset, range(len(dataset) - 2))
    return DataLoader(dataset, batch, shuffle=one.shuffle, collate_fn=collate)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# as Lightning casts: without a cache, gradients of a weight that is used twice add up in float32
CONTEXTS = {
    "32-true": contextlib.nullcontext,
    "bf16-mixed": partial(torch.autocast, "cpu", dtype=torch.bfloat16, cache_enabled=False),
    "16-mixed": partial(torch.autocast, "cpu", dtype=torch.float16, cache_enabled=False),
    "64-true": partial(default_dtype, torch.float64),
    "bf16-true": partial(default_dtype, torch.bfloat16),
}


class Ends(Callback):
    """Each process writes down what it ends with, and whether parameters moved before an error."""

    def __init__(self, folder):
        self.folder, self.start = folder, {}

    def on_fit_start(self, trainer, pl_module):
        self.start = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_exception(self, trainer, pl_module, exception):
        moved = any(
            not torch.equal(self.start[name], p)
            for name, p in pl_module.named_parameters()
            if name in self.start
        )
        (self.folder / f"broke-off-{trainer.global_rank}").write_text("moved" if moved else "still")

    def on_fit_end(self, trainer, pl_module):
        found = {
            "module": pl_module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs],
            "python": {path: plain(vars(part)) for path, part in pl_module.named_modules()},
            "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),
            "metrics": {
                key: value
                for key, value in trainer.callback_metrics.items()
                if not key.startswith("landscape")
            },
        }
        torch.save(found, self.folder / f"end-{trainer.global_rank}.pt")


def user_loss(one, player):
    if one.loss == "own":
        return None
    return players.LOSSES[player] if player else plain_loss


def arguments_of(one):
    """Return the monitor's arguments that a configuration draws."""
    names = ("every_n_steps", "max_probes", "max_overhead", "every_step", "live_losses")
    epochs = one.live_epochs
    return {
        **{name: getattr(one, name) for name in names},
        "extras": extras_of(one),
        "live_epochs": list(epochs) if isinstance(epochs, tuple) else epochs,
        "report": Report(images=None),
    }


def extras_of(one):
    drawn = {
        Secant(): one.secant,
        Layers(): one.layers,
        Segments(one.segments or 1): one.segments > 0,
    }
    return [extra for extra, wanted in drawn.items() if wanted]


def monitors(one, reference):
    """Return the configuration's monitors, one for each part that is measured."""
    return [
        LandscapeMonitor(
            loss=user_loss(one, player),
            parameters=player,
            prefix=f"landscape-{player}" if player else "landscape",
            reference=str(reference / f"{player}.pt") if one.reference == "file" else "final",
            **arguments_of(one),
        )
        for player in (one.players or (None,))
    ]


def fit(one, folder, callbacks, kind=None):
    """Train; ``kind`` replaces the module's class of the configuration."""
    folder.mkdir(parents=True)
    pl.seed_everything(one.seed * 1000 + one.number, verbose=False)
    scaled = one.precision == "16-mixed"
    plugins = (
        [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]
        if scaled
        else None
    )
    accumulate = {"schedule": 1}.get(one.accumulation) or int(one.accumulation)
    scheduled = (
        [GradientAccumulationScheduler({0: 1, 1: 2})] if one.accumulation == "schedule" else []
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=one.processes,
        strategy="auto" if one.processes == 1 else "ddp_fork_find_unused_parameters_true",
        max_epochs=2,
        max_steps=one.max_steps,
        precision=None if scaled else one.precision,
        plugins=plugins,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=None if one.clipping == "none" else 0.05,
        gradient_clip_algorithm=None if one.clipping == "none" else one.clipping,
        limit_train_batches=one.limit_train_batches,
        limit_val_batches=0 if one.validation == "none" else 2,
        val_check_interval=0.5 if one.validation == "within" else None,
        num_sanity_val_steps=0 if one.validation == "none" else 2,
        logger=CSVLogger(folder, name="", version="run"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *scheduled, Ends(folder)],
    )
    module = (kind or module_class(one))()
    trainer.fit(module, loader(one), None if one.validation == "none" else loader(one))
