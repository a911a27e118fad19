"""The processes of a run: exchange values between them, and stop all if one fails.

A distributed run hangs if one process waits for another that has given up. Therefore all processes
make the same exchanges in the same order, and each exchange begins with a message of fixed size
that says whether its sender has failed.

A block of `Processes.agreed` fails in all processes or in none. When a process fails inside the
block, the next exchange of the others tells them, and the block ends there for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lightning_landscape.training.failures import (
    FailedElsewhere,
    NotMeasurable,
    RefusedElsewhere,
    said,
)

T = TypeVar("T")

_WIDTH = 16
"""Numbers in a message"""
_HEAD = 3
"""Numbers before the values in a message: status, depth of the block, number of values"""
_OK, _LACKING, _FAILED, _REFUSED = 0, 1, 2, 3
"""Statuses, in ascending order of severity"""
_TEXT = 1024
"""Bytes of an error's text that are sent"""


class _EndBlock(BaseException):
    """End a block because of a failure in another process.

    This is not an ``Exception``, so that no handler between here and the block catches it.

    Args:
        error: the error with which the block ends.
        depth: depth of the block.
    """

    def __init__(self, error: Exception, depth: int) -> None:
        super().__init__(error)
        self.error, self.depth = error, depth


class Processes:
    """The processes of a run. All of them measure the same things at the same steps.

    Args:
        strategy: Lightning's strategy, when its processes are connected; None for one process.
    """

    def __init__(self, strategy: Strategy | None = None) -> None:
        self.size = getattr(strategy, "world_size", 1)
        self.rank = getattr(strategy, "global_rank", 0) if self.size > 1 else 0
        self._depth = 0
        """Number of blocks of `agreed` that this process is in"""
        self._device = torch.device("cpu")
        if strategy is not None and self.size > 1:
            self._device = strategy.root_device

    @property
    def first(self) -> bool:
        """Whether this process has rank 0, and so writes the files."""
        return self.rank == 0

    # ----------------------------------------------------------------------------------- agreement

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Fail in all processes if one fails inside the block, at the latest when the block ends.

        Blocks can be nested. If an inner block fails, it ends in all processes; each may handle
        the error, and the outer block continues. If several processes fail, the most severe error
        counts. Interrupts are not sent to other processes, which may have exited.

        Raises:
            FailedElsewhere: if another process failed.
            RefusedElsewhere: if another process refused the run.
            NotMeasurable: if another process cannot measure a probe.
        """
        self._depth += 1
        try:
            try:
                yield
                self.exchange()
            except Exception as error:
                self._announce(error)
                raise
        except _EndBlock as end:
            if end.depth < self._depth:
                raise
            raise end.error from None
        finally:
            self._depth -= 1

    def exchange(self, *values: float) -> list[tuple[float, ...]]:
        """Return the numbers of every process, one tuple for each process in the order of ranks.

        Call this inside a block of `agreed`. The block ends here if another process has failed.

        Args:
            values: this process's numbers; every process gives the same number of them.
        """
        if self.size == 1:
            return [values]
        rows: list[tuple[float, ...]] = [()] * self.size
        most = _WIDTH - _HEAD
        for start in range(0, max(len(values), 1), most):
            part = values[start : start + most]
            messages = self._gather(_OK, part)
            self._end_if_failed(messages)
            self._check_in_step(messages)
            rows = [
                row + tuple(message[_HEAD : _HEAD + len(part)])
                for row, message in zip(rows, messages, strict=True)
            ]
        return rows

    def _announce(self, error: Exception) -> None:
        """Tell the other processes that this one has failed."""
        if self.size == 1:
            return
        status = _FAILED
        if isinstance(error, MisconfigurationException):
            status = _REFUSED
        elif isinstance(error, NotMeasurable):
            status = _LACKING
        # Another process may have failed in an outer block, or more severely.
        self._end_if_failed(self._gather(status, ()), said(error))

    def _end_if_failed(self, messages: list[list[float]], text: str | None = None) -> None:
        """End a block in which another process has failed.

        Args:
            messages: the message of each process, in the order of ranks.
            text: this process's own error, which counts unless another one is more severe or ends
                an outer block; None if this process has not failed.
        """
        if all(message[0] == _OK for message in messages):
            return
        texts = self._gather_texts(text or "")
        # All processes must end the same block, the outermost that failed, with the same kind of
        # error, the most severe one.
        depth, severity, rank = min(
            (int(message[1]), -int(message[0]), rank)
            for rank, message in enumerate(messages)
            if message[0] != _OK
        )
        mine = messages[self.rank]
        if text is None or depth < mine[1] or -severity > mine[0]:
            error = _error_elsewhere(-severity, rank, texts[rank])
            raise _EndBlock(error, depth) if self._depth else error

    def _check_in_step(self, messages: list[list[float]]) -> None:
        """Check that all processes are at the same exchange, as far as their messages show it."""
        if len({tuple(message[1:_HEAD]) for message in messages}) > 1:
            places = [(int(message[1]), int(message[2])) for message in messages]
            raise RuntimeError(
                f"found processes at different places of the measurement, (depth, values) {places};"
                " supported are processes that make the same steps with the same number of "
                "batches: check that the training code does not depend on the rank"
            )

    def _gather(self, status: int, values: tuple[float, ...]) -> list[list[float]]:
        mine = torch.zeros(_WIDTH, dtype=torch.float64)
        mine[: _HEAD + len(values)] = torch.tensor(
            [status, self._depth, len(values), *values], dtype=torch.float64
        )
        mine = mine.to(self._device)
        messages = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(messages, mine)
        return [message.tolist() for message in torch.stack(messages).cpu()]

    def _gather_texts(self, text: str) -> list[str]:
        encoded = text.encode()[:_TEXT].ljust(_TEXT, b"\0")
        mine = torch.tensor(list(encoded), dtype=torch.uint8, device=self._device)
        texts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(texts, mine)
        rows = torch.stack(texts).cpu().tolist()
        return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]

    # ------------------------------------------------------------------------------------- numbers

    def mean(self, value: float) -> float:
        """Return the mean over the processes."""
        return sum(row[0] for row in self.exchange(value)) / self.size

    def largest(self, value: float) -> float:
        """Return the largest value over the processes. No value may be ``nan``."""
        return max(row[0] for row in self.exchange(value))

    def smallest(self, value: float) -> float:
        """Return the smallest value over the processes. No value may be ``nan``."""
        return min(row[0] for row in self.exchange(value))

    def everywhere(self, holds: bool) -> bool:
        """Return whether a condition holds in every process."""
        return all(row[0] for row in self.exchange(float(holds)))

    # ------------------------------------------------------------------------------------- objects

    def of_first(self, value: Callable[[], T]) -> T:
        """Call a function in the first process only, and return its result in every process.

        Args:
            value: returns a small object that can be pickled.
        """
        if self.size == 1:
            return value()
        box = [value() if self.first else None]
        self._before_collective()
        dist.broadcast_object_list(box, src=0, device=self._device)
        received: Any = box[0]
        return received  # type: ignore[no-any-return]

    def of_each(self, value: Any) -> list[Any]:
        """Return the values of all processes in the order of ranks.

        Args:
            value: a small object that can be pickled.
        """
        if self.size == 1:
            return [value]
        self._before_collective()
        boxes = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def _before_collective(self) -> None:
        """Let a process that failed say so, because the others would wait for it in torch."""
        self.exchange()

    # ------------------------------------------------------------------------------------- tensors

    def tensors_of_first(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Return the first process's tensors by name, on this process's device.

        Args:
            tensors: tensors by name; those of other processes than the first are ignored.

        Returns:
            The tensors, or None if the first process passed None.
        """
        if self.size == 1:
            return None if tensors is None else dict(tensors)
        described = None
        if tensors is not None:
            described = [(name, value.shape, value.dtype) for name, value in tensors.items()]
        expected = self.of_first(lambda: described)
        if expected is None:
            return None
        received = {}
        for name, shape, dtype in expected:
            if self.first and tensors is not None:
                received[name] = tensors[name].detach().to(self._device).contiguous()
            else:
                received[name] = torch.empty(shape, dtype=dtype, device=self._device)
        self._before_collective()  # a process may have had no memory for the tensors
        for tensor in received.values():
            dist.broadcast(tensor, src=0)
        return received

    def mean_of(
        self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the means of tensors over the processes. A tensor counts as 0 where it is missing.

        Args:
            tensors: this process's tensors by name; they may be overwritten.
            like: tensors of the same shapes by all possible names, the same in every process.

        Returns:
            The mean of each tensor that some process has.
        """
        if self.size == 1:
            return dict(tensors)
        present = self.exchange(*(float(name in tensors) for name in like))
        means = {}
        for position, (name, shape) in enumerate(like.items()):
            if any(row[position] for row in present):
                known = name in tensors
                mean = tensors[name].contiguous() if known else torch.zeros_like(shape.detach())
                means[name] = mean.div_(self.size)
        self._before_collective()  # a process may have had no memory for the tensors
        for mean in means.values():
            dist.all_reduce(mean)
        return means


def _error_elsewhere(status: int, rank: int, text: str) -> Exception:
    if status == _REFUSED:
        return RefusedElsewhere(f"process {rank} refused to measure this run: {text}")
    if status == _LACKING:
        return NotMeasurable(f"process {rank}, {text}")
    return FailedElsewhere(f"process {rank} failed, {text}")
