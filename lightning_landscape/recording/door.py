"""The door of ``training_step``: sees its arguments and its output while a step is recorded.

It stands on the strategy, through which Lightning calls ``training_step``. The user's module is
left alone: it can be pickled and copied meanwhile, and a replay, which calls the module, does not
pass the door. No hook of another callback runs between the door and the forward pass. So the state
that is copied here is the one in which the loss is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

Before = Callable[[Sequence[Any], Mapping[str, Any]], None]
After = Callable[[Any], None]


class Door:
    """Tells its watchers of each call of ``training_step``; it goes when the last one leaves.

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
                before = [enter for enter, _ in present]
                try:
                    stack.enter_context(_on_entering(trainer, before, args, kwargs))
                except Exception as error:
                    if isinstance(error, MisconfigurationException) and trainer.world_size == 1:
                        raise  # a refusal
                    present = ()  # the step is the user's: it is made in any case
                output = original(*args, **kwargs)
            for _, after in present:
                after(output)
            return output

        self._own, self._watched = self._place.get("training_step"), watched
        vars(watched)["landscape_door"] = self
        self._place["training_step"] = watched

    @staticmethod
    def of(trainer: Trainer) -> Door:
        """Return the present door of a trainer, or a new one."""
        door = getattr(vars(trainer.strategy).get("training_step"), "landscape_door", None)
        return door if isinstance(door, Door) else Door(trainer)

    def leave(self, watcher: tuple[Before, After]) -> None:
        """Forget a watcher; without any, take the door away."""
        self.watchers.remove(watcher)
        # somebody else may have wrapped the door meanwhile: then it stays, without watchers
        if self.watchers or self._place.get("training_step") is not self._watched:
            return
        del self._place["training_step"]
        if self._own is not None:
            self._place["training_step"] = self._own


@contextmanager
def _on_entering(
    trainer: Trainer, calls: Sequence[Before], args: Any, kwargs: Any
) -> Iterator[None]:
    """Call functions with the arguments of ``training_step`` when it starts.

    DistributedDataParallel writes the first process's buffers into all others on the way in. The
    loss depends on these, so under such a wrapper the functions are called behind it.
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
    """One watcher at the door.

    Args:
        trainer: the trainer in ``fit``.
        before: called with the arguments of ``training_step``.
        after: called with its output, before Lightning divides the loss by the number of
            micro-batches.
    """

    def __init__(self, trainer: Trainer, before: Before, after: After) -> None:
        self._door, self._watcher = Door.of(trainer), (before, after)
        self._door.watchers.append(self._watcher)

    def leave(self) -> None:
        """Watch no further calls."""
        self._door.leave(self._watcher)
