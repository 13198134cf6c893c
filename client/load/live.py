"""What is shown on stderr while a run goes on: a view that renews itself on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, TextIO

import numpy as np

from client.load.bodies import Bodies
from client.load.observer import Observer
from client.load.plan import Plan
from client.load.records import WAITED, Records
from client.load.report import count, milliseconds, what_is_sent
from client.load.result import Level
from client.load.schedule import Load, Window
from client.metadata import ModelMetadata
from client.text import printable

if TYPE_CHECKING:
    from rich.live import Live

_LINE_S: Final = 1.0
_VIEW_S: Final = 0.25
_BAR: Final = 30


class Progress(Observer):
    """Numbers of the last second on ``stream``, else stderr: in place on a terminal, else a line a second."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream = stream or sys.stderr
        self._view: Live | None = None
        self._interval = _VIEW_S if stream.isatty() else _LINE_S

    def run_started(self, model: ModelMetadata, url: str, plan: Plan, bodies: Bodies) -> None:
        size = sum(map(len, bodies.requests)) // len(bodies.requests)
        self._write(
            f"model {model.name}, version {model.version}, at {url}: "
            f"{what_is_sent(len(bodies.requests), size)} ({bodies.source}), batch {bodies.batch}"
        )
        if plan.warmup is not None:
            self._write(f"warm-up before each level: {plan.warmup}")

    def level_started(self, load: Load, window: Window) -> None:
        self._load, self._window = load, window
        self._start = self._last = time.monotonic()
        self._total = self._errors = 0
        self._recent: list[Records] = []

    def records(self, records: Records) -> None:
        self._recent.append(records)
        now = time.monotonic()
        if now - self._last >= self._interval:
            text = self._line(now)
            self._last, self._recent = now, []
            self._show(f"{self._bar(now)}\n{text}", text)

    def waiting(self, requests: int) -> None:
        text = f"waiting for the last {requests:,} answer{'s' * (requests != 1)}"
        self._show(f"{self._load}  {text}", f"{time.monotonic() - self._start:6.1f} s  {text}")

    def level_ended(self, level: Level) -> None:
        if self._view is not None:
            self._view.stop()
            self._view = None
        statistics = level.statistics
        self._write(
            f"{level.load}: {count(statistics.throughput.value)} requests/s in {statistics.window_s:.1f} s, "
            f"{statistics.errors:,} errors, {'VALID' if level.verdict.valid else 'INVALID'}"
        )

    def _line(self, now: float) -> str:
        response = np.frombuffer(b"".join(entry.response for entry in self._recent), np.int64)
        status = np.frombuffer(b"".join(entry.status for entry in self._recent), np.uint8) & ~np.uint8(WAITED)
        good = response[status == 0]
        self._total += len(response)
        self._errors += len(response) - len(good)
        rate = count(len(good) / (now - self._last))
        p50, p99 = (milliseconds(float(v) / 1e6) for v in np.quantile(good, (0.5, 0.99))) if len(good) else ("-", "-")
        elapsed = f"{now - self._start:6.1f} s"
        return f"{elapsed}  {rate:>9} requests/s  p50 {p50} ms  p99 {p99} ms  {self._errors:,} errors"

    def _bar(self, now: float) -> str:
        parts = []
        if self._window.seconds:
            parts.append((now - self._start) / self._window.seconds)
        if self._window.requests:
            parts.append(self._total / self._window.requests)
        done = min(1.0, max(parts, default=0.0))
        full = round(done * _BAR)
        return f"{self._load}  {'━' * full}{'─' * (_BAR - full)} {done:4.0%}"

    def _show(self, in_place: str, line: str) -> None:
        if not self._stream.isatty():
            self._write(line)
            return
        if self._view is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, highlight=False, markup=False)
            self._view = Live(console=console, auto_refresh=False, transient=True)
            self._view.start()  # not before: what can still fail would leave the terminal without its cursor
        self._view.update(in_place, refresh=True)

    def _write(self, text: str) -> None:
        self._stream.write(printable(text) + "\n")
        self._stream.flush()
