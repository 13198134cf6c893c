"""The command line: every command parses, calls one public function and prints.

stdout carries data only; progress, notes and errors go to stderr.  :func:`main` is the one place that turns
an exception into ``error:``, ``hint:`` and an exit code (1 failed, 2 misuse, 130 interrupted).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from repo_builder.errors import RepoBuilderError

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
    version: Annotated[  # noqa: ARG001  (handled by its callback)
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def report(error: Exception) -> int:
    """Write ``error`` for a person to stderr and return its exit code."""
    message = str(error) or type(error).__name__
    typer.echo(f"error: {message}", err=True)
    hint = getattr(error, "hint", None)
    if hint:
        typer.echo(f"\nhint: {hint}", err=True)
    return getattr(error, "exit_code", 1)
