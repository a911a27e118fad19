"""Ctrl-C: delay it where it would leave something half done, and allow it where Lightning does not.

Each function leaves Ctrl-C alone in a thread that may not set its handler.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def put_off() -> Iterator[None]:
    """Delay a Ctrl-C inside the block until the block ends.

    An interrupt inside a logger's queue can leave an entry that the logger's thread never sees,
    and then the process waits for that entry forever. An interrupt inside a write leaves half a
    line.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not _may_be_replaced(handler) or not callable(handler):
        yield
        return
    caught: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])


@contextmanager
def noted() -> Iterator[list[int]]:
    """Collect the Ctrl-C signals inside the block in a list.

    The block can then stop at a place where it can tell the processes that wait for this one.
    """
    found: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if not _may_be_replaced(handler):
        yield found
        return
    signal.signal(signal.SIGINT, lambda number, _: found.append(number))
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def let_through() -> Iterator[None]:
    """Let Ctrl-C raise ``KeyboardInterrupt`` inside the block.

    Lightning ignores Ctrl-C while it shuts down.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not _may_be_replaced(handler):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        with suppress(KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)


def _may_be_replaced(handler: Any) -> bool:
    """Return whether this thread may set a handler and later restore ``handler``."""
    # Only the main thread may set handlers. A handler set from C is None and cannot be restored.
    return threading.current_thread() is threading.main_thread() and handler is not None
