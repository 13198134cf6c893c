"""What a Ctrl-C does while a model is under load: nothing that was measured is lost by it, however many come."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, TypeVar

LATE_S: Final = 1.0
"""A Ctrl-C that comes sooner after another one is impatience with the same end; work this short isn't ended by any."""

_Found = TypeVar("_Found")


class Interrupts:
    """The handler of SIGINT as long as the ``with`` block lasts; ``count`` is how many there were.

    Until :meth:`hold`, a Ctrl-C raises KeyboardInterrupt.  From then on it is only counted, as there is something to
    lose; a late one still ends what can be done without, and all after :meth:`release`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._previous: Any = None
        self._held = self._dispensable = False
        self._last_s = -LATE_S

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # no other one is told of signals
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def hold(self) -> None:
        """From now on requests are sent."""
        self._held = True

    def release(self) -> None:
        """What was measured is saved."""
        self._dispensable = True

    def dispensable(self, work: Callable[[], _Found]) -> _Found | None:
        """Do what a late Ctrl-C may end; None if it did."""
        self._last_s = time.monotonic()
        try:
            self._dispensable = True
            try:
                return work()
            finally:
                self._dispensable = False
        except KeyboardInterrupt:
            return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        late, self._last_s = now - self._last_s >= LATE_S, now
        self.count += 1
        if not self._held or (self._dispensable and late):
            self._dispensable = False  # none is raised while another one is dealt with
            signal.default_int_handler(number, frame)
