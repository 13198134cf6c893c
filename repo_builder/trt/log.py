"""TensorRT's log: all of it to a file, what a person must know kept at hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from repo_builder.trt.library import Library


class BuildLog:
    """Receives what TensorRT says during a build.

    ``logger`` is the ``ILogger`` to hand over; ``errors`` and ``warnings`` hold messages in order, each once;
    ``engine_text`` the builder's description of the engine, if it gave one.
    """

    def __init__(self, library: Library, path: Path, *, verbose: bool = False) -> None:
        trt = library.module
        self.path = path
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.engine_text = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self._began = time.monotonic()
        levels = trt.ILogger.Severity
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in {levels.ERROR, levels.INTERNAL_ERROR}:
                    outer.keep(outer.errors, message)
                elif severity == levels.WARNING:
                    outer.keep(outer.warnings, message)
                elif severity == levels.VERBOSE:
                    if message.startswith("Layers:"):
                        outer.engine_text = message
                    elif not verbose:
                        return
                outer.write(severity.name, message)

        self.logger = Logger()

    def keep(self, messages: list[str], message: str) -> None:
        if message not in messages:
            messages.append(message)

    def write(self, severity: str, message: str) -> None:
        if not self._file.closed:
            self._file.write(f"{time.monotonic() - self._began:9.3f} {severity.lower():8} {message}\n")

    def close(self) -> None:
        self._file.close()
