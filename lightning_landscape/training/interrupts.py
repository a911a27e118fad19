"""Ctrl-C: put off where it would tear something, let through where Lightning ignores it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def put_off() -> Iterator[None]:
    """Put a Ctrl-C inside the block off to its end.

    An interrupt in the middle of a logger's queue leaves an entry of which its thread is not told, and the process then waits
    for it for ever; one in the middle of a file leaves half a line.
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
    """Note every Ctrl-C inside the block, for it to end where others that wait for this process are told."""
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
    """Let Ctrl-C raise inside the block, also while Lightning shuts down, where it ignores it."""
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
    """Return whether this thread may set a handler, and put this one back: one that is not Python's, None, cannot be."""
    return threading.current_thread() is threading.main_thread() and handler is not None
