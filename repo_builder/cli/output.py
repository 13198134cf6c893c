"""What the commands share in talking: JSON to stdout, progress to stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated

import typer

RepositoryOption = Annotated[str, typer.Option("--repository", "-r", metavar="DIR", help="The model repository.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DEFAULT_REPOSITORY = "model_repository"


def print_json(data: object) -> None:
    """Text of any language stays readable; what a terminal would obey, or no encoding has, is escaped."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    typer.echo("".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text))


def printable(text: str) -> str:
    """``text`` on one line and without what a terminal would obey: names of tensors come from strangers' files."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def say(line: str) -> None:
    """A line of what was asked for."""
    typer.echo(printable(line))


def note(line: str) -> None:
    """A line for the person watching."""
    typer.echo(printable(line), err=True)


USUAL_COLUMNS = 80


def _columns() -> int:
    """How wide stderr's terminal is; the usual where there is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or USUAL_COLUMNS
    except OSError:
        return USUAL_COLUMNS


def _rewrite(start: str, end: str = "") -> None:
    """Put a line over the one on stderr's terminal, ``start`` cut to what fits: of two rows one would stay."""
    room = max(_columns() - len(end) - 3, 0)
    typer.echo(f"\r\x1b[K  {start[:room]}{end}", err=True, nl=False)


class Steps:
    """Progress lines with the seconds each step took, written to stderr as steps end."""

    def __init__(self) -> None:
        self._label: str | None = None
        self._began = 0.0

    def __call__(self, line: str) -> None:
        label, detail = (printable(part) for part in line.partition("\t")[::2])
        if label == self._label:  # the same work goes on
            if sys.stderr.isatty():
                elapsed = time.perf_counter() - self._began
                _rewrite(f"{label}: {detail}" if detail else label, f" ... {elapsed:.0f} s")
            return
        self.end()
        self._label, self._began = label, time.perf_counter()
        if sys.stderr.isatty():
            _rewrite(label, " ...")

    def end(self, how: str = "") -> None:
        """Write how long the step took, ``how`` in front of that."""
        if self._label is None:
            return
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        took = f"{how}{time.perf_counter() - self._began:.1f} s"
        room = min(_columns(), USUAL_COLUMNS) - len(took) - 4
        typer.echo(f"{start}  {self._label:<{max(room, 1)}} {took}", err=True)
        self._label = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end("" if kind is None else "stopped after " if kind is KeyboardInterrupt else "failed after ")


class LiveLine:
    """One line on stderr that is written over and over; a line every ten seconds where stderr is no terminal."""

    INTERVAL_S = 10.0

    def __init__(self) -> None:
        self._written = float("-inf")
        self._open = False

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            _rewrite(text)
            self._open = True
        elif time.monotonic() - self._written >= self.INTERVAL_S:
            self._written = time.monotonic()
            note(f"  {text}")

    def __enter__(self) -> LiveLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            typer.echo("", err=True)


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Aligned columns on stdout, without borders: they stay readable in a pipe."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def human_size(count: int) -> str:
    """Bytes in decimal units, as disks and registries count."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
