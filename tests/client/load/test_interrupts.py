"""What a Ctrl-C ends, and what it doesn't, by real signals."""

from __future__ import annotations

import signal

import pytest

from client.load import interrupts
from client.load.interrupts import Interrupts


def work() -> str:
    signal.raise_signal(signal.SIGINT)
    return "done"


def test_while_something_is_measured_none_is_raised() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as found:
        with pytest.raises(KeyboardInterrupt):
            work()
        found.hold()
        assert found.dispensable(work) == "done"  # it was about to end
        assert work() == "done"
        assert found.count == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_late_one_ends_what_can_be_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "LATE_S", 0.0)
    with Interrupts() as found:
        found.hold()
        assert work() == "done"
        assert found.dispensable(work) is None
        assert work() == "done"
        with pytest.raises(ZeroDivisionError):
            found.dispensable(lambda: 1 // 0)
        assert work() == "done"
        found.release()
        with pytest.raises(KeyboardInterrupt):
            work()
