"""Jobs beside training, one after the other, in one thread.

A job must not draw from a global random generator: a fork at that moment would hang the child.
Its tensor operations take at most `ELEMENTS` elements, which torch does in one thread. More
threads would slow training down, and ``torch.set_num_threads`` here would also change the number
that the user's new threads start with.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

ELEMENTS = 1 << 14
"""Elements of an operation that torch does in one thread: its grain is 2^15"""


class Background:
    """Does jobs in the order in which they come. A process that ends does its jobs first.

    Args:
        most: how many jobs may be unfinished; the next one waits.

    Example:
        >>> background, done = Background(most=2), []
        >>> for number in range(5):
        ...     background.do(lambda number=number: done.append(number))
        >>> background.wait()
        >>> done
        [0, 1, 2, 3, 4]
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._jobs: deque[Callable[[], object]] = deque()
        self._futures: list[Future[None]] = []
        self._executor: ThreadPoolExecutor | None = None

    def do(self, job: Callable[[], object]) -> None:
        """Do a job later; return at once while there is room for it."""
        self._leave_to_parent()
        try:
            while len(self._unfinished()) >= self._most:
                wait(self._futures, return_when=FIRST_COMPLETED)
        finally:  # an interrupt while waiting must not lose the job
            self._jobs.append(job)
            self._submit()

    def wait(self) -> None:
        """Wait until every job is done, and end the thread."""
        self._leave_to_parent()
        wait(self._futures)
        while self._jobs:  # no thread could be started for them
            self._next()
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def _leave_to_parent(self) -> None:
        """In a forked process: the jobs so far are the parent's."""
        if os.getpid() != self._process:
            self._forget()

    def _unfinished(self) -> list[Future[None]]:
        self._futures = [future for future in self._futures if not future.done()]
        return self._futures

    def _submit(self) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="LandscapeMonitor")
        try:
            self._futures.append(self._executor.submit(self._next))
        except BaseException as error:
            # a thread that the executor does not know of would wait for ever at the end of Python
            self._executor.shutdown(wait=False)
            self._executor = None
            if not isinstance(error, RuntimeError):
                raise
            self.wait()  # no more threads, or Python is about to end: the job is done here

    def _next(self) -> None:
        # the job is not passed to the executor: its tensors are free before the job counts as done
        if self._jobs:
            self._jobs.popleft()()
