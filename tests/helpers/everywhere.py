"""A module whose training reaches outside of itself, and counts of every call of its code.

Its loss depends on a closure, a class attribute, a global, a file, and a sampler to which it tells
its losses. So a single call more of any of its parts changes the rest of training.
"""

import collections
import copy
import csv
import random

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from tests.helpers.modules import CLASSES, FEATURES

COUNTS = collections.Counter()
"""Number of calls by name; of this process"""
EVENTS = []
"""What happened, in its order; of this process"""
GLOBALS = {"steps": 0}
"""A global that ``training_step`` changes, and on which its loss depends"""


def counting(name):
    def called(*args, **kwargs):
        COUNTS[name] += 1

    return called


# ----------------------------------------------------------------------------------- data


class Samples(Dataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(count, FEATURES, generator=generator)
        self.y = torch.randint(CLASSES, (count,), generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        COUNTS["data set"] += 1
        return self.x[index], self.y[index], index


class Importance(Sampler):
    """Draws samples with a large loss more often; training tells it the losses."""

    def __init__(self, count):
        self.weights = torch.ones(count)
        self.generator = torch.Generator().manual_seed(3)

    def __len__(self):
        return len(self.weights)

    def __iter__(self):
        COUNTS["sampler iterated"] += 1
        for _ in range(len(self)):
            COUNTS["sampler draws"] += 1
            yield int(torch.multinomial(self.weights, 1, generator=self.generator))

    def update(self, index, losses):
        COUNTS["sampler updated"] += 1
        self.weights[index] = losses.float() + 0.1


def collate(samples):
    COUNTS["collate"] += 1
    return torch.utils.data.default_collate(samples)


def loader(batches=7, batch_size=6):
    samples = Samples(batches * batch_size)
    return DataLoader(samples, batch_size, sampler=Importance(len(samples)), collate_fn=collate)


# ----------------------------------------------------------------------- objects, functions


class Touchy:
    """Counts how often it is copied or pickled."""

    def __deepcopy__(self, memo):
        COUNTS["__deepcopy__"] += 1
        return self

    def __copy__(self):
        COUNTS["__copy__"] += 1
        return self

    def __getstate__(self):
        COUNTS["__getstate__"] += 1
        return {}

    def __reduce_ex__(self, protocol):
        COUNTS["__reduce_ex__"] += 1
        return super().__reduce_ex__(protocol)


class TouchyNumber(Touchy, float):
    """A number, as far as ``isinstance`` can tell."""


class TouchyText(Touchy, str):
    """A text, as far as ``isinstance`` can tell."""


class TouchyRandom(Touchy, random.Random):
    """A generator of random numbers, as far as ``isinstance`` can tell."""


class TouchyList(Touchy, list):
    """A list, as far as ``isinstance`` can tell."""


class TouchyDict(Touchy, collections.OrderedDict):
    """A dictionary, as far as ``isinstance`` can tell."""


class Twice(torch.autograd.Function):
    """2 x, with its calls counted."""

    @staticmethod
    def forward(ctx, x):
        COUNTS["forward of an autograd.Function"] += 1
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        COUNTS["backward of an autograd.Function"] += 1
        return 2 * gradient


def closure():
    """Return a function with a state that nothing else can see, and one that shows that state."""
    generator, calls, mean = random.Random(5), [0], MeanMetric()

    def draw():
        COUNTS["closure"] += 1
        calls[0] += 1
        value = generator.random()
        mean.update(value)
        return value + 0.1 * (calls[0] % 3)

    def state():
        return generator.getstate(), list(calls), mean.mean_value.clone(), mean.weight.clone()

    return draw, state


# -------------------------------------------------------------------------------- the module


class Everywhere(LightningModule):
    """Training that reaches outside of its module, in every way that users have."""

    calls = 0

    def __init__(self, folder, manual=False):
        super().__init__()
        self.automatic_optimization = not manual
        self.folder = folder
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, CLASSES),
        )
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.draw, self.drawn = closure()
        self.touchy, self.bag = Touchy(), [Touchy(), {"inner": Touchy()}]
        self.net[0].touchy = Touchy()
        self.number, self.text = TouchyNumber(2.5), TouchyText("text")
        self.generator = TouchyRandom(1)
        self.list, self.ordered = TouchyList([1, 2]), TouchyDict(a=[1], b=torch.ones(2))
        self.history = []
        for name, part in self.named_modules():
            if not name.startswith("accuracy"):
                self.watch(part, name or "module")
        for name, parameter in self.named_parameters():
            parameter.register_hook(counting(f"hook of {name}"))
            parameter.register_post_accumulate_grad_hook(counting(f"{name} accumulated"))

    @staticmethod
    def watch(part, name):
        part.register_forward_pre_hook(counting(f"before forward of {name}"))
        part.register_forward_hook(counting(f"forward of {name}"))
        part.register_full_backward_hook(counting(f"backward of {name}"))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        COUNTS["training_step"] += 1
        EVENTS.append("training_step")
        x, y, index = batch
        logits = Twice.apply(self(x))
        logits.register_hook(counting("hook of an activation"))
        losses = cross_entropy(logits.float(), y, reduction="none")
        self.trainer.train_dataloader.sampler.update(index, losses.detach())
        self.accuracy(logits, y)
        loss = self.factor(batch_idx) * losses.mean()
        self.history.append(loss.item())
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_epoch=True)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def factor(self, batch_idx):
        """Return a number that depends on what lies outside; each call changes it."""
        type(self).calls += 1
        GLOBALS["steps"] += 1
        path = self.folder / f"steps-{self.global_rank}.txt"
        with path.open("a") as file:
            file.write(f"{batch_idx}\n")
        size = path.stat().st_size
        return 1 + 0.1 * self.draw() + 0.01 * (self.calls % 7 + GLOBALS["steps"] % 5 + size % 11)

    def backward(self, loss, *args, **kwargs):
        COUNTS["module.backward"] += 1
        super().backward(loss, *args, **kwargs)

    def optimizer_step(self, *args, **kwargs):
        COUNTS["module.optimizer_step"] += 1
        super().optimizer_step(*args, **kwargs)

    def transfer_batch_to_device(self, *args, **kwargs):
        COUNTS["module.transfer_batch_to_device"] += 1
        return super().transfer_batch_to_device(*args, **kwargs)

    def configure_optimizers(self):
        COUNTS["module.configure_optimizers"] += 1
        optimizer = CountingSGD(self.parameters(), lr=0.1, momentum=0.5)
        if not self.automatic_optimization:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)]


class CountingSGD(torch.optim.SGD):
    def step(self, closure=None):
        COUNTS["optimizer.step"] += 1
        return super().step(closure)

    def zero_grad(self, set_to_none=True):
        COUNTS["optimizer.zero_grad"] += 1
        super().zero_grad(set_to_none)

    def state_dict(self):
        COUNTS["optimizer.state_dict"] += 1
        return super().state_dict()


_HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_save_checkpoint",
)


def _noting(name):
    def hook(*args):
        COUNTS[name] += 1
        if name.endswith(("on_train_end", "on_save_checkpoint")):
            EVENTS.append(name)

    return hook


for _hook in _HOOKS:
    setattr(Everywhere, _hook, _noting(f"module.{_hook}"))


class Before(Callback):
    """Counts the hooks of a callback that comes before the monitor."""


class After(Callback):
    """Counts the hooks of a callback that comes after the monitor."""


for _kind in (Before, After):
    for _hook in _HOOKS:
        setattr(_kind, _hook, _noting(f"{_kind.__name__}.{_hook}"))


def functional_loss(module, batch):
    """A loss of the user's own, in which no submodule is called."""
    COUNTS["loss"] += 1
    x, y, _ = batch
    first, last = module.net[0], module.net[4]
    hidden = functional.linear(x, first.weight, first.bias).tanh()
    return cross_entropy(functional.linear(hidden, last.weight, last.bias).float(), y)


def loss_of_the_module(module, batch):
    """A loss of the user's own, which calls a submodule."""
    COUNTS["loss"] += 1
    x, y, _ = batch
    return cross_entropy(module.net(x).float(), y)


# ------------------------------------------------------------------------------------ a run


class Iterates(Callback):
    """Keeps the parameters after the last step that had a backward pass of its own."""

    def __init__(self, folder):
        self.folder, self.differentiated = folder, False

    def on_after_backward(self, trainer, pl_module):
        self.differentiated = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.differentiated and trainer.global_rank == 0:
            values = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
            torch.save(values, self.folder / "iterate.pt")
        self.differentiated = False


class LastOfAll(Checkpoint):
    """Lightning calls its ``on_train_end`` after that of every other callback: notes everything."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        EVENTS.append("the last on_train_end")
        found = snapshot(trainer, pl_module)
        torch.save(found, self.folder / f"end-{trainer.global_rank}.pt")

    def on_fit_end(self, trainer, pl_module):
        torch.save(list(EVENTS), self.folder / f"events-{trainer.global_rank}.pt")


def snapshot(trainer, module):
    """Return all that a run has done until now, in this process."""
    sampler = trainer.train_dataloader.sampler
    file = module.folder / f"steps-{module.global_rank}.txt"
    return copy.deepcopy(
        {
            "counts": dict(COUNTS),
            "module": module.state_dict(),
            "gradients": {name: p.grad for name, p in module.named_parameters()},
            "optimizer": [torch.optim.Optimizer.state_dict(o) for o in trainer.optimizers],
            "metrics": dict(trainer.callback_metrics),
            "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),
            "outside": {
                "closure": module.drawn(),
                "class attribute": type(module).calls,
                "global": dict(GLOBALS),
                "file": file.read_text(),
                "sampler": (sampler.weights, sampler.generator.get_state()),
                "history": module.history,
            },
        }
    )


def train(
    folder,
    callbacks=(),
    *,
    processes=1,
    manual=False,
    epochs=3,
    beside=(),
    ckpt_path=None,
    **kwargs,
):
    """Train with callbacks between two others; return the trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    COUNTS.clear()
    EVENTS.clear()
    GLOBALS["steps"], Everywhere.calls = 0, 0
    pl.seed_everything(1, verbose=False)
    module = Everywhere(folder, manual)
    saved = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="auto" if processes == 1 else "ddp_fork",
        use_distributed_sampler=False,
        max_epochs=epochs,
        default_root_dir=folder,
        logger=CSVLogger(folder, name="", version="run", flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            Iterates(folder), Before(), *callbacks, *beside, After(), saved, LastOfAll(folder)
        ],
        **kwargs,
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer


def ends(folder):
    """Return what each process of a run had done when the last ``on_train_end`` had run."""
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob("end-*.pt"))]


def logged(folder):
    """Return what the user's code logged: the monitor's rows have no column of the user's."""
    with (folder / "run" / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    own = [{k: v for k, v in row.items() if "landscape" not in k} for row in rows]
    return [row for row in own if set(row) - {"step", "epoch"}]


def checkpoints(folder):
    """Return the content of each checkpoint, without the monitor's state."""
    found = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        content = torch.load(path, weights_only=False)
        states = content["callbacks"].items()
        content["callbacks"] = {k: v for k, v in states if "LandscapeMonitor" not in k}
        found[path.name] = without_folder(content, str(folder))
    return found


def without_folder(value, folder):
    """Return a value in which the folder of the run has no name: it differs between two runs."""
    if isinstance(value, dict):
        items = value.items()
        return {without_folder(k, folder): without_folder(v, folder) for k, v in items}
    if isinstance(value, (list, tuple)):
        return [without_folder(item, folder) for item in value]
    return value.replace(folder, "") if isinstance(value, str) else value


def assert_same(a, b, where="run"):
    """Assert that two nested values are the same to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where
