"""Small modules, each with one thing that its loss depends on and a careless replay gets wrong."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

FEATURES, CLASSES = 12, 4


def loader(batches=10, batch_size=6, shuffle=True, dtype=torch.float32):
    """Return a loader over a fixed data set; its order comes from the global generator."""
    generator = torch.Generator().manual_seed(7)
    count = batches * batch_size
    x = torch.randn(count, FEATURES, generator=generator).to(dtype)
    y = torch.randint(CLASSES, (count,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=shuffle)


class Meter:
    """A plain Python object with state, as users' modules have."""

    def __init__(self):
        self.total, self.history = 0.0, []

    def update(self, value):
        self.total += value
        self.history.append(value)


class Plain(LightningModule):
    """Dropout, BatchNorm, a torchmetrics metric, a scheduler, a list that training_step fills."""

    optimizer_class, optimizer_kwargs = torch.optim.SGD, {"lr": 0.1}

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, CLASSES),
        )
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.losses, self.counts, self.meter, self.cache = (
            [],
            {"steps": 0, "nested": [[0]]},
            Meter(),
            None,
        )
        self.running = torch.zeros(())

    def compute_loss(self, batch):
        x, y = batch
        logits = self.net(x)
        self.accuracy(logits, y)
        return cross_entropy(logits.float(), y)

    def training_step(self, batch, batch_idx):
        loss = self.compute_loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.losses.append(loss.detach())
        self.counts["steps"] += 1
        self.counts["nested"][0][0] += 1
        self.meter.update(loss.item())
        self.cache = loss.detach() * 2
        self.running += 1
        return loss

    def on_train_epoch_end(self):
        self.log("list_mean", torch.stack(self.losses).mean())
        self.log("list_length", float(len(self.losses)))
        self.log("meter", self.meter.total)
        self.losses.clear()

    def configure_optimizers(self):
        optimizer = self.optimizer_class(self.parameters(), **self.optimizer_kwargs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7),
        }


class PlainFused(Plain):
    optimizer_kwargs = {"lr": 0.1, "fused": True}


class PlainAdam(Plain):
    optimizer_class, optimizer_kwargs = torch.optim.Adam, {"lr": 0.01, "fused": True}


class SkipsMicroBatch(Plain):
    """training_step returns None for one micro-batch of a window, and for a whole window."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx in (1, 4, 5) else {"loss": loss, "extra": batch}


class Annealed(Plain):
    """The loss depends on the trainer's step and epoch (as KL annealing does)."""

    def compute_loss(self, batch):
        weight = min(1.0, self.trainer.global_step / 10) + 0.1 * self.current_epoch
        return super().compute_loss(batch) + weight * self.net[0].weight.square().mean()


class TargetInBuffers(Plain):
    """The loss depends on a slow copy of the weights, kept in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("target", self.net[0].weight.detach().clone())

    def compute_loss(self, batch):
        return super().compute_loss(batch) + (self.net[0].weight - self.target).square().mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.target = 0.9 * self.target + 0.1 * self.net[0].weight.detach()


class TargetInParameters(Plain):
    """The loss depends on a slow copy of the weights that the optimizer does not hold."""

    def __init__(self):
        super().__init__()
        self.target = nn.Linear(FEATURES, 16).requires_grad_(False)

    def compute_loss(self, batch):
        return (
            super().compute_loss(batch)
            + (self.net[0](batch[0]) - self.target(batch[0])).square().mean()
        )

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.target.weight.data.lerp_(self.net[0].weight.data, 0.2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Spectral(Plain):
    """Spectral normalization updates its vectors in every forward pass."""

    def __init__(self):
        super().__init__()
        self.net[0] = nn.utils.parametrizations.spectral_norm(self.net[0])


class NonLeaf(Plain):
    """Hook-based normalization keeps a tensor with a graph: the module cannot be deep-copied."""

    def __init__(self):
        super().__init__()
        self.net[4] = torch.nn.utils.spectral_norm(self.net[4])


class Unfreezing(Plain):
    """The first layers are frozen and in eval mode in the first epoch."""

    def on_train_epoch_start(self):
        frozen = self.current_epoch == 0
        self.net[:2].requires_grad_(not frozen)
        self.net[1].train(not frozen)


class UnfreezingLate(Plain):
    """The first layer joins the optimizer after the first epoch, as finetuning callbacks do."""

    def configure_optimizers(self):
        self.net[0].requires_grad_(False)
        return torch.optim.SGD(self.net[1:].parameters(), lr=0.1)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[0].requires_grad_(True)
            self.optimizers().optimizer.add_param_group({"params": list(self.net[0].parameters())})


class OwnGenerators(Plain):
    """Random numbers from every kind of generator."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(3)
        self.rng, self.python = np.random.default_rng(4), random.Random(5)

    def compute_loss(self, batch):
        noise = (
            torch.randn((), generator=self.own).item() + self.rng.random() + self.python.random()
        )
        noise += random.random() + np.random.rand()
        return super().compute_loss((batch[0] * (1 + 0.1 * noise), batch[1]))


class Mutating(Plain):
    """training_step changes its batch in place."""

    def compute_loss(self, batch):
        batch[0].mul_(0.5)
        return super().compute_loss(batch)


@dataclass
class Sample:
    """A batch that is no collection, in channels-last order, with a tensor that occurs twice."""

    x: torch.Tensor
    y: torch.Tensor
    again: torch.Tensor | None = None


class ObjectBatches(Plain):
    """Batches are objects, made by the module's own transfer hook."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return Sample(x.reshape(-1, 3, 2, 2).contiguous(memory_format=torch.channels_last), y, x)

    def compute_loss(self, batch):
        assert batch.x.is_contiguous(memory_format=torch.channels_last)
        batch.again.mul_(0.9)
        return super().compute_loss((batch.x.reshape(-1, FEATURES) + batch.again, batch.y))


class PartlyUnused(Plain):
    """Parameters that are frozen, unused by the loss, or not in the optimizer."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(CLASSES, CLASSES).requires_grad_(False)
        self.outside = nn.Parameter(torch.ones(CLASSES))

    def compute_loss(self, batch):
        x, y = batch
        logits = self.frozen(self.net(x)) * self.outside
        self.accuracy(logits, y)
        return cross_entropy(logits.float(), y)

    def configure_optimizers(self):
        held = [p for name, p in self.named_parameters() if name != "outside"]
        return torch.optim.SGD(held, lr=0.1)


class GradientPenalty(Plain):
    """autograd inside training_step."""

    def compute_loss(self, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).float().sum(), x, create_graph=True)
        return super().compute_loss(batch) + slope.square().mean()


class Recurrent(Plain):
    """An LSTM that carries its state between batches; without autograd it rounds differently."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.carried = nn.LSTM(4, 8, 2, dropout=0.2, batch_first=True), None
        self.out = nn.Linear(8, CLASSES)

    def compute_loss(self, batch):
        x, y = batch
        hidden, carried = self.recurrent(x.reshape(-1, 3, 4), self.carried)
        self.carried = tuple(part.detach() for part in carried)
        logits = self.out(hidden[:, -1])
        self.accuracy(logits, y)
        return cross_entropy(logits.float(), y)


class Momentum(Plain):
    """A frozen encoder follows the trained one inside training_step; weights are clamped."""

    def __init__(self):
        super().__init__()
        self.key = nn.Linear(FEATURES, 16).requires_grad_(False)

    def compute_loss(self, batch):
        self.key.weight.data.lerp_(self.net[0].weight.data, 0.1)
        self.net[4].weight.data.clamp_(-0.3, 0.3)
        return (
            super().compute_loss(batch)
            + (self.net[0](batch[0]) - self.key(batch[0])).square().mean()
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Tied(Plain):
    """One weight in two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight

    def compute_loss(self, batch):
        return super().compute_loss((self.second(self.first(batch[0]).tanh()), batch[1]))


class OwnOptimizerStep(Plain):
    """Steps on every second batch only; its closure zeroes the gradient of the first one."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if (batch_idx + 1) % 2 == 0:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Overflowing(Plain):
    """One batch in an epoch has an infinite loss."""

    def compute_loss(self, batch):
        loss = super().compute_loss(batch)
        return loss * float("inf") if self.counts["steps"] % 10 == 4 else loss


def plain_loss(module, batch):
    """A user's loss that differs from that of training_step."""
    x, y = batch
    return cross_entropy(module.net(x).float(), y, label_smoothing=0.1)


class TeacherInEachBatch(TargetInParameters):
    """The slow copy moves after every micro-batch, and once more inside training_step."""

    def compute_loss(self, batch):
        self.target.bias.data.lerp_(self.net[0].bias.data, 0.3)
        return super().compute_loss(batch)


class TeacherAndUnfreezing(TeacherInEachBatch):
    """A teacher that moves, and a layer that joins the optimizer later."""

    configure_optimizers = UnfreezingLate.configure_optimizers
    on_train_epoch_start = UnfreezingLate.on_train_epoch_start
