"""The mini-batch loss f_i again, at other parameters, in the state of step k, leaving no trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from lightning_landscape.probing.freezing import Frozen, freeze, thaw
from lightning_landscape.probing.state import capture, put_back
from lightning_landscape.probing.untouched import untouched

Loss = Callable[[LightningModule, Any], Any]


class NotMeasurable(Exception):
    """A probe that has no value: the loss is not a finite scalar, or what it needs is gone."""


def scalar_loss(output: Any) -> Tensor | None:
    """Return the loss in what ``training_step`` returned; None where the step was skipped.

    Raises:
        TypeError: if there is something, but no tensor with one element.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None:
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TypeError(f"found {found} as loss; supported is one number, a tensor with one element: return its mean")
    return loss.detach()


def batch_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the batch among the arguments of ``training_step``."""
    return args[0] if args else next(iter(kwargs.values()))


Before = Callable[[Sequence[Any], Mapping[str, Any]], None]
After = Callable[[Any], None]


class Door:
    """The door of ``training_step``, at which any number of monitors may stand; gone when the last one leaves.

    It is put on the strategy, through which Lightning calls ``training_step``, not on the user's module: the module can be
    pickled and copied meanwhile, and a replay, which calls the module directly, does not pass it.

    Args:
        trainer: the trainer in ``fit``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._place = vars(trainer.strategy)
        self.watchers: list[tuple[Before, After]] = []
        original = trainer.strategy.training_step

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            present = tuple(self.watchers)
            for before, _ in present:
                before(args, kwargs)
            output = original(*args, **kwargs)
            for _, after in present:
                after(output)
            return output

        self._own, self._watched = self._place.get("training_step"), watched
        vars(watched)["landscape_door"] = self
        self._place["training_step"] = watched

    @staticmethod
    def of(trainer: Trainer) -> Door:
        """Return the door that a trainer has now, or a new one."""
        door = getattr(vars(trainer.strategy).get("training_step"), "landscape_door", None)
        return door if isinstance(door, Door) else Door(trainer)

    def close(self) -> None:
        """Take the door away, unless somebody has built something around it meanwhile."""
        if self._place.get("training_step") is not self._watched:
            return
        del self._place["training_step"]
        if self._own is not None:
            self._place["training_step"] = self._own


class Doorstep:
    """Stands at the door of ``training_step`` while a window of micro-batches is probed.

    No hook comes between the hooks of other callbacks (which may change the batch, the module or the random numbers) and
    the forward pass, so the state of a step is taken where the step begins: on the way into ``training_step``. On the way
    out its loss is read as the module returned it, before Lightning divides it by the number of micro-batches.

    Args:
        trainer: the trainer in ``fit``.
        before: called with the arguments of ``training_step``.
        after: called with what it returned.
    """

    def __init__(self, trainer: Trainer, before: Before, after: After) -> None:
        self._door = Door.of(trainer)
        self._watcher = (before, after)
        self._door.watchers.append(self._watcher)

    def leave(self) -> None:
        """Leave; the last one closes the door."""
        self._door.watchers.remove(self._watcher)
        if not self._door.watchers:
            self._door.close()


class Replayer:
    """Evaluates the loss of stored moments of training.

    Args:
        trainer: the trainer.
        module: the module in training.
        loss: the user's loss; None for the module's own ``training_step``.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, loss: Loss | None) -> None:
        self._trainer, self._module, self._loss = trainer, module, loss
        self.of_user = loss is not None
        """Whether the loss is the user's own function, not ``training_step``"""
        self.gradients_enabled = any(isinstance(part, nn.RNNBase) for part in module.modules())
        """Forward passes run without autograd, unless the loss needs it or is only then the recorded one: kernels of recurrent
        layers round differently where no gradient will be asked for."""

    def moment(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Frozen:
        """Freeze the arguments of ``training_step`` and the state in which it is called.

        Raises:
            TypeError: if a batch can be neither pickled nor copied.
        """
        return freeze({"args": tuple(args), "kwargs": dict(kwargs), **capture(self._trainer, self._module)})

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Inside the block, losses can be evaluated; module, trainer and loggers are as before when it ends."""
        loggers = self._trainer.loggers
        with untouched(self._trainer, self._module):
            for module in self._module.modules():
                if hasattr(type(module), "log_dict"):
                    module.__dict__.update(log=_nothing, log_dict=_nothing, print=_nothing)
            try:
                self._trainer.loggers = [DummyLogger() for _ in loggers]
                yield
            finally:
                self._trainer.loggers = loggers

    def mean_loss(self, moments: Sequence[Frozen]) -> float:
        """Return the mean loss over the micro-batches of a window, in float64; only inside `silence`."""
        return sum(float(self._evaluate(moment)) for moment in moments) / len(moments)

    def mean_loss_and_gradient(
        self, moments: Sequence[Frozen], parameters: Mapping[str, Tensor], scale: float
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the mean of the user's loss over a window and ``scale`` times the gradient's sum over micro-batches."""
        losses, gradient = [], dict[str, Tensor]()
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        for moment in moments:
            with without_hooks(trained.values()), torch.enable_grad():
                loss = self._forward(moment)
                parts = torch.autograd.grad(loss * scale, list(trained.values()), allow_unused=True)
            losses.append(float(loss.detach()))
            for name, part in zip(trained, parts, strict=True):
                if part is not None:
                    gradient[name] = gradient[name] + part if name in gradient else part
        return sum(losses) / len(losses), gradient

    def _evaluate(self, moment: Frozen) -> Tensor:
        with torch.set_grad_enabled(self.gradients_enabled):
            try:
                return self._forward(moment).detach()
            except RuntimeError:
                # a gradient penalty, a physics-informed loss: autograd inside training_step
                if self.gradients_enabled:
                    raise
        with torch.enable_grad():
            loss = self._forward(moment).detach()
        self.gradients_enabled = True
        return loss

    def _forward(self, moment: Frozen) -> Tensor:
        state = thaw(moment, self._module.device)
        put_back(self._trainer, self._module, state)
        args, kwargs = state["args"], state["kwargs"]
        with self._trainer.precision_plugin.train_step_context(), without_cudnns_dropout(self._module):
            if self._loss is not None:
                output: Any = self._loss(self._module, batch_of(args, kwargs))
            else:
                output = self._module.training_step(*args, **kwargs)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:
            raise NotMeasurable("training_step returned None in the replay")
        scalar_loss(loss)
        return torch.as_tensor(loss).reshape(())


@contextmanager
def without_cudnns_dropout(module: nn.Module) -> Iterator[None]:
    """Keep away from the random numbers that cuDNN's recurrent layers draw for dropout between their layers.

    They come from a state inside of cuDNN that nothing can read or put back: a replay would move those of training. Other
    kernels draw from the generator that is put back, but not the same masks: such replays are not exact, and are marked so.
    """
    layers = (part for part in module.modules() if isinstance(part, nn.RNNBase))
    drawing = any(part.dropout > 0 and part.num_layers > 1 and part.all_weights[0][0].is_cuda for part in layers)
    cudnn = torch.backends.cudnn
    if not (drawing and cudnn.enabled):
        yield
        return
    as_they_are = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic, "allow_tf32": cudnn.allow_tf32}
    with cudnn.flags(enabled=False, **as_they_are):
        yield


@contextmanager
def without_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Set the gradient hooks of parameters aside: they may keep a state that this backward pass is not to change."""
    aside = [(parameter, parameter._backward_hooks) for parameter in parameters if parameter._backward_hooks]
    for parameter, _ in aside:
        parameter._backward_hooks = None
    try:
        yield
    finally:
        for parameter, hooks in aside:
            parameter._backward_hooks = hooks


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``log``, ``log_dict`` and ``print``."""
