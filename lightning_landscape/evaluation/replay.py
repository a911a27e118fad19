"""The mini-batch loss f_i again, at other parameters, in the state of step k, leaving no trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from lightning_landscape.evaluation.directional import along
from lightning_landscape.evaluation.sample_losses import vector_loss
from lightning_landscape.evaluation.untouched import untouched
from lightning_landscape.recording.freezing import Frozen, freeze, thaw
from lightning_landscape.recording.state import capture, put_back
from lightning_landscape.training.failures import FailedElsewhere, NotMeasurable
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.gradients import present_gradient
from lightning_landscape.vectors.parameters import Swap
from lightning_landscape.vectors.sharding import reshard

Loss = Callable[[LightningModule, Any], Any]


def scalar_loss(output: Any) -> Tensor | None:
    """Return the loss in what ``training_step`` returned; None where the step was skipped.

    Raises:
        TypeError: if there is something, but no tensor with one element.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None:
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = (
            f"a tensor of shape {tuple(loss.shape)}"
            if isinstance(loss, Tensor)
            else f"a {type(loss).__name__}"
        )
        raise TypeError(
            f"found {found} as loss; supported is one number, a tensor with one element: return its mean"
        )
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
            with ExitStack() as stack:
                try:
                    stack.enter_context(
                        _on_entering(trainer, [before for before, _ in present], args, kwargs)
                    )
                except Exception as error:
                    if isinstance(error, MisconfigurationException) and trainer.world_size == 1:
                        raise  # a refusal
                    present = ()  # the step is the user's, and is made whatever happens to us
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


@contextmanager
def _on_entering(
    trainer: Trainer, calls: Sequence[Before], args: Any, kwargs: Any
) -> Iterator[None]:
    """Call functions with the arguments of ``training_step`` when it starts.

    That is at once, but where a wrapper stands before the module: DistributedDataParallel gives every process the first one's
    buffers on the way in, and the loss depends on what is there after that.
    """
    module: Any = trainer.strategy.lightning_module
    if trainer.strategy.model is module:
        for call in calls:
            call(args, kwargs)
        yield
        return

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        handle.remove()  # the module may call its own forward later
        for call in calls:
            call(args, kwargs)

    handle = module.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


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
    """Evaluates the loss of stored moments of training, in all processes at once: inside a block of `Processes.agreed`.

    Args:
        trainer: the trainer.
        module: the module in training.
        loss: the user's loss; None for the module's own ``training_step``.
        processes: those of the run.
        sharded: whether they share the parameters among them.
        per_sample: whether the user's loss returns a number for each sample; the measured one is their mean.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        loss: Loss | None,
        processes: Processes,
        sharded: bool = False,
        per_sample: bool = False,
    ) -> None:
        self._trainer, self._module, self._loss = trainer, module, loss
        self._processes, self._sharded = processes, sharded
        self._swap = Swap(module)
        self.per_sample = per_sample
        """Whether the user's loss gives a number for each sample"""
        self.of_user = loss is not None
        """Whether the loss is the user's own function, not ``training_step``"""
        self.gradients_enabled = any(isinstance(part, nn.RNNBase) for part in module.modules())
        """Forward passes run without autograd, unless the loss needs it or is only then the recorded one: kernels of recurrent
        layers round differently where no gradient will be asked for."""

    def moment(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], others: Mapping[str, Tensor]
    ) -> Frozen:
        """Freeze the arguments of ``training_step`` and the state in which it is called.

        Args:
            args: by position.
            kwargs: by name.
            others: parameters that are not x, where they are not those of the window's first micro-batch.

        Raises:
            TypeError: if a batch can be neither pickled nor copied.
        """
        return freeze(
            {
                "args": tuple(args),
                "kwargs": dict(kwargs),
                "others": dict(others),
                **capture(self._trainer, self._module),
            }
        )

    @contextmanager
    def silence(self, put_back: Collection[str] = ()) -> Iterator[None]:
        """Inside the block, losses can be evaluated; module, trainer and loggers are as before when it ends.

        Args:
            put_back: names of parameters whose values the block itself puts back, by a `Swap`.
        """
        loggers = self._trainer.loggers
        with untouched(self._trainer, self._module, put_back):
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
        """Return the mean of this process's loss over a window, and its gradient over `gradient_factor`.

        The loss of ``training_step`` is divided and scaled before it is differentiated, as in training: low precision would
        round otherwise if that were made up for afterwards.

        Of sharded parameters the gradient is the mean over the processes already, of this process's part; others wait for
        `averaged`.
        """
        losses, gradient = [], dict[str, Tensor]()
        trained = {
            name: parameter for name, parameter in parameters.items() if parameter.requires_grad
        }
        for moment in moments:
            with (
                without_hooks(trained.values()),
                torch.enable_grad(),
                self._forward(moment) as loss,
            ):
                parts = (self._by_backward if self._sharded else _by_grad)(
                    loss / self._divisor * scale, trained
                )
            losses.append(float(loss.detach()))
            for name, part in parts.items():
                gradient[name] = gradient[name] + part if name in gradient else part
        return sum(losses) / len(losses), gradient

    @property
    def _divisor(self) -> int:
        """Number by which Lightning divides the loss of ``training_step``; it divides no loss of the user's."""
        return 1 if self.of_user else self._trainer.accumulate_grad_batches

    def gradient_factor(self, moments: Sequence[Frozen], scale: float) -> float:
        """Return what turns the gradient of `mean_loss_and_gradient` into that of the mean loss."""
        return self._divisor / (scale * len(moments))

    def averaged(
        self, gradient: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the mean of gradients over the processes, as DistributedDataParallel takes it; all have to call this."""
        return dict(gradient) if self._sharded else self._processes.mean_of(gradient, parameters)

    def _by_backward(self, loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the gradient where FSDP2 leaves it: no other way goes through its gathered parameters."""
        loss.backward()  # type: ignore[no-untyped-call]
        reshard(self._module.modules())
        found = dict(
            present_gradient(parameters, 1.0).raw
        )  # nobody else has it: it is of this pass alone
        for parameter in self._module.parameters():
            parameter.grad = None
        return found

    def sample_losses(self, moment: Frozen) -> Tensor:
        """Return this process's losses of single samples, float64 of shape ``(B,)`` on the CPU; only inside `silence`."""
        return self._evaluate(moment, whole=True).double().cpu()

    def sample_derivatives(
        self, moment: Frozen, direction: Mapping[str, Tensor], *, with_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of single samples and their derivatives, by forward mode; only inside `silence`.

        Args:
            moment: a micro-batch.
            direction: v by name, zero for the parameters that it does not name.
            with_graph: whether autograd records meanwhile: some kernels have no forward derivative where it does not.

        Returns:
            Twice float64 of shape ``(B,)`` on the CPU: f_j(x) and <∇f_j(x), v>.

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
        """Return the largest relative rounding error of parameters and of what is computed from them."""
        kinds = {parameter.dtype for parameter in parameters}
        with self._evaluating():
            if torch.is_autocast_enabled(self._module.device.type):
                kinds.add(torch.get_autocast_dtype(self._module.device.type))
        return max(torch.finfo(kind).eps for kind in kinds)

    def _evaluate(self, moment: Frozen, *, whole: bool = False) -> Tensor:
        if not self.gradients_enabled:
            # a gradient penalty, a physics-informed loss has autograd inside training_step
            trial = suppress(RuntimeError, FailedElsewhere)
            with (
                trial,
                self._processes.agreed(),
                torch.no_grad(),
                self._forward(moment, whole=whole) as loss,
            ):
                return loss.detach()
        self.gradients_enabled = True  # in all processes, whatever comes
        with torch.enable_grad(), self._forward(moment, whole=whole) as loss:
            return loss.detach()

    @contextmanager
    def _forward(self, moment: Frozen, *, whole: bool = False) -> Iterator[Tensor]:
        """Evaluate a moment; inside the block its parameters are what they were, so that a backward pass may follow.

        Args:
            moment: a micro-batch.
            whole: whether to give the losses of single samples, not their mean.
        """
        with self._prepared(moment) as (args, kwargs):
            with self._evaluating():
                if self._loss is not None:
                    output: Any = self._loss(self._module, batch_of(args, kwargs))
                else:
                    output = self._module.training_step(*args, **kwargs)
            if self.per_sample:
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
        """Put the state of a moment back; inside the block its loss may be evaluated, once, with the arguments it gives."""
        state = thaw(moment, self._module.device)
        with self._swap.to(state["others"]):
            put_back(self._trainer, self._module, state)
            self._processes.exchange()  # the forward pass itself may be one of all processes: whoever is not ready says so
            yield state["args"], state["kwargs"]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with (
            self._trainer.precision_plugin.train_step_context(),
            without_cudnns_dropout(self._module),
        ):
            yield


def _by_grad(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # outside of autocast, as Lightning goes backward, also where this is called inside of it: under manual optimisation
    with torch.autocast(loss.device.type, enabled=False):
        parts = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found = {name: part for name, part in zip(parameters, parts, strict=True) if part is not None}
    return {
        name: part.to_dense() if part.layout != torch.strided else part
        for name, part in found.items()
    }


@contextmanager
def without_cudnns_dropout(module: nn.Module) -> Iterator[None]:
    """Keep away from the random numbers that cuDNN's recurrent layers draw for dropout between their layers.

    They come from a state inside of cuDNN that nothing can read or put back: a replay would move those of training. Other
    kernels draw from the generator that is put back, but not the same masks: such replays are not exact, and are marked so.
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
    as_they_are = {
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "allow_tf32": cudnn.allow_tf32,
    }
    with cudnn.flags(enabled=False, **as_they_are):
        yield


@contextmanager
def without_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Set the gradient hooks of parameters aside: they may keep a state that this backward pass is not to change."""
    aside = [
        (parameter, parameter._backward_hooks)
        for parameter in parameters
        if parameter._backward_hooks
    ]
    for parameter, _ in aside:
        parameter._backward_hooks = None
    try:
        yield
    finally:
        for parameter, hooks in aside:
            parameter._backward_hooks = hooks


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``log``, ``log_dict`` and ``print``."""
