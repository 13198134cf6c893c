"""What the commands of this package share: how they end, and how they tell an error."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

import typer

from client.errors import ClientError
from client.text import printable


def run_app(app: typer.Typer, command: str) -> None:
    """Parse the command line of ``app`` and run it; misuse that the parser finds is told as our own errors are."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(prog_name=command, standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's exceptions, which typer does not export
            raise
        tell_error(error.format_message(), f"{command} --help")
        code = 2
    sys.exit(code or 0)


def exit_code(run: Callable[[], int], *, debug: bool) -> int:
    """Run a command and return its exit code, that of its error if it fails; the error goes to stderr."""
    try:
        return run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read stdout has gone, as `head` does; what is left in the buffer must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        return report_error(error)


def report_error(error: Exception) -> int:
    """Write an error for a person to stderr and return its exit code."""
    if isinstance(error, ClientError):
        tell_error(str(error), error.hint)
        return error.exit_code
    tell_error(f"unexpected {type(error).__name__}: {error}", "--debug shows where it comes from")
    return 1


def tell_error(message: str, hint: str | None) -> None:
    """Write ``error:`` and ``hint:`` to stderr."""
    typer.echo(f"error: {printable(message)}", err=True)
    if hint:
        typer.echo(f"\nhint: {printable(hint)}", err=True)
