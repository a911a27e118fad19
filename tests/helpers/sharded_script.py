"""A sharded run (FSDP2, tensor parallelism) in processes of its own: ``python -m tests.helpers.sharded_script FOLDER [options]``.

Lightning starts the other processes itself, by the same command.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lightning_landscape import LandscapeMonitor
from tests.helpers import distributed
from tests.helpers.modules import CLASSES, FEATURES


class Sharded(distributed.Net):
    """The same network as `Net`, with layers of uneven shards and one that is frozen; its parts are sharded by themselves."""

    def __init__(self, wrap_root=True):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(FEATURES, 15), nn.Tanh(), nn.Linear(15, 16), nn.Tanh(), nn.Linear(16, CLASSES))
        self.net[2].weight.requires_grad_(False)
        self.wrap_root = wrap_root

    def configure_model(self):
        mesh = getattr(self, "_device_mesh", None)
        if mesh is None or hasattr(self, "sharded"):
            return
        self.sharded = True
        parallel, data = mesh["tensor_parallel"], mesh["data_parallel"]
        if parallel.size() > 1:
            from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

            parallelize_module(self.net, parallel, {"2": ColwiseParallel(), "4": RowwiseParallel()})
        if data.size() > 1:
            from torch.distributed.fsdp import fully_shard

            for layer in (self.net[0], self.net[2]):
                fully_shard(layer, mesh=data)
            if self.wrap_root:
                fully_shard(self.net, mesh=data)


class Dropout(Sharded):
    """What is random is captured by each process."""

    def __init__(self, wrap_root=True):
        super().__init__(wrap_root)
        self.net[1] = nn.Sequential(nn.Tanh(), nn.Dropout(0.3))


class WholeParameters(Callback):
    """Writes down whether a full parameter was ever put together, and what each process ends with."""

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
        ends = {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in pl_module.named_parameters()}
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {"random": torch.get_rng_state(), "module": ends, "gathered": self.gathered}
        torch.save(found, self.folder / f"end-{trainer.global_rank}.pt")


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=int, default=2)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--module", default="Sharded")
    parser.add_argument("--no-root", action="store_true")
    parser.add_argument("--loss", action="store_true")
    parser.add_argument("--monitor", type=json.loads, default={})
    parser.add_argument("--without", action="store_true")
    parser.add_argument("--trainer", type=json.loads, default={})
    parser.add_argument("--whole", action="store_true", help="one process, nothing sharded")
    parser.add_argument("--resume", default=None)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arguments = {"every_n_steps": 1, "figures": False, **options.monitor}
    if options.loss:
        arguments["loss"] = distributed.smoothed_loss
    processes = 1 if options.whole else options.data * options.tensor
    strategy = None
    if not options.whole:
        strategy = ModelParallelStrategy(data_parallel_size=options.data, tensor_parallel_size=options.tensor)
    distributed.train(
        options.folder,
        [] if options.without else [LandscapeMonitor(**arguments)],
        processes=processes,
        strategy=strategy,
        module=lambda: globals()[options.module](not options.no_root),
        callbacks_after=[WholeParameters(options.folder)],
        ckpt_path=options.resume,
        **options.trainer,
    )
    if not options.whole and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
