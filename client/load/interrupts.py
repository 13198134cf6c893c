"""What a Ctrl-C does while a model is under load: nothing that was measured is lost by it, however many come."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, TypeVar

LATE_S: Final = 1.0
"""A Ctrl-C that comes sooner after another one is impatience with the same end."""

_Found = TypeVar("_Found")


class Interrupts:
    """The handler of SIGINT as long as the ``with`` block lasts.

    Until :meth:`hold`, a Ctrl-C raises KeyboardInterrupt.  From then on it does so no more, as there is something to
    lose; a late one still ends what can be done without, and all after :meth:`release`.
    """

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], Any] = signal.default_int_handler
        self._previous: Any = None
        self._held = self._dispensable = False
        self._last_s = -LATE_S

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # no other one is told of signals
            self._previous = signal.signal(signal.SIGINT, self._decide)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    @contextmanager
    def ahead_of(self) -> Iterator[None]:
        """Stay the handler where another one was set meanwhile; that one is told of every Ctrl-C."""
        handler = signal.getsignal(signal.SIGINT)
        if self._previous is None or not callable(handler):
            yield
            return
        self._handler = handler
        signal.signal(signal.SIGINT, self._decide)
        try:
            yield
        finally:
            self._handler = signal.default_int_handler

    def hold(self) -> None:
        """From now on something is measured."""
        self._held = True

    def release(self) -> None:
        """What was measured is saved."""
        self._dispensable = True

    def dispensable(self, work: Callable[[], _Found]) -> _Found | None:
        """Do what a late Ctrl-C may end; None if it did."""
        try:
            self._dispensable = True
            found = work()
            self._dispensable = False
        except KeyboardInterrupt:
            if self._previous is not None:
                signal.signal(signal.SIGINT, self._decide)  # the work may have set a handler and not reset it
            return None
        return found

    def _decide(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        late, self._last_s = now - self._last_s >= LATE_S, now
        try:
            self._handler(number, frame)
        except KeyboardInterrupt:
            if self._held and not (self._dispensable and late):
                return
            self._dispensable = False  # none is raised while another one is dealt with
            raise
