"""Ways of training that change the meaning of a gradient, loss or step; several tests run each."""

import contextlib
from dataclasses import dataclass, field
from functools import partial

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from tests.helpers import modules


@dataclass
class Setting:
    module: type
    trainer: dict = field(default_factory=dict)
    scaler: bool = False
    autocast: object = contextlib.nullcontext
    batches: int = 10
    rtol: float = 2e-5
    """Tolerance of inner products and squared norms: brute force sums gradients in another order"""

    @property
    def joins_late(self):
        """Whether x gains parameters, so that the end of a run does not fit another run's start."""
        return self.module.on_train_epoch_start is modules.UnfreezingLate.on_train_epoch_start


bf16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16, cache_enabled=False)
fp16 = partial(torch.autocast, "cpu", dtype=torch.float16, cache_enabled=False)

SETTINGS = {
    "plain": Setting(modules.Plain),
    "accumulation": Setting(modules.Plain, {"accumulate_grad_batches": 2}, batches=5),
    "none_micro_batch": Setting(modules.SkipsMicroBatch, {"accumulate_grad_batches": 2}),
    "none_micro_batch_scaler": Setting(
        modules.SkipsMicroBatch,
        {"accumulate_grad_batches": 2},
        scaler=True,
        autocast=fp16,
        rtol=3e-3,
    ),
    "bf16_mixed": Setting(modules.Plain, {"precision": "bf16-mixed"}, autocast=bf16),
    "bf16_accumulation": Setting(
        modules.Plain,
        {"precision": "bf16-mixed", "accumulate_grad_batches": 3},
        autocast=bf16,
        batches=7,
    ),
    "scaler": Setting(modules.Plain, scaler=True, autocast=fp16, rtol=3e-3),
    "scaler_fused": Setting(modules.PlainFused, scaler=True, autocast=fp16, rtol=3e-3),
    "scaler_fused_adam": Setting(
        modules.PlainAdam,
        {"accumulate_grad_batches": 2},
        scaler=True,
        autocast=fp16,
        batches=5,
        rtol=3e-3,
    ),
    "clipping": Setting(modules.Plain, {"gradient_clip_val": 0.05}),
    "clipping_scaler": Setting(
        modules.Plain, {"gradient_clip_val": 0.05}, scaler=True, autocast=fp16, rtol=3e-3
    ),
    "annealed": Setting(modules.Annealed),
    "target_in_buffers": Setting(modules.TargetInBuffers),
    "target_in_parameters": Setting(modules.TargetInParameters),
    "target_moves_in_a_window": Setting(
        modules.TeacherInEachBatch, {"accumulate_grad_batches": 3}, batches=8
    ),
    "teacher_and_unfreezing": Setting(
        modules.TeacherAndUnfreezing, {"accumulate_grad_batches": 2}, batches=8
    ),
    "spectral_norm": Setting(modules.Spectral),
    "non_leaf": Setting(modules.NonLeaf),
    "unfreezing": Setting(modules.Unfreezing),
    "unfreezing_late": Setting(modules.UnfreezingLate),
    "own_generators": Setting(modules.OwnGenerators),
    "mutating": Setting(modules.Mutating),
    "object_batches": Setting(modules.ObjectBatches),
    "partly_unused": Setting(modules.PartlyUnused),
    "gradient_penalty": Setting(modules.GradientPenalty),
    "recurrent": Setting(modules.Recurrent, {"accumulate_grad_batches": 3}, batches=8),
    "momentum_encoder": Setting(modules.Momentum),
    "tied": Setting(modules.Tied),
    "overflowing": Setting(modules.Overflowing, scaler=True, autocast=fp16, rtol=3e-3),
}


def train(setting, folder, callbacks=(), module_class=None, epochs=2, seed=1, **trainer_kwargs):
    """Train a module and return (trainer, module)."""
    pl.seed_everything(seed, verbose=False)
    module = (module_class or setting.module)()
    plugins = (
        [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]
        if setting.scaler
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
        **{**setting.trainer, **trainer_kwargs},
    )
    trainer.fit(module, modules.loader(setting.batches))
    return trainer, module
