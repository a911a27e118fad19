"""Recorded micro-batches evaluated again, each in its own state, at the present parameters."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from lightning_landscape.evaluation.directional import along
from lightning_landscape.evaluation.sample_losses import vector_loss
from lightning_landscape.evaluation.untouched import untouched
from lightning_landscape.recording.state import put_back
from lightning_landscape.store.freezing import Frozen, thaw
from lightning_landscape.training.failures import FailedElsewhere, NotMeasurable
from lightning_landscape.training.loss import Loss, batch_of, scalar_loss
from lightning_landscape.training.scaling import loss_scale
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.gradients import Gradient, present_gradient
from lightning_landscape.vectors.parameters import Swap
from lightning_landscape.vectors.sharding import reshard


class Replay:
    """Evaluates micro-batches, in all processes at once: inside a block of `Processes.agreed`.

    Args:
        training: the run.
        loss: the user's loss; None for the module's own ``training_step``.
        of_samples: whether the user's loss returns one number a sample; f_i is then their mean.
    """

    def __init__(
        self, training: Training, loss: Loss | None = None, *, of_samples: bool = False
    ) -> None:
        self._training, self._loss, self.of_samples = training, loss, of_samples
        self._module, self._processes = training.module, training.processes
        self._swap = Swap(training.module)
        layers = training.module.modules()
        self.gradients_enabled = any(isinstance(layer, nn.RNNBase) for layer in layers)
        """Whether autograd records. It does not, unless the loss needs it, or only then equals the
        recorded one: kernels of recurrent layers round differently without gradients"""

    @contextmanager
    def silence(self, restored: Collection[str] = ()) -> Iterator[None]:
        """Inside the block losses can be evaluated; at its end module and trainer are as before.

        Args:
            restored: names of parameters whose values the block itself restores.
        """
        trainer = self._training.trainer
        loggers = trainer.loggers
        with untouched(trainer, self._module, restored):
            for module in self._module.modules():
                if hasattr(type(module), "log_dict"):
                    module.__dict__.update(log=_nothing, log_dict=_nothing, print=_nothing)
            try:
                trainer.loggers = [DummyLogger() for _ in loggers]
                yield
            finally:
                trainer.loggers = loggers

    # ------------------------------------------------------------------------- mini-batch losses

    def loss(self, moments: Sequence[Frozen]) -> float:
        """Return this process's mean loss over the micro-batches of a step, in float64."""
        return sum(float(self._evaluate(moment)) for moment in moments) / len(moments)

    def loss_and_gradient(self, moments: Sequence[Frozen]) -> tuple[float, Gradient]:
        """Return this process's mean loss over micro-batches, and the gradient that training has.

        That is the mean over the processes; of sharded parameters, this process's part of it. The
        loss of ``training_step`` is divided and scaled before it is differentiated, as in training:
        low precision would round otherwise.
        """
        parameters, scale = self._training.parameters(), loss_scale(self._training.trainer)
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        # Lightning divides the loss of training_step by this number, and no loss of the user's
        divisor = 1 if self._loss else self._training.trainer.accumulate_grad_batches
        differentiate = self._by_backward if self._training.sharded else _by_grad
        losses, sums = [], dict[str, Tensor]()
        for moment in moments:
            with (
                without_hooks(trained.values()),
                torch.enable_grad(),
                self._forward(moment) as loss,
            ):
                parts = differentiate(loss / divisor * scale, trained)
            losses.append(float(loss.detach()))
            for name, part in parts.items():
                sums[name] = sums[name] + part if name in sums else part
        if not self._training.sharded:  # FSDP2 has averaged them
            sums = self._processes.mean_of(sums, parameters)
        return sum(losses) / len(losses), Gradient(sums, divisor / (scale * len(moments)))

    def _by_backward(self, loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the gradient where FSDP2 leaves it: autograd.grad bypasses gathered parameters."""
        loss.backward()  # type: ignore[no-untyped-call]
        reshard(self._module.modules())
        found = dict(present_gradient(parameters, 1.0).raw)  # of this backward pass alone
        for parameter in self._module.parameters():
            parameter.grad = None
        return found

    # ---------------------------------------------------------------------------- single samples

    def sample_losses(self, moment: Frozen) -> Tensor:
        """Return this process's losses of single samples, float64, shape ``(B,)``, on the CPU."""
        return self._evaluate(moment, whole=True).double().cpu()

    def sample_derivatives(
        self, moment: Frozen, direction: Mapping[str, Tensor], *, with_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of single samples and their derivatives, by forward mode.

        Args:
            moment: a micro-batch.
            direction: v by name; zero for parameters that it does not name.
            with_graph: whether autograd records meanwhile: without it some kernels have no
                forward derivative.

        Returns:
            f_j(x) and <∇f_j(x), v>, each float64, shape ``(B,)``, on the CPU.

        Raises:
            RuntimeError: if something in the loss has no forward derivative.
        """
        assert self._loss is not None, "checked before training"
        with self._prepared(moment) as (args, kwargs), torch.enable_grad(), self._evaluating():
            batch = batch_of(args, kwargs)
            read = functools.partial(vector_loss, batch=batch)
            values, slopes = along(
                self._module, self._loss, batch, direction, read, with_graph=with_graph
            )
        return values.double().cpu(), slopes.double().cpu()

    def rounding(self, parameters: Iterable[Tensor]) -> float:
        """Return the largest relative rounding error of parameters and of the forward pass."""
        kinds = {parameter.dtype for parameter in parameters}
        with self._evaluating():
            if torch.is_autocast_enabled(self._module.device.type):
                kinds.add(torch.get_autocast_dtype(self._module.device.type))
        return max(torch.finfo(kind).eps for kind in kinds)

    # --------------------------------------------------------------------------- one micro-batch

    def _evaluate(self, moment: Frozen, *, whole: bool = False) -> Tensor:
        if not self.gradients_enabled:
            # a gradient penalty or a physics-informed loss differentiates inside training_step
            trial, forward = suppress(RuntimeError, FailedElsewhere), self._forward
            with (
                trial,
                self._processes.agreed(),
                torch.no_grad(),
                forward(moment, whole=whole) as f,
            ):
                return f.detach()
        self.gradients_enabled = True  # in all processes, whatever comes
        with torch.enable_grad(), self._forward(moment, whole=whole) as loss:
            return loss.detach()

    @contextmanager
    def _forward(self, moment: Frozen, *, whole: bool = False) -> Iterator[Tensor]:
        """Evaluate a micro-batch; inside the block a backward pass may follow.

        Args:
            moment: the micro-batch.
            whole: whether to give the losses of single samples, not their mean.
        """
        with self._prepared(moment) as (args, kwargs):
            with self._evaluating():
                if self._loss is not None:
                    output: Any = self._loss(self._module, batch_of(args, kwargs))
                else:
                    output = self._module.training_step(*args, **kwargs)
            if self.of_samples:
                losses = vector_loss(output, batch_of(args, kwargs))
                yield losses if whole else losses.mean()
                return
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if loss is None:
                raise NotMeasurable("training_step returned None in the replay")
            scalar_loss(loss)
            yield torch.as_tensor(loss).reshape(())

    @contextmanager
    def _prepared(self, moment: Frozen) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Put the state of a micro-batch back; yield the arguments of one evaluation."""
        state = thaw(moment, self._module.device)
        with self._swap.to(state["others"]):
            put_back(self._training.trainer, self._module, state)
            # the forward pass may wait for all processes: one that is not ready says so here
            self._processes.exchange()
            yield state["args"], state["kwargs"]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        context = self._training.trainer.precision_plugin.train_step_context()
        with context, without_cudnns_dropout(self._module):
            yield


def _by_grad(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Lightning goes backward outside of autocast; under manual optimization we are inside of it
    with torch.autocast(loss.device.type, enabled=False):
        parts = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    named = zip(parameters, parts, strict=True)
    found = {name: part for name, part in named if part is not None}
    return {n: p.to_dense() if p.layout != torch.strided else p for n, p in found.items()}


@contextmanager
def without_cudnns_dropout(module: nn.Module) -> Iterator[None]:
    """Keep cuDNN from drawing the dropout of recurrent layers.

    It draws from an internal state that nothing can read or put back: a replay would move the
    random numbers of training. Other kernels draw from the generator that is put back, but not the
    same masks: such replays are not exact, and are marked so.
    """
    layers = (part for part in module.modules() if isinstance(part, nn.RNNBase))
    drawing = any(
        part.dropout > 0 and part.num_layers > 1 and part.all_weights[0][0].is_cuda
        for part in layers
    )
    cudnn = torch.backends.cudnn
    if not (drawing and cudnn.enabled):
        yield
        return
    names = ("benchmark", "deterministic", "allow_tf32")
    present = {name: getattr(cudnn, name) for name in names}
    with cudnn.flags(enabled=False, **present):
        yield


@contextmanager
def without_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Set gradient hooks of parameters aside: this backward pass must not change their state."""
    aside = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
    for parameter, _ in aside:
        parameter._backward_hooks = None
    try:
        yield
    finally:
        for parameter, hooks in aside:
            parameter._backward_hooks = hooks


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``log``, ``log_dict`` and ``print``."""
