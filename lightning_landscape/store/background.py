"""Jobs done beside training, one after the other: a thread that ends soon after there is nothing more to do.

A process that ends waits for the jobs it was given, and a moment for the thread. A job has to deal with its own errors, must
not draw from a global random generator (a fork in that moment hangs the child) and must keep its tensor operations small enough
that torch does them in one thread: ``torch.set_num_threads`` would also set what threads of the user's start with, and parallel
regions of ours would slow training down.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

_WAKE = 1.0  # seconds after which whoever waits looks whether there still is a thread
_LINGER = 0.2
"""Seconds for which the thread waits for another job: to start one takes as long as a short training step"""

ELEMENTS = 1 << 14
"""Of so many elements an operation on tensors never takes more than one thread: torch's grain is 2^15"""


class Background:
    """Does jobs in the order in which they come.

    Args:
        most: how many may be unfinished; whoever brings one more waits.

    Example:
        >>> background, done = Background(most=2), []
        >>> for number in range(5):
        ...     background.do(lambda number=number: done.append(number))
        >>> background.wait()
        >>> done
        [0, 1, 2, 3, 4]
    """

    def __init__(self, most: int) -> None:
        self._most, self._unfinished, self._active, self._idle = most, 0, False, False
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def do(self, job: Callable[[], None]) -> None:
        """Do a job later; returns at once while there is room for it."""
        with self._changed:
            self._wait_for(self._most - 1)
            self._jobs.append(job)
            self._unfinished += 1
            self._start()

    def wait(self) -> None:
        """Wait until everything is done; in a forked process, whose parent does it, for nothing."""
        if os.getpid() == self._process:
            with self._changed:
                self._wait_for(0)

    def _wait_for(self, at_most: int) -> None:
        while self._unfinished > at_most:
            self._start()
            self._changed.wait(_WAKE)

    def _start(self) -> None:
        """See to it that there is a thread; where none can be started the jobs are done here."""
        if self._idle:
            self._changed.notify_all()
            return
        if not self._jobs or self._active or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._work, name="LandscapeMonitor")
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or Python is about to end
            while self._jobs:
                self._jobs.popleft()()
                self._unfinished -= 1

    def _work(self) -> None:
        with self._changed:
            if self._active:  # an interrupt came between the start of a thread and the note of it
                return
            self._active = True
        try:
            while self._one():
                pass
        except (
            BaseException
        ):  # jobs deal with their own errors: this is no way to end, but it hangs nobody
            with self._changed:
                self._active, self._thread = False, None
            raise

    def _one(self) -> bool:
        """Do one job; False where none comes."""
        with self._changed:
            if not self._jobs:
                self._idle = True
                self._changed.wait_for(lambda: self._jobs, _LINGER)
                self._idle = False
            if not self._jobs:
                self._active, self._thread = (
                    False,
                    None,
                )  # at once: a job that comes now needs another thread
                return False
            job = self._jobs.popleft()
        try:
            job()
        finally:
            del job  # what it holds is large
            with self._changed:
                self._unfinished -= 1
                self._changed.notify_all()
        return True
