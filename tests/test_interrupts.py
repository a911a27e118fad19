"""Ctrl-C, put off and let through."""

import os
import signal

import pytest

from lightning_landscape import interrupts


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_put_off_to_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.put_off():
        ctrl_c()
        done.append("after the interrupt")
    assert done == ["after the interrupt"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_not_lost():
    with pytest.raises(ValueError, match="own"), interrupts.put_off():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_let_through_where_it_is_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ctrl_c()
        with interrupts.put_off():
            ctrl_c()
        with pytest.raises(KeyboardInterrupt), interrupts.let_through():
            ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
