"""TensorRT's log: all of it to a file, what a person must know kept at hand."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from repo_builder.compilers.base import Target
from repo_builder.folders import state_folder
from repo_builder.trt.library import Library

KEPT_LOGS = 20


def log_path(target: Target) -> Path:
    """Where the log of a build that begins now is kept."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return state_folder() / "builds" / f"{target.value}-{stamp}.log"


def keep_newest(folder: Path) -> None:
    """Delete all logs but the last ones; what can't be deleted stays."""
    with contextlib.suppress(OSError):
        for old in sorted(folder.glob("*.log"), key=lambda file: file.stat().st_mtime)[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)


class BuildLog:
    """Receives what TensorRT says during a build.

    ``logger`` is the ``ILogger`` to hand over; ``errors`` and ``warnings`` hold messages in order, each once;
    ``engine_text`` the builder's description of the engine, if it gave one.  A file that can't be written keeps nobody
    from building: it is removed, and ``trouble`` says why; "" where there was none.
    """

    def __init__(self, library: Library, path: Path, *, verbose: bool = False) -> None:
        trt = library.module
        self.path = path
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.engine_text = ""
        self.trouble = ""
        self._file: TextIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", buffering=1, encoding="utf-8")  # by lines: a full disk is noticed at once
        except OSError as error:
            self._give_up(error)
        self._began = time.monotonic()
        levels = trt.ILogger.Severity
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in {levels.ERROR, levels.INTERNAL_ERROR}:
                    _keep(outer.errors, message)
                elif severity == levels.WARNING:
                    _keep(outer.warnings, message)
                elif severity == levels.VERBOSE:
                    if message.startswith("Layers:"):
                        outer.engine_text = message
                    elif not verbose:
                        return
                outer.write(severity.name, message)

        self.logger = Logger()

    @property
    def place(self) -> str:
        """A clause for hints: where everything is that TensorRT said."""
        return f"the log {self.path} {self.trouble}" if self.trouble else f"everything it said is in {self.path}"

    def write(self, severity: str, message: str) -> None:
        file = self._file
        if file is None:
            return
        try:
            file.write(f"{time.monotonic() - self._began:9.3f} {severity.lower():8} {message}\n")
        except OSError as error:
            self._give_up(error)
        except ValueError:  # closed meanwhile: a builder that can't be stopped still talks
            pass

    def close(self) -> None:
        file, self._file = self._file, None
        if file:
            try:
                file.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.trouble = f"can't be written: {error.strerror}"
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        if file:
            with contextlib.suppress(OSError):  # what it still holds can't be written either
                file.close()


def _keep(messages: list[str], message: str) -> None:
    if message not in messages:
        messages.append(message)
