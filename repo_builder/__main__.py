"""Where ``repo-builder`` and ``python -m repo_builder`` begin; Ctrl-C is told in one line whenever it comes."""

from __future__ import annotations

import signal
import sys
from types import FrameType

RETRY_S = 0.02


def main() -> None:
    """Import the command line and run it."""
    try:
        from repo_builder import cli

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
            signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _terminate)
        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)  # as cli.main ends then
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and cleared away


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C; in an import a little later, since modules take KeyboardInterrupt for a missing package, or lose it."""
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename == "<frozen importlib._bootstrap>":
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)
            return
        inner = inner.f_back
    signal.default_int_handler(number, frame)


def _terminate(_number: int, frame: FrameType | None) -> None:
    """SIGTERM ends what Ctrl-C ends, cleaned up; also where that is ignored, as in a shell's background."""
    interrupt = signal.getsignal(signal.SIGINT)
    (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)


if __name__ == "__main__":
    main()
