"""What the commands of this package share: how they end, and how they tell an error."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import typer

from client.errors import ClientError
from client.text import printable

_NO_OUTPUT: Final = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Why stdout may take no more; whoever writes files tells of them himself."""


def run_app(app: typer.Typer, command: str) -> None:
    """Parse the command line of ``app`` and run it; misuse that the parser finds is told as our own errors are."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name=command, standalone_mode=False)
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's exceptions, which typer does not export
            tell_error(error.format_message(), f"{command} --help")
            code = 2
        else:
            code = report_error(error)
    sys.exit(code or 0)


def exit_code(run: Callable[[], int], *, debug: bool) -> int:
    """Run a command and return its exit code, that of its error if it fails; the error goes to stderr."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as while the command was imported
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if debug:
            traceback.print_exc()
        return report_error(error)


def report_error(error: Exception) -> int:
    """Write an error for a person to stderr and return its exit code."""
    if isinstance(error, ClientError):
        tell_error(str(error), error.hint)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _NO_OUTPUT:
        # What is left in the buffer must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # whoever read stdout has gone, as `head` does
            return 128 + signal.SIGPIPE
        tell_error(f"the output can't be written: {error.strerror}", None)
        return 1
    tell_error(f"unexpected {type(error).__name__}: {error}", "--debug shows where it comes from")
    return 1


def tell_error(message: str, hint: str | None) -> None:
    """Write ``error:`` and ``hint:`` to stderr."""
    typer.echo(f"error: {printable(message)}", err=True)
    if hint:
        typer.echo(f"\nhint: {printable(hint)}", err=True)
