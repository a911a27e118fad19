"""The processes of a run: numbers that all of them need, and the agreement to go on or to stop together.

A distributed run stands still if one process waits for another that has given up. So every process makes the same exchanges
in the same order, and each begins with a message of one fixed size, which says whether its sender has failed. Blocks of code
(`Processes.agreed`) are the unit of failing: what fails inside of a block in one process is told in the exchange that the
others make next, wherever in the block they are, and the block ends there in all of them.
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
_HEAD = 3  # of a message: status, depth of the block, number of values
_WELL, _LACKING, _FAILED, _REFUSED = 0, 1, 2, 3
"""In the order of gravity"""
_TEXT = 1024  # bytes of an error's text that are told


class _Told(BaseException):
    """A block of code has ended in another process; no handler of exceptions between here and that block is to swallow it."""

    def __init__(self, error: Exception, depth: int) -> None:
        super().__init__(error)
        self.error, self.depth = error, depth


class Processes:
    """The processes of a run, in which the same things are measured at the same steps.

    Args:
        strategy: Lightning's strategy, when its processes are connected; None for one process.
    """

    def __init__(self, strategy: Strategy | None = None) -> None:
        self.size = getattr(strategy, "world_size", 1)
        self.rank = getattr(strategy, "global_rank", 0) if self.size > 1 else 0
        self._depth = 0
        """Number of blocks that this process is in"""
        self._device = (
            strategy.root_device if strategy is not None and self.size > 1 else torch.device("cpu")
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    # ----------------------------------------------------------------------------------------------------- agreement

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What fails inside the block in one process fails in all of them, at the latest when it ends.

        Blocks can be nested: the inner one ends in all processes with its error, which each may handle, and the outer goes on.
        Where several have failed the gravest error is that of all. An interrupt is not told: the others may be gone.

        Raises:
            FailedElsewhere: if another process failed.
            RefusedElsewhere: if another process refused the run.
            NotMeasurable: if another process lacks what a probe needs.
        """
        self._depth += 1
        try:
            try:
                yield
                self.exchange()
            except Exception as error:
                self._tell(error)
                raise
        except _Told as told:
            if told.depth < self._depth:
                raise
            raise told.error from None
        finally:
            self._depth -= 1

    def exchange(self, *values: float) -> list[tuple[float, ...]]:
        """Give each process the numbers of all, one tuple for each process in the order of ranks.

        Inside a block of `agreed`; it ends there if another process has failed.

        Args:
            values: this process's numbers; every process gives as many.
        """
        if self.size == 1:
            return [values]
        rows: list[tuple[float, ...]] = [()] * self.size
        most = _WIDTH - _HEAD
        for start in range(0, max(len(values), 1), most):
            part = values[start : start + most]
            gathered = self._gather(_WELL, part)
            self._end_if_told(gathered)
            self._check_in_step(gathered)
            rows = [
                row + tuple(more[_HEAD : _HEAD + len(part)])
                for row, more in zip(rows, gathered, strict=True)
            ]
        return rows

    def _tell(self, error: Exception) -> None:
        """Tell the others what failed here; they end this block, or the outer one in which one of them has failed."""
        if self.size == 1:
            return
        status = _FAILED
        if isinstance(error, MisconfigurationException):
            status = _REFUSED
        elif isinstance(error, NotMeasurable):
            status = _LACKING
        self._end_if_told(self._gather(status, ()), said(error))

    def _end_if_told(self, rows: list[list[float]], own: str | None = None) -> None:
        """End a block if there is one that has failed in another process.

        Args:
            rows: the messages of all.
            own: what failed here, which is what ends the block unless another failure weighs more.
        """
        if all(row[0] == _WELL for row in rows):
            return
        texts = self._texts(own or "")
        # all have to end the same block, the outermost one, with the same kind of error, the gravest one
        depth, gravity, rank = min(
            (int(row[1]), -int(row[0]), rank) for rank, row in enumerate(rows) if row[0] != _WELL
        )
        mine = rows[self.rank]
        if own is None or depth < mine[1] or -gravity > mine[0]:
            error = _error_elsewhere(-gravity, rank, texts[rank])
            raise _Told(error, depth) if self._depth else error

    def _check_in_step(self, rows: list[list[float]]) -> None:
        """See whether all processes are at the same exchange, as far as the messages show it."""
        if len({tuple(row[1:_HEAD]) for row in rows}) > 1:
            places = [(int(row[1]), int(row[2])) for row in rows]
            raise RuntimeError(
                f"found processes at different places of the measurement, (depth, values) {places}; supported are processes "
                "that take the same batches and steps"
            )

    def _gather(self, status: int, values: tuple[float, ...]) -> list[list[float]]:
        mine = torch.zeros(_WIDTH, dtype=torch.float64)
        mine[: _HEAD + len(values)] = torch.tensor(
            [status, self._depth, len(values), *values], dtype=torch.float64
        )
        mine = mine.to(self._device)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine)
        return [row.tolist() for row in torch.stack(rows).cpu()]

    def _texts(self, text: str) -> list[str]:
        """Give each process the text of all, as long as fits."""
        encoded = text.encode()[:_TEXT]
        mine = torch.tensor(
            [*encoded, *[0] * (_TEXT - len(encoded))], dtype=torch.uint8, device=self._device
        )
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine)
        return [
            bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore")
            for row in torch.stack(rows).cpu()
        ]

    # ------------------------------------------------------------------------------------------------------- numbers

    def mean(self, value: float) -> float:
        """Return the mean over the processes."""
        return sum(row[0] for row in self.exchange(value)) / self.size

    def largest(self, value: float) -> float:
        """Return the largest value over the processes; none of them may be ``nan``."""
        return max(row[0] for row in self.exchange(value))

    def smallest(self, value: float) -> float:
        """Return the smallest value over the processes; none of them may be ``nan``."""
        return min(row[0] for row in self.exchange(value))

    def everywhere(self, holds: bool) -> bool:
        """Return whether something holds in every process."""
        return all(row[0] for row in self.exchange(float(holds)))

    # ------------------------------------------------------------------------------------------------------- objects

    def of_first(self, value: Callable[[], T]) -> T:
        """Return what a function gives in the first process, the only one that calls it: a small object that can be pickled."""
        if self.size == 1:
            return value()
        box = [value() if self.first else None]
        self.exchange()  # whoever failed before says so here, and nobody waits in what follows
        dist.broadcast_object_list(box, src=0, device=self._device)
        received: Any = box[0]
        return received  # type: ignore[no-any-return]

    def of_each(self, value: Any) -> list[Any]:
        """Return the values of all processes, small objects that can be pickled."""
        if self.size == 1:
            return [value]
        self.exchange()
        boxes = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    # ------------------------------------------------------------------------------------------------------- tensors

    def tensors_of_first(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Return the first process's tensors by name, on this process's device; None where it has none."""
        if self.size == 1:
            return None if tensors is None else dict(tensors)
        own = (
            None
            if tensors is None
            else [(name, value.shape, value.dtype) for name, value in tensors.items()]
        )
        kinds = self.of_first(lambda: own)
        if kinds is None:
            return None
        received = {}
        for name, shape, dtype in kinds:
            if self.first and tensors is not None:
                received[name] = tensors[name].detach().to(self._device).contiguous()
            else:
                received[name] = torch.empty(shape, dtype=dtype, device=self._device)
        self.exchange()  # whoever has no memory for them says so before anybody sends
        for tensor in received.values():
            dist.broadcast(tensor, src=0)
        return received

    def mean_of(
        self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the means of tensors over the processes; one that a process lacks is 0 there.

        Args:
            tensors: by name.
            like: what they may be, by name, the same names and shapes in every process; those that no process has are left out.
        """
        if self.size == 1:
            return dict(tensors)
        there = self.exchange(*(float(name in tensors) for name in like))
        means = {}
        for position, (name, shape) in enumerate(like.items()):
            if any(row[position] for row in there):
                mean = (
                    tensors[name].contiguous()
                    if name in tensors
                    else torch.zeros_like(shape.detach())
                )
                means[name] = mean.div_(self.size)
        self.exchange()  # whoever has no memory for them says so before anybody sends
        for mean in means.values():
            dist.all_reduce(mean)
        return means


def _error_elsewhere(status: int, rank: int, text: str) -> Exception:
    if status == _REFUSED:
        return RefusedElsewhere(
            f"LandscapeMonitor cannot measure this run, as process {rank} says: {text}"
        )
    if status == _LACKING:
        return NotMeasurable(f"process {rank}, {text}")
    return FailedElsewhere(f"process {rank} failed, {text}")
