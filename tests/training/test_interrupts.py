"""Ctrl-C, put off and let through."""

import os
import signal

import pytest

from lightning_landscape.training import interrupts


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


def test_noted_and_nothing_else():
    with interrupts.noted() as found:
        ctrl_c()
        assert len(found) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("block", [interrupts.put_off, interrupts.noted, interrupts.let_through])
def test_a_handler_that_is_not_pythons_stays(block, monkeypatch):
    """Such a handler reads as None and cannot be put back: setting None is an error."""

    def never(*_):
        raise AssertionError("a handler was set")

    monkeypatch.setattr(interrupts.signal, "getsignal", lambda _: None)
    monkeypatch.setattr(interrupts.signal, "signal", never)
    done = []
    with block():
        done.append("inside")
    assert done == ["inside"]
