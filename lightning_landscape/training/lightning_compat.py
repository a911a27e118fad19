"""Access to private attributes of Lightning, one function each, written for 2.6.1 to 2.6.6."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader


def batches_that_stepped(trainer: Trainer) -> int:
    """Return the step at which Lightning logs the curves of the current batch."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def declared_hyperparameters(trainer: Trainer) -> dict[Any, dict[str, Any]]:
    """Return the hyper-parameters that Lightning will log together with ``hp_metric``.

    Returns:
        For each logger a flat dictionary of texts and numbers. It is empty if Lightning logs no
        ``hp_metric``.
    """
    holders = [trainer.lightning_module, trainer.datamodule]  # type: ignore[attr-defined]
    given = [
        holder.hparams_initial
        for holder in holders
        if holder is not None and holder._log_hyperparams
    ]
    loggers: list[Any] = [
        logger for logger in trainer.loggers if getattr(logger, "_default_hp_metric", False)
    ]
    if not given or not loggers or not getattr(trainer, "enable_autolog_hparams", True):
        return {}
    merged = {
        key: value for hparams in given for key, value in hparams.items() if key != "_class_path"
    }
    flat = _flatten_dict(_convert_params(merged))
    return {logger: logger._sanitize_params(flat) for logger in loggers}


def has_validation(trainer: Trainer) -> bool:
    """Return whether there is a validation loader."""
    return bool(trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())


def validation_loaders(trainer: Trainer) -> list[Any]:
    """Return the validation loaders, prepared by Lightning if it has done so already."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    combined = loop._combined_loader
    if combined is None:  # Lightning has not prepared them: take the user's
        combined = CombinedLoader(loop._data_source.dataloader(), "sequential")
    return list(combined.flattened)


def on_device(trainer: Trainer, batch: Any) -> Any:
    """Convert a batch and move it to the device through all hooks, as for ``training_step``."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def has_batches_of_its_own(trainer: Trainer) -> bool:
    """Return whether this process counts for the mini-batches of its tensor-parallel group."""
    # All processes of a tensor-parallel group have the same mini-batches: the first one counts.
    mesh = getattr(trainer.strategy, "_device_mesh", None)
    return mesh is None or int(mesh["tensor_parallel"].get_local_rank()) == 0


def _progresses(trainer: Trainer) -> dict[str, Any]:
    epoch_loop = trainer.fit_loop.epoch_loop
    return {
        "epoch": trainer.fit_loop.epoch_progress,
        "batch": epoch_loop.batch_progress,
        "scheduler": epoch_loop.scheduler_progress,
        "optimizer": epoch_loop.automatic_optimization.optim_progress,
        "manual": epoch_loop.manual_optimization.optim_step_progress,
    }


def read_counters(trainer: Trainer) -> dict[str, Any]:
    """Return the counters behind ``global_step``, ``current_epoch`` and others as plain values."""
    return {
        "progress": {name: _values(progress) for name, progress in _progresses(trainer).items()},
        "batches_that_stepped": batches_that_stepped(trainer),
        "stage": None if trainer.state.stage is None else trainer.state.stage.value,
    }


def _values(progress: Any) -> dict[str, Any]:
    return {
        name: _values(value) if is_dataclass(value) else value
        for name, value in vars(progress).items()
    }


def write_counters(trainer: Trainer, counters: dict[str, Any]) -> None:
    """Set the trainer's counters to the values that `read_counters` returned."""
    for name, progress in _progresses(trainer).items():
        _assign(progress, counters["progress"][name])
    trainer.fit_loop.epoch_loop._batches_that_stepped = counters["batches_that_stepped"]
    trainer.state.stage = None if counters["stage"] is None else RunningStage(counters["stage"])


def _assign(progress: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):  # a nested progress: no counter is a dict
            _assign(getattr(progress, name), value)
        else:
            setattr(progress, name, value)
