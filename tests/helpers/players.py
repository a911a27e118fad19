"""GANs with manual optimization, and a naive recomputation of each player's table.

Each player has an optimizer and a loss of (module, batch). The recording keeps the module as it
was when ``training_step`` began, and all parameters as they were when an optimizer stepped. A loss
is evaluated again on a copy with both.
"""

import copy
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.parametrizations import spectral_norm

from tests.helpers.brute_force import rng_state, scale_of, set_rng_state
from tests.helpers.modules import FEATURES

LATENT = 3
PLAYERS = ("discriminator", "generator")


class Gan(LightningModule):
    """The discriminator steps, then the generator, through a graph that was made before both."""

    generator_every, critic_steps = 1, 1

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, FEATURES)
        )
        self.discriminator = nn.Sequential(
            spectral_norm(nn.Linear(FEATURES, 8)), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(8, 1)
        )
        self.history = []

    def fake(self, real):
        return self.generator(torch.randn(len(real), LATENT))

    def judged(self, images, label):
        logits = self.discriminator(images).float()
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    def training_step(self, batch, batch_idx):
        discriminator, generator = self.optimizers()
        fake = self.fake(batch[0])
        for _ in range(self.critic_steps):
            loss = self.judged(batch[0], 1.0) + self.judged(fake.detach(), 0.0)
            discriminator.zero_grad()
            self.manual_backward(loss)
            discriminator.step()
        self.log("loss", loss)
        self.history.append(loss.item())
        if (batch_idx + 1) % self.generator_every == 0:
            generator.zero_grad()
            self.manual_backward(self.judged(fake, 1.0))
            generator.step()

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.discriminator.parameters(), lr=0.1),
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
        )


class Critic(Gan):
    """Three steps of the critic, with clipped weights, for one of the generator."""

    critic_steps = 3

    def on_before_optimizer_step(self, optimizer):
        with torch.no_grad():
            self.discriminator[3].weight.clamp_(-0.3, 0.3)


class Seldom(Gan):
    """The generator steps on every third batch; the other player leaves gradients in it."""

    generator_every = 3

    def training_step(self, batch, batch_idx):
        discriminator, generator = self.optimizers()
        fake = self.fake(batch[0])
        loss = self.judged(batch[0], 1.0) + self.judged(fake, 0.0)
        discriminator.zero_grad()
        self.manual_backward(loss, retain_graph=True)
        discriminator.step()
        self.log("loss", loss)
        if (batch_idx + 1) % self.generator_every == 0:
            generator.zero_grad()
            self.manual_backward(self.judged(self.fake(batch[0]), 1.0))
            generator.step()


class Accumulating(Gan):
    """The generator's gradient is of two batches; players are toggled, and it plays first."""

    def training_step(self, batch, batch_idx):
        discriminator, generator = self.optimizers()
        self.toggle_optimizer(generator)
        loss = self.judged(self.fake(batch[0]), 1.0)
        self.manual_backward(loss / 2)
        self.log("loss", loss)
        if batch_idx % 2:
            self.clip_gradients(generator, gradient_clip_val=0.01)
            generator.step()
            generator.zero_grad()
        self.untoggle_optimizer(generator)
        self.toggle_optimizer(discriminator)
        self.manual_backward(self.judged(batch[0], 1.0) + self.judged(self.fake(batch[0]), 0.0))
        discriminator.step()
        discriminator.zero_grad()
        self.untoggle_optimizer(discriminator)


def discriminator_loss(module, batch):
    return module.judged(batch[0], 1.0) + module.judged(module.fake(batch[0]).detach(), 0.0)


def generator_loss(module, batch):
    return module.judged(module.fake(batch[0]), 1.0)


LOSSES = {"discriminator": discriminator_loss, "generator": generator_loss}


@dataclass
class PlayersStep:
    step: int
    batches: list
    """Module at the start of training_step, batch and random state of each"""
    before: dict
    epoch: int
    scale: float = 1.0
    after: dict = None


class PlayersRecording(Callback):
    """Records every step of one player; a step is of the last ``batches`` batches."""

    def __init__(self, player, batches=1):
        self.index, self.player, self.batches, self.loss = (
            PLAYERS.index(player),
            player,
            batches,
            LOSSES[player],
        )
        self.steps, self.doors, self.made, self.in_batch = [], [], 0, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.doors.append((copy.deepcopy(pl_module), copy.deepcopy(batch), rng_state()))
        self.in_batch = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if optimizer is not trainer.optimizers[self.index]:
            return
        here = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.close(here)
        if self.in_batch == 0:  # of several steps in a batch the first one is probed
            doors = self.doors[-self.batches :]
            self.steps.append(
                PlayersStep(self.made, doors, here, trainer.current_epoch, scale_of(trainer))
            )
        self.made, self.in_batch = self.made + 1, self.in_batch + 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.close({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    def close(self, here):
        if self.steps and self.steps[-1].after is None:
            self.steps[-1].after = here
        self.last = here

    def names(self):
        return [name for name in self.last if name.startswith(f"{self.player}.")]

    def evaluate(self, step, x, autocast, gradient=False):
        """Return loss and gradient with the given x and all other parameters of a step."""
        losses, total = [], {}
        for module, batch, rng in step.batches:
            module = copy.deepcopy(module)
            with torch.no_grad():
                for name, p in module.named_parameters():
                    p.copy_(x.get(name, step.before[name]))
                    p.grad = None
                    p.requires_grad_(True)
            set_rng_state(rng)
            with autocast():
                loss = self.loss(module, copy.deepcopy(batch))
            losses.append(loss.item())
            if gradient:
                (loss * step.scale).backward()
                for name, p in module.named_parameters():
                    if name in x and p.grad is not None:
                        total[name] = total.get(name, 0) + p.grad.double() / step.scale / len(
                            step.batches
                        )
        return sum(losses) / len(losses), total

    def row(self, step, autocast, reference=None):
        """Return a row of the table, every column that a step has."""
        names = self.names()
        x = {name: step.before[name] for name in names}
        there = reference or {name: self.last[name] for name in names}
        loss, gradient = self.evaluate(step, x, autocast, gradient=True)
        square = sum(float((g * g).sum()) for g in gradient.values())
        moved = {name: x[name].double() - step.after[name].double() for name in names}
        away = {name: x[name].double() - there[name].double() for name in names}
        step_size = sum(float((moved[name] * g).sum()) for name, g in gradient.items()) / square
        _, next_gradient = self.evaluate(
            step, {name: step.after[name] for name in names}, autocast, gradient=True
        )
        return {
            "step": step.step,
            "loss": loss,
            "reference_loss": self.evaluate(step, there, autocast)[0],
            "initial_loss": self.evaluate(
                step, {name: self.steps[0].before[name] for name in names}, autocast
            )[0],
            "inner_product": sum(float((away[name] * g).sum()) for name, g in gradient.items()),
            "grad_sq_norm": square,
            "sq_distance": sum(float((d * d).sum()) for d in away.values()),
            "step_size": step_size,
            "secant": sum(
                float((next_gradient[name] - g).square().sum()) for name, g in gradient.items()
            ),
        }
