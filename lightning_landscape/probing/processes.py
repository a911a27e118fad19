"""The processes of a run: numbers that all of them need, and the agreement to go on or to stop together.

A distributed run stands still if one process waits for another that has given up. So every process makes the same exchanges
in the same order, each of one fixed size, and each says whether the process that sends it has failed: whoever fails says so in
the exchange that the others make next, all learn of it there, and none makes a further one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

_WIDTH = 16
_WELL, _FAILED, _REFUSED = 0.0, 1.0, 2.0


class FailedElsewhere(Exception):
    """Another process failed, and so all stop measuring."""


class RefusedElsewhere(MisconfigurationException):
    """Another process found something that cannot be measured."""


def warn_once(error: Exception, message: str) -> None:
    """Warn of a failure, in a run of several processes: the one that failed says what happened, the first one that one did."""
    if isinstance(error, (FailedElsewhere, RefusedElsewhere)):
        rank_zero_warn(message)
    else:
        warnings.warn(message, stacklevel=2)


class Processes:
    """The processes of a run, in which the same things are measured at the same steps.

    Args:
        strategy: Lightning's strategy, when its processes are connected; None for one process.
    """

    def __init__(self, strategy: Strategy | None = None) -> None:
        self.size = getattr(strategy, "world_size", 1)
        self.rank = getattr(strategy, "global_rank", 0) if self.size > 1 else 0
        self.over = False
        """Whether a failure was told: all know of it"""
        self._device = strategy.root_device if strategy is not None and self.size > 1 else torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    # ----------------------------------------------------------------------------------------------------- agreement

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What fails inside the block in one process fails in all of them when it ends.

        Raises:
            FailedElsewhere: if another process failed.
            RefusedElsewhere: if another process refused the run.
        """
        try:
            yield
            self.exchange()
        except (FailedElsewhere, RefusedElsewhere):
            raise
        except Exception as error:
            if self.size > 1:
                self._gather(_REFUSED if isinstance(error, MisconfigurationException) else _FAILED, ())
                self.over = True
            raise

    def exchange(self, *values: float) -> list[tuple[float, ...]]:
        """Give each process the numbers of all, one tuple for each process in the order of ranks.

        Args:
            values: this process's numbers; every process gives as many.

        Raises:
            FailedElsewhere: if another process failed since the last exchange.
            RefusedElsewhere: if another process refused the run.
        """
        if self.size == 1:
            return [values]
        rows: list[tuple[float, ...]] = [()] * self.size
        for start in range(0, max(len(values), 1), _WIDTH - 1):
            part = values[start : start + _WIDTH - 1]
            gathered = self._gather(_WELL, part)
            self._stop_if_told([row[0] for row in gathered])
            rows = [row + tuple(more[1 : 1 + len(part)]) for row, more in zip(rows, gathered, strict=True)]
        return rows

    def _gather(self, status: float, values: tuple[float, ...]) -> list[list[float]]:
        mine = torch.zeros(_WIDTH, dtype=torch.float64)
        mine[: 1 + len(values)] = torch.tensor([status, *values], dtype=torch.float64)
        mine = mine.to(self._device)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine)
        return [row.tolist() for row in torch.stack(rows).cpu()]

    def _stop_if_told(self, statuses: list[float]) -> None:
        failed = [rank for rank, status in enumerate(statuses) if status != _WELL]
        if not failed:
            return
        self.over = True
        if _REFUSED in statuses:
            raise RefusedElsewhere(
                f"LandscapeMonitor cannot measure this run: process {statuses.index(_REFUSED)} says what it found and what is "
                "supported"
            )
        raise FailedElsewhere(f"process {failed[0]} failed, and says why")

    # ------------------------------------------------------------------------------------------------------- numbers

    def mean(self, value: float) -> float:
        """Return the mean over the processes."""
        return sum(row[0] for row in self.exchange(value)) / self.size

    def everywhere(self, holds: bool) -> bool:
        """Return whether something holds in every process."""
        return all(row[0] for row in self.exchange(float(holds)))

    # ------------------------------------------------------------------------------------------------------- objects

    def of_first(self, value: Any) -> Any:
        """Return the first process's value, a small object that can be pickled."""
        if self.size == 1:
            return value
        self.exchange()  # whoever failed before says so here, and nobody waits in what follows
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._device)
        return box[0]

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
        kinds = None if tensors is None else [(name, value.shape, value.dtype) for name, value in tensors.items()]
        kinds = self.of_first(kinds)
        if kinds is None:
            return None
        received = {}
        for name, shape, dtype in kinds:
            own = tensors[name].detach().to(self._device) if self.first and tensors is not None else None
            received[name] = torch.empty(shape, dtype=dtype, device=self._device) if own is None else own.contiguous()
            dist.broadcast(received[name], src=0)
        return received

    def mean_of(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
                mean = tensors[name].contiguous() if name in tensors else torch.zeros_like(shape.detach())
                dist.all_reduce(mean.div_(self.size))
                means[name] = mean
        return means
