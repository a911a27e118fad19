"""Modules without interaction between samples, one with it, and a loss per sample."""

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.functional import cross_entropy

from tests.helpers.modules import CLASSES, FEATURES


def losses(module, batch):
    """Return one loss a sample."""
    x, y = batch
    return cross_entropy(
        module.net(x).float() if x.dtype != torch.float64 else module.net(x), y, reduction="none"
    )


class Base(LightningModule):
    """Trains on the mean of `losses`."""

    def __init__(self):
        super().__init__()
        self.net = self.network()

    def training_step(self, batch, batch_idx):
        loss = losses(self, batch).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Perceptron(Base):
    """Dropout: each step draws a mask, and its replay draws the same one."""

    def network(self):
        return nn.Sequential(
            nn.Linear(FEATURES, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, CLASSES)
        )


class Convolutions(Base):
    def network(self):
        return nn.Sequential(
            nn.Unflatten(1, (3, 2, 2)),
            nn.Conv2d(3, 8, 2, padding=1),
            nn.GroupNorm(2, 8),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )


class Attention(nn.Module):
    """The fused kernels of scaled dot-product attention have no forward derivative."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            4, 2, 8, batch_first=True, dropout=0.0, activation="gelu"
        )
        self.encoder, self.out = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(4, CLASSES),
        )

    def forward(self, x):
        return self.out(self.encoder(x.reshape(len(x), 3, 4)).mean(1))


class Transformer(Base):
    def network(self):
        return Attention()


class Recurrence(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.recurrent, self.out = (
            kind(4, 8, 2, batch_first=True, dropout=0.2),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x):
        return self.out(self.recurrent(x.reshape(len(x), 3, 4))[0][:, -1])


class LSTM(Base):
    def network(self):
        return Recurrence(nn.LSTM)


class GRU(Base):
    def network(self):
        return Recurrence(nn.GRU)


class WithoutForwardDerivative(torch.autograd.Function):
    """A function with forward and backward only, like those of many extensions."""

    @staticmethod
    def forward(ctx, x):
        result = x.tanh()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, gradient):
        (result,) = ctx.saved_tensors
        return gradient * (1 - result * result)


class Custom(nn.Module):
    def forward(self, x):
        return WithoutForwardDerivative.apply(x)


class OwnFunction(Base):
    def network(self):
        return nn.Sequential(
            nn.Linear(FEATURES, 16), Custom(), nn.Dropout(0.3), nn.Linear(16, CLASSES)
        )


class OwnTarget(nn.Module):
    """A part of the loss is held fixed, by two ways that autograd knows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        with torch.no_grad():
            fixed = self.layer(2 * x)
        return self.layer(x) * fixed + self.layer(x).detach()


class StopsGradients(Base):
    def network(self):
        return OwnTarget()


class PartlyTrained(Base):
    """Parameters that are frozen, unused, or outside the optimizer; one weight in two layers."""

    def network(self):
        net = nn.Sequential(
            nn.Linear(FEATURES, FEATURES),
            nn.Tanh(),
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, CLASSES),
        )
        net[2].weight = net[0].weight
        net[2].bias.requires_grad_(False)
        net[1].unused = nn.Parameter(torch.ones(3))
        return net

    def configure_optimizers(self):
        return torch.optim.SGD(
            [p for name, p in self.named_parameters() if name != "net.3.bias"], lr=0.1
        )


class Mixing(Base):
    def network(self):
        return nn.Sequential(
            nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES)
        )
