"""Brute force: record everything at every step, then compute each column of the table anew.

The recording deep-copies the whole module at the start of every training_step. To evaluate a loss
again, it gives such a copy other parameters and calls training_step of the class on it; gradients
come from ``backward``. It uses nothing of the package.
"""

import copy
import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from lightning.pytorch import Callback


@dataclass
class MicroBatch:
    module: object
    args: tuple
    rng: tuple
    counters: dict
    losses: list = field(default_factory=list)


@dataclass
class Step:
    step: int
    epoch: int
    logged_step: int
    divisor: int
    micro_batches: list
    before: dict
    after: dict = None
    has_gradient: bool = True
    scale: float = 1.0
    """Scale of a GradScaler, on which the rounding of a float16 gradient depends"""


def rng_state():
    on_device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), random.getstate(), np.random.get_state(), on_device


def set_rng_state(state):
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state(state[3])


def scale_of(trainer):
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def parameters_of(optimizer, module):
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p.detach().clone() for name, p in module.named_parameters() if id(p) in held}


def recorded(module_class):
    """Return a subclass whose training_step records its arguments."""

    class Recorded(module_class):
        recording = None

        def training_step(self, batch, batch_idx):
            twin = without_graph(self)
            counters = {
                "global_step": self.trainer.global_step,
                "current_epoch": self.trainer.current_epoch,
            }
            micro = MicroBatch(twin, copy.deepcopy((batch, batch_idx)), rng_state(), counters)
            loss = super().training_step(batch, batch_idx)
            value = loss["loss"] if isinstance(loss, dict) else loss
            if value is not None:
                micro.losses.append(value.item())
                type(self).recording.window.append(micro)
            return loss

    return Recorded


def without_graph(module):
    """Deep-copy a module; detach attributes with a graph, which deepcopy refuses."""
    carried = [(m, n, v) for m in module.modules() for n, v in vars(m).items() if has_graph(v)]
    for m, n, v in carried:
        vars(m)[n] = tuple(part.detach() for part in v) if isinstance(v, tuple) else v.detach()
    twin = copy.deepcopy(module)
    for m, n, v in carried:
        vars(m)[n] = v
    return twin


def has_graph(value):
    if isinstance(value, tuple):
        return (
            bool(value)
            and all(isinstance(part, torch.Tensor) for part in value)
            and any(map(has_graph, value))
        )
    return isinstance(value, torch.Tensor) and not value.is_leaf


class Recording(Callback):
    """Records every optimizer step of a run."""

    def __init__(self):
        self.window, self.steps, self.last = [], [], None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(
            Step(
                step=trainer.global_step,
                epoch=trainer.current_epoch,
                logged_step=trainer.fit_loop.epoch_loop._batches_that_stepped,
                divisor=trainer.accumulate_grad_batches,
                micro_batches=self.window,
                before={name: p.detach().clone() for name, p in pl_module.named_parameters()},
                scale=scale_of(trainer),
            )
        )
        self.window = []
        self.names = list(parameters_of(optimizer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.steps and self.steps[-1].after is None:
            self.steps[-1].after = {
                name: p.detach().clone() for name, p in pl_module.named_parameters()
            }
            self.last = self.steps[-1].after


class BruteForce:
    """Recomputes rows from a recording."""

    def __init__(self, recording, module_class, autocast, loss=None, reference=None):
        self.recording, self.module_class, self.autocast, self.loss = (
            recording,
            module_class,
            autocast,
            loss,
        )
        self.names = recording.names
        self.reference = reference or {name: recording.last[name] for name in self.names}

    def window(self, step, values, gradient=False):
        """Return the mean loss over a window and, if asked for, the gradient of that mean."""
        losses, total = [], {}
        for micro in step.micro_batches:
            module = copy.deepcopy(micro.module)
            vars(module).pop("training_step", None)
            module.log = module.log_dict = lambda *args, **kwargs: None
            module._trainer = SimpleNamespace(**micro.counters, training=True)
            with torch.no_grad():
                for name, p in module.named_parameters():
                    if name in values:
                        p.copy_(values[name])
                    p.grad = None
            set_rng_state(micro.rng)
            with self.autocast():
                if self.loss is None:
                    output = self.module_class.training_step(module, *copy.deepcopy(micro.args))
                    output = output["loss"] if isinstance(output, dict) else output
                else:
                    output = self.loss(module, copy.deepcopy(micro.args)[0])
            losses.append(output.item())
            if gradient:
                # Lightning divides the loss of training_step, and bf16 rounds the quotient.
                divisor = 1 if self.loss is not None else step.divisor
                (output / divisor * step.scale).backward()
                for name, p in module.named_parameters():
                    if p.grad is not None:
                        total[name] = total.get(
                            name, 0
                        ) + p.grad.double() * divisor / step.scale / len(step.micro_batches)
        return sum(losses) / len(losses), total

    def row(self, step, first):
        """Return a row of the table, every column but the infimum."""
        loss, gradient = self.window(
            step, {name: step.before[name] for name in self.names}, gradient=True
        )
        x = {name: step.before[name].double() for name in self.names}
        held = {name: gradient[name] for name in self.held_at(step) if name in gradient}
        grad_sq_norm = sum(float((g * g).sum()) for g in held.values())
        moved = {name: x[name] - step.after[name].double() for name in self.names}
        step_size = (
            sum(float((moved[name] * g).sum()) for name, g in held.items()) / grad_sq_norm
            if grad_sq_norm
            else 0.0
        )
        rest = {name: moved[name] - step_size * held.get(name, 0) for name in self.names}
        away = {name: x[name] - self.reference[name].double() for name in self.names}
        start = {name: first.before[name] for name in self.names}
        return {
            "step": step.step,
            "epoch": step.epoch,
            "logged_step": step.logged_step,
            "loss": loss,
            "reference_loss": self.window(step, self.reference)[0],
            "inner_product": sum(float((away[name] * g).sum()) for name, g in held.items()),
            "grad_sq_norm": grad_sq_norm,
            "sq_distance": sum(float((d * d).sum()) for d in away.values()),
            "step_size": step_size,
            "step_residual": sum(float((r * r).sum()) for r in rest.values()) ** 0.5,
            "initial_loss": self.window(step, start)[0],
        }

    def held_at(self, step):
        """Return the parameters with a gradient that were not frozen at a step."""
        return [
            n
            for n, p in step.micro_batches[0].module.named_parameters()
            if n in self.names and p.requires_grad
        ]
