"""Modules with unusual attributes or training_steps: the run is unchanged or refused."""

import collections
import copy
import itertools
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import nn
from torch.quasirandom import SobolEngine
from torch.utils.data import Dataset

from lightning_landscape import LandscapeMonitor, Secant
from tests.helpers.brute_force import Recording
from tests.helpers.modules import OwnOptimizerStep, Plain, Tied, loader, plain_loss
from tests.helpers.slow import some
from tests.integration.test_refusals import assert_refused


class Slotted:
    __slots__ = ("items", "n")

    def __init__(self):
        self.n, self.items = 0, []


class Buffer(Dataset):
    def __init__(self):
        self.items = []

    def __len__(self):
        return len(self.items)


class Dictionary(collections.UserDict):
    pass


class Holder(Plain):
    """Scales its loss by a number from each of these sources; evaluations change the number."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.slotted, self.buffer, self.dictionary = Slotted(), Buffer(), Dictionary(n=0)
        self.state, self.sobol, self.count = (
            np.random.RandomState(0),
            SobolEngine(1),
            itertools.count(),
        )
        self.default, self.teacher = collections.defaultdict(int), [nn.Linear(12, 16)]
        self.script = (
            torch.jit.trace(nn.Linear(12, 12), torch.zeros(1, 12)) if kind == "script" else None
        )
        self.hooked = False
        self.chain = None
        for _ in range(3000 if kind == "chain" else 0):
            self.chain = [self.chain]

    def number(self, batch):
        getattr(self, f"use_{self.kind}")(batch)
        return {
            "slotted": lambda: self.slotted.n + len(self.slotted.items),
            "buffer": lambda: len(self.buffer),
            "dictionary": lambda: self.dictionary["n"],
            "state": lambda: 5 * self.state.rand(),
            "sobol": lambda: 5 * self.sobol.draw(1).item(),
            "count": lambda: next(self.count),
            "default": lambda: self.default["n"],
            "teacher": lambda: self.teacher[0].weight.detach().abs().mean().item(),
            "reassigned": lambda: self.net[0].bias.detach().abs().mean().item(),
        }.get(self.kind, lambda: 0)()

    def use_slotted(self, batch):
        self.slotted.n += 1
        self.slotted.items.append(batch)

    def use_buffer(self, batch):
        self.buffer.items.append(batch)

    def use_dictionary(self, batch):
        self.dictionary["n"] += 1

    def use_default(self, batch):
        self.default["n"] += 1

    def use_teacher(self, batch):
        self.teacher[0].weight.data.lerp_(self.net[0].weight.data, 0.3)

    def use_hook(self, batch):
        if not self.hooked:
            self.hooked = True
            self.net[0].register_forward_hook(lambda module, args, output: output * 0.9)

    def use_rate(self, batch):
        for group in self.optimizers().optimizer.param_groups:
            group["lr"] = 0.1 / (1 + self.global_step)

    def use_flags(self, batch):
        self.net[4].requires_grad_(self.global_step >= 5)

    def use_script(self, batch):
        self.script(batch[0])

    def use_nothing(self, batch):
        pass

    use_state = use_sobol = use_count = use_reassigned = use_chain = use_nothing

    def compute_loss(self, batch):
        return super().compute_loss(batch) * (1 + 0.1 * self.number(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05)


KINDS = [
    "slotted",
    "buffer",
    "dictionary",
    "state",
    "sobol",
    "count",
    "default",
    "teacher",
    "hook",
    "rate",
    "flags",
    "chain",
    "script",
]
EXACT = {
    "state",
    "default",
    "rate",
    "flags",
    "chain",
    "script",
}  # what is stored with a probe, or does not change the loss


def train(module, *callbacks, epochs=2, **kwargs):
    settings = {
        "accelerator": "cpu",
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": False,
    }
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, **kwargs}
    trainer = pl.Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, loader(8))
    return trainer, module


def left_behind(trainer, module):
    """Return the part of a run's last state in which these modules differ."""
    held = {
        name: value
        for name, value in vars(module).items()
        if name in ("dictionary", "default", "hooked")
    }
    return {
        "parameters": [p.detach().clone() for p in module.parameters()],
        "flags": [p.requires_grad for p in module.parameters()],
        "gradients": [p.grad for p in module.parameters()],
        "rates": [group["lr"] for group in trainer.optimizers[0].param_groups],
        "held": (
            module.slotted.n,
            len(module.slotted.items),
            len(module.buffer),
            str(held),
            next(module.count),
        ),
        "random": (torch.get_rng_state(), module.state.rand(), module.sobol.draw(1)),
        "teacher": module.teacher[0].weight,
        "hooks": len(module.net[0]._forward_hooks),
    }


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.filterwarnings(
    "ignore:LandscapeMonitor evaluated a mini-batch loss again", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("loss", [None, plain_loss], ids=["training_step", "loss"])
@pytest.mark.parametrize("kind", some(KINDS, every=2))
def test_the_run_is_the_same(kind, loss, tmp_path):
    pl.seed_everything(0, verbose=False)
    plain = left_behind(*train(Holder(kind)))
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=3, loss=loss)
    pl.seed_everything(0, verbose=False)
    watched = left_behind(*train(Holder(kind), monitor))
    for part in plain:
        assert_equal(plain[part], watched[part])
    assert len(monitor.table) == 6
    if loss is None and kind in EXACT:
        assert monitor.summary["run"]["fidelity"]["exact"]


def test_tied_weights_with_a_loss_of_the_user(tmp_path):
    runs = []
    for callbacks in ([], [LandscapeMonitor(dirpath=tmp_path, every_n_steps=2, loss=plain_loss)]):
        pl.seed_everything(0, verbose=False)
        runs.append(train(Tied(), *callbacks)[1])
    assert all(torch.equal(a, b) for a, b in zip(*(run.parameters() for run in runs), strict=True))


@pytest.mark.parametrize(
    "make", [lambda: itertools.cycle([1, 2]), lambda: (i for i in range(9)), lambda: iter([1, 2])]
)
def test_an_iterator_among_the_attributes_is_refused_unless_the_loss_is_the_users(make, tmp_path):
    module = Plain()
    module.stream = make()
    assert_refused(LandscapeMonitor(), "iterators", "'stream'", "loss=", module=module)
    monitor = LandscapeMonitor(dirpath=tmp_path, loss=plain_loss)
    train(module, monitor, epochs=1)
    assert len(monitor.table) == 1


def test_an_own_optimizer_step_that_drops_gradients_is_measured_as_it_is(tmp_path):
    """The gradient is that of the last batch only; zero_grad clears earlier evaluations."""
    seen = []

    class Seeing(Recording):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(sum(float(p.grad.double().square().sum()) for p in pl_module.parameters()))

        def on_train_batch_end(self, *args):
            pass

    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=1)
    train(OwnOptimizerStep(), monitor, Seeing(), epochs=1)
    assert len(monitor.table) == 4
    assert monitor.table.column("grad_sq_norm").tolist() == pytest.approx(seen, rel=1e-6)
    assert monitor.table.column("step_size").tolist() == pytest.approx([0.1] * 4, rel=1e-4)
    assert monitor.summary["run"]["fidelity"]["exact"]


def test_an_optimizer_that_evaluates_twice_a_step_is_refused():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    class Sharpness(Plain):
        optimizer_class, optimizer_kwargs = Twice, {"lr": 0.1}

    with pytest.raises(MisconfigurationException, match="more than once a step; supported are"):
        train(Sharpness(), LandscapeMonitor())


def test_complex_parameters_are_refused():
    class Complex(Plain):
        def __init__(self):
            super().__init__()
            self.spectrum = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    assert_refused(LandscapeMonitor(), "complex parameters", "'spectrum'", module=Complex())


def test_the_module_can_be_pickled_and_copied_in_the_middle_of_a_probe(tmp_path):
    class Copying(Callback):
        def on_after_backward(self, trainer, pl_module):
            self.pickled = pickle.dumps(pl_module)

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            self.copied = copy.deepcopy(pl_module)

    copying, monitor = Copying(), LandscapeMonitor(dirpath=tmp_path, every_n_steps=1)
    trainer, _ = train(Plain(), copying, monitor, epochs=1)
    assert "training_step" not in vars(pickle.loads(copying.pickled))
    assert "training_step" not in vars(copying.copied)
    assert "training_step" not in vars(trainer.strategy)
    assert len(monitor.table) == 8


class Unsayable:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


def test_hyper_parameters_of_any_kind_do_not_cost_the_report(tmp_path):
    class Odd(Plain):
        def __init__(self):
            super().__init__()
            itself = {}
            itself["itself"] = itself
            self.save_hyperparameters(
                {
                    "unsayable": Unsayable(),
                    "surrogate": "\udc80",
                    "itself": itself,
                    "nan": float("nan"),
                }
            )

    monitor = LandscapeMonitor(dirpath=tmp_path)
    train(Odd(), monitor, epochs=1)
    hparams = monitor.summary["run"]["hparams"]
    assert hparams["unsayable"] == "Unsayable without a text: RuntimeError"
    assert hparams["nan"] == "nan"
    assert (tmp_path / "landscape" / "summary.json").is_file()


class SparseEmbedding(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 3, sparse=True)

    def training_step(self, batch, batch_idx):
        return self.table(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_sparse_gradients_are_measured_and_taken_again(tmp_path):
    monitor = LandscapeMonitor(every_n_steps=1, dirpath=tmp_path, extras=[Secant()])
    settings = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[monitor], **settings)
    trainer.fit(SparseEmbedding(), torch.utils.data.DataLoader(torch.arange(12) % 10, 3))
    assert [probe.step for probe in monitor.table] == [0, 1, 2, 3]
    assert monitor.summary["run"]["fidelity"]["exact"] is True
    assert monitor.summary["run"]["fidelity"]["gradient"] == 0
