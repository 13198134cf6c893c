"""Ctrl-C while a native library is at work."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def held() -> Iterator[list[int]]:
    """Let Ctrl-C wait for the end of the block; what is yielded is no longer empty once it came.

    Python raises KeyboardInterrupt wherever the main thread is, also in a logger that a library calls: the library
    takes that for a failure of the logger and goes on, or dies of it.
    """
    came: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield came
        return
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, previous)
        if came:
            signal.raise_signal(signal.SIGINT)
