"""The command line: every command parses, calls one public function and prints.

stdout carries data only; progress, notes and errors go to stderr.  :func:`main` is the one place that turns
an exception into ``error:``, ``hint:`` and an exit code (1 failed, 2 misuse, 130 interrupted).
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from typing import Annotated

import typer

from repo_builder.cli.output import printable
from repo_builder.cli.trtexec import explain
from repo_builder.errors import RepoBuilderError, UsageError

INTERRUPTED = 130  # a shell's 128 + SIGINT

app = typer.Typer(
    name="repo-builder",
    help="Build, check and serve Triton model repositories.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help text: importing rich would triple the time of --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"repo-builder {version('repo-builder')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the entry point of ``repo-builder`` and ``python -m repo_builder``."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        code = _report(error)
    if code == INTERRUPTED:  # the parser, too, turns Ctrl-C into this
        typer.echo("interrupted", err=True)
        if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            os._exit(code)  # a TensorRT that can't be stopped: Python would wait for it
    sys.exit(code or 0)


def _report(error: Exception) -> int:
    """Write ``error`` for a person to stderr and return its exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # private to the parser; its message is the help
        typer.echo(str(error), err=True)
        return 2
    told = _in_our_words(error)
    typer.echo(f"error: {printable(told.message)}", err=True)
    if told.hint:
        typer.echo(f"\nhint: {printable(told.hint)}", err=True)
    return told.exit_code


def _in_our_words(error: Exception) -> RepoBuilderError:
    """Errors on purpose as they are, those of the parser and the system as ours; the rest is our mistake."""
    if isinstance(error, RepoBuilderError):
        return error
    if isinstance(error, OSError) and traceback.extract_tb(error.__traceback__)[-1].name == "echo":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tries again at its end, and complains
        why = f"can't write to standard output: {error.strerror}"
        return RepoBuilderError(why, "free some space, or send the output elsewhere")
    if hasattr(error, "format_message"):
        return _of_the_parser(error.format_message(), getattr(error, "ctx", None), getattr(error, "option_name", ""))
    if isinstance(error, FileNotFoundError) and _is_current_folder_gone():
        return RepoBuilderError("the current folder was removed", "cd to one that is there")
    if isinstance(error, MemoryError):
        return RepoBuilderError(f"not enough memory: {error}".rstrip(": "), "a machine with more has more")
    return RepoBuilderError(
        f"unexpected {type(error).__name__}: {error}",
        "this is a mistake in repo-builder; run it again with --debug and report what it prints",
    )


def _is_current_folder_gone() -> bool:
    try:
        os.getcwd()  # noqa: PTH109  (asks for nothing else)
    except FileNotFoundError:
        return True
    return False


def _of_the_parser(message: str, context: typer.Context | None, unknown: str) -> UsageError:
    """What the parser says, in the command of ``context`` if it came so far; ``unknown`` is no option."""
    unreadable = re.search(r"path (.+) is not readable\.$", message, re.DOTALL)
    if unreadable:
        return UsageError(f"{unreadable[1]} can't be read: Permission denied", "check its permissions")
    command = (context.info_name if context else None) or ""
    of_trtexec = explain(unknown, sys.argv, command) if command in {"add", "compile"} else None
    return of_trtexec or UsageError(message, f"{context.command_path if context else 'repo-builder'} --help")


from repo_builder.cli.add import add  # noqa: E402  (the commands need `app` to exist)
from repo_builder.cli.compile import compile_command, inspect_command  # noqa: E402
from repo_builder.cli.doctor import doctor  # noqa: E402
from repo_builder.cli.models import list_models, remove, show  # noqa: E402
from repo_builder.cli.serve import logs, serve, status, stop  # noqa: E402
from repo_builder.cli.verify import verify  # noqa: E402

app.command()(add)
app.command("list")(list_models)
app.command()(show)
app.command()(remove)
app.command()(verify)
app.command()(serve)
app.command()(stop)
app.command()(status)
app.command()(logs)
app.command()(doctor)
app.command("compile")(compile_command)
app.command("inspect")(inspect_command)
