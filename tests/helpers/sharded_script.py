"""Sharded runs (FSDP2, tensor parallelism) in processes of their own.

``python -m tests.helpers.sharded_script FOLDER DATA TENSOR JOBS``. Lightning starts the other
processes itself, by the same command.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lightning_landscape import (
    HeldOut,
    LandscapeMonitor,
    Layers,
    PerSample,
    Report,
    Secant,
    Segments,
    Store,
)
from tests.helpers import distributed
from tests.helpers.modules import CLASSES, FEATURES
from tests.soak import failures


class Sharded(distributed.Net):
    """A network with uneven shards and a frozen layer; some layers are sharded by themselves."""

    whole = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 15), nn.Tanh(), nn.Linear(15, 16), nn.Tanh(), nn.Linear(16, CLASSES)
        )
        self.net[2].weight.requires_grad_(False)

    def configure_model(self):
        mesh = getattr(self, "_device_mesh", None)
        if mesh is None or hasattr(self, "sharded"):
            return
        self.sharded = True
        parallel, data = mesh["tensor_parallel"], mesh["data_parallel"]
        if parallel.size() > 1:
            from torch.distributed.tensor.parallel import (
                ColwiseParallel,
                RowwiseParallel,
                parallelize_module,
            )

            parallelize_module(self.net, parallel, {"2": ColwiseParallel(), "4": RowwiseParallel()})
        if data.size() > 1:
            from torch.distributed.fsdp import fully_shard

            for layer in (self.net[0], self.net[2]):
                fully_shard(layer, mesh=data)
            if self.whole:
                fully_shard(self.net, mesh=data)


class Dropout(Sharded):
    """Random numbers that differ between processes."""

    def __init__(self):
        super().__init__()
        self.net[1] = nn.Sequential(nn.Tanh(), nn.Dropout(0.3))


class NeedsAutogradInOne(Sharded):
    """A backward pass in training_step, as in a gradient penalty, on the second process only."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_rank == 1 and not torch.is_grad_enabled():
            raise RuntimeError(
                "element 0 of tensors does not require grad and does not have a grad_fn"
            )
        return loss


class PartlySharded(Sharded):
    """A layer is left out: nobody averages its gradients."""

    whole = False


class WholeParameters(Callback):
    """Writes down whether a full parameter was ever gathered, and what each process ends with."""

    def __init__(self, folder):
        self.folder, self.gathered = folder, 0

    def on_fit_start(self, trainer, pl_module):
        from torch.distributed.tensor import DTensor

        original = DTensor.full_tensor

        def counted(tensor, *args, **kwargs):
            self.gathered += 1
            return original(tensor, *args, **kwargs)

        DTensor.full_tensor, self.original = counted, original

    def on_fit_end(self, trainer, pl_module):
        from torch.distributed.tensor import DTensor

        DTensor.full_tensor = self.original
        ends = {
            name: getattr(p, "full_tensor", lambda p=p: p)().detach()
            for name, p in pl_module.named_parameters()
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {"random": torch.get_rng_state(), "module": ends, "gathered": self.gathered}
        torch.save(found, self.folder / f"end-{trainer.global_rank}.pt")


EXTRAS = {
    "HeldOut": HeldOut(distributed.held_out_batches, fixed=2),
    "Layers": Layers(),
    "PerSample": PerSample(),
    "Secant": Secant(),
    "Segments": Segments(),
}


def train(
    folder,
    data,
    tensor,
    *,
    module="Sharded",
    loss=False,
    without=False,
    monitor=None,
    trainer=None,
    resume=None,
    error=None,
):
    """Train once.

    Args:
        folder: where the run is written.
        data: number of data-parallel processes; 0 for one process without a mesh.
        tensor: number of tensor-parallel processes.
        module: name of a class of this file.
        loss: whether the monitor has a ``loss=``.
        without: whether there is no monitor.
        monitor: arguments of the monitor; ``extras`` by their names in `EXTRAS`, ``store`` by the
            arguments of `Store`.
        trainer: arguments of the trainer.
        resume: a checkpoint to go on from.
        error: the place of an error in one of the processes, arguments of `failures.Case`.
    """
    given = dict(monitor or {})
    names, store = given.pop("extras", []), given.pop("store", {})
    if "PerSample" in names:
        given["loss"] = distributed.sample_losses
    if loss:
        given["loss"] = distributed.smoothed_loss
    arguments = {
        "every_n_steps": 1,
        "extras": [EXTRAS[name] for name in names],
        "store": Store(**store),
        "report": Report(images=None),
        **given,
    }
    strategy = (
        ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor)
        if data
        else None
    )
    distributed.train(
        folder,
        [] if without else [LandscapeMonitor(**arguments)],
        processes=data * tensor or 1,
        strategy=strategy,
        module=globals()[module],
        callbacks_before=[]
        if error is None
        else [failures.AtSetup(folder, failures.Case(**error))],
        callbacks_after=[WholeParameters(folder)],
        ckpt_path=resume,
        **(trainer or {}),
    )


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=int)
    parser.add_argument("tensor", type=int)
    parser.add_argument(
        "jobs", type=json.loads, help="keyword arguments of `train` by name of a subfolder"
    )
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name, arguments in options.jobs.items():
        try:
            train(options.folder / name, options.data, options.tensor, **arguments)
        except MisconfigurationException as refusal:
            (options.folder / name).mkdir(parents=True, exist_ok=True)
            (options.folder / name / "refusal.txt").write_text(str(refusal))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
