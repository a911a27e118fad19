"""Two ranks on the CPU: ``python -m tests.optim.ddp_script FOLDER`` writes ``rank-*.pt``."""

import os
import sys
import warnings
from math import nan
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.optim.problems import METHODS

RANKS, STEPS, BATCH = 2, 12, 3


def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(RANKS * STEPS * BATCH, 3, generator=generator, dtype=torch.float64)
    return TensorDataset(x, x.sin().sum(1, keepdim=True))


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    ).double()


def batches(rank, ranks):
    """Return a rank's batches; those of all ranks together are the batches of one process."""
    x, y = data().tensors
    return [
        (
            x[k + rank :: ranks][: RANKS * BATCH // ranks],
            y[k + rank :: ranks][: RANKS * BATCH // ranks],
        )
        for k in starts()
    ]


def starts():
    return range(0, RANKS * STEPS * BATCH, RANKS * BATCH)


def train(name, rank, ranks, wrong_loss=None, lr=4.0):
    """Return the steps and the last parameters; at step 5 rank 1 may report a wrong loss."""
    net = network()
    model = DistributedDataParallel(net) if ranks > 1 else net
    optimizer = METHODS[name](net.parameters(), lr=lr)
    steps = []
    for k, (x, y) in enumerate(batches(rank, ranks)):

        def closure(k=k, x=x, y=y):
            optimizer.zero_grad()
            loss = mse_loss(model(x), y)
            loss.backward()
            return (
                torch.tensor(wrong_loss) if wrong_loss is not None and (k, rank) == (5, 1) else loss
            )

        optimizer.step(closure)
        steps.append(optimizer.step_size)
    return {"steps": steps, "parameters": [p.detach() for p in net.parameters()]}


def nothing_on_one_rank(name, rank):
    """Return parameter and state after a step for which rank 1 has neither loss nor gradient."""
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = METHODS[name]([p])

    def closure():
        if rank == 1:
            return None
        p.grad = torch.ones(1)
        return 1.0

    optimizer.step(closure)
    return p.item(), optimizer.step_size


def refused(name, rank, loss, gradient):
    """Return the error of a step; every rank has to raise it."""
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = METHODS[name]([p])
    p.grad = torch.full((1,), gradient[rank])
    try:
        optimizer.step(lambda: loss[rank])
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}", p.item(), optimizer.step_size
    return None


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    results = {
        "trained": {name: train(name, rank, RANKS) for name in METHODS},
        "nan": {name: train(name, rank, RANKS, wrong_loss=nan) for name in METHODS},
        "inf": {name: train(name, rank, RANKS, wrong_loss=float("inf")) for name in METHODS},
        "nothing": {name: nothing_on_one_rank(name, rank) for name in METHODS},
        "shards": {name: refused(name, rank, (1.0, 1.0), (1.0, 2.0)) for name in METHODS},
        "below": refused("NGN", rank, (1.0, -2.0), (1.0, 1.0)),
        "one_below": refused("NGN", rank, (3.0, -2.0), (1.0, 1.0)),
        "forgotten": refused("NGN", rank, (1.0, None), (1.0, 1.0)),
    }
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


class Module(pl.LightningModule):
    def __init__(self, name, folder):
        super().__init__()
        self.net, self.name, self.folder, self.steps = network(), name, folder, []

    def train_dataloader(self):
        return DataLoader(data(), BATCH, sampler=DistributedSampler(data(), shuffle=False))

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, *args):
        self.steps.append(self.optimizers().step_size)

    def on_train_end(self):
        results = {"steps": self.steps, "parameters": [p.detach() for p in self.parameters()]}
        torch.save(results, self.folder / f"lightning-{self.name}-{self.global_rank}.pt")

    def configure_optimizers(self):
        return METHODS[self.name](self.parameters(), lr=4.0)


def in_lightning(name, folder):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy="ddp_fork",
        use_distributed_sampler=False,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(name, folder))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    mp.start_processes(work, (Path(sys.argv[1]),), RANKS, start_method="fork")
    for chosen in ("DecSPS", "AdaGradNormMax"):
        in_lightning(chosen, Path(sys.argv[1]))
