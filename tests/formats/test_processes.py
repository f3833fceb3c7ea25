"""Signals that wait for the end of a piece of work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from saecodec.formats.processes import deferring_interrupts

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.fixture(autouse=True)
def end() -> Iterator[object]:
    """A SIGTERM ends as the command line has it."""

    def handler(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def sent(numbers: list[int], *, let_through: bool, done: list[int]) -> None:
    """Work that some signals disturb, one after another; what it gets done goes to `done`."""
    with deferring_interrupts() as wanted:
        wanted()
        for number in numbers:
            os.kill(os.getpid(), number)
            done.append(number)
        if let_through:
            wanted()
            done.append(0)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("let_through", [True, False])
def test_a_signal_waits_until_it_is_let_through_or_for_the_end(number: int, let_through: bool, end: object) -> None:
    done: list[int] = []
    with pytest.raises(SIGNALS[number]):  # type: ignore[call-overload]
        sent([number], let_through=let_through, done=done)
    assert done == [number]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is end


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_one_does_not_wait(number: int) -> None:
    done: list[int] = []
    with pytest.raises(SIGNALS[number]):  # type: ignore[call-overload]
        sent([signal.SIGINT, number], let_through=False, done=done)
    assert done == [signal.SIGINT]


def failing() -> None:
    with deferring_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        raise MemoryError


def test_an_error_of_the_block_is_what_is_told() -> None:
    with pytest.raises(MemoryError):
        failing()


def test_a_sigterm_that_nobody_handles_is_left_alone() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with deferring_interrupts():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_where_ctrl_c_is_ignored_it_stays_so_and_a_sigterm_waits_all_the_same() -> None:
    before, done = signal.signal(signal.SIGINT, signal.SIG_IGN), []
    try:
        with pytest.raises(SystemExit):
            sent([signal.SIGINT, signal.SIGTERM], let_through=False, done=done)
        assert done == [signal.SIGINT, signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
