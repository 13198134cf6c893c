"""How hard a server is pressed, and for how long: read from the command line, given to workers as phases."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, TypeVar

from client.errors import InputError, UsageError
from client.load.records import ClosedLoop, DueTimes, OpenLoop, Phase
from client.transport import MAX_S

DEFAULT_CONNECTIONS: Final = 512

TRACE_FORMAT: Final = "a trace has a time in seconds from the start on each line, none before the one above it"

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Load:
    """One level of load.

    Closed loop: ``concurrency`` requests are in flight at any time.  Open loop: requests are sent at ``rate``
    per second, evenly or as a Poisson process, or at the times of a trace, whether or not the server keeps up.
    """

    concurrency: int | None = None
    rate: float | None = None
    poisson: bool = False
    trace_ns: tuple[int, ...] = ()

    @property
    def open_loop(self) -> bool:
        return self.concurrency is None

    def __str__(self) -> str:
        if self.concurrency is not None:
            return f"concurrency {self.concurrency}"
        if self.rate is not None:
            return f"{self.rate:g} requests/s{' (Poisson)' if self.poisson else ''}"
        return f"trace of {len(self.trace_ns)} requests"

    def phases(
        self, workers: int, window: Window, seed: int, max_connections: int = DEFAULT_CONNECTIONS
    ) -> list[Phase]:
        """Divide the load among workers: each its share of those in flight, or every so-manieth request.

        Where there are more workers than may be in flight, the others do nothing.
        """
        duration = round(window.seconds * 1e9)
        if self.concurrency is not None:
            in_flight = split(self.concurrency, workers)
            shares = zip(in_flight, split_like(window.requests, in_flight), strict=True)
            return [Phase(ClosedLoop(*share), duration) for share in shares]
        due = DueTimes(self.rate or 0.0, self.poisson, seed, self.trace_ns)
        # Enough for answers that take 50 ms; more are opened when they are needed.
        first = min(max_connections, max(8, math.ceil((self.rate or 160.0) * 0.05)))
        limits = zip(split(first, workers), split(max_connections, workers), strict=True)
        busy = min(workers, max_connections)
        return [
            Phase(OpenLoop(due, in_flight, most, window.requests if most else 0, index, busy), duration)
            for index, (in_flight, most) in enumerate(limits)
        ]


@dataclass(frozen=True)
class Window:
    """How long to press: seconds (0: without end) and number of requests, whichever comes first."""

    seconds: float = 0.0
    requests: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.seconds:g} s"] if self.seconds else []
        parts += [] if self.requests is None else [f"{self.requests:,} requests"]
        return " or ".join(parts) or "to the end"


def split(number: int, parts: int) -> list[int]:
    """``number`` in ``parts`` whole shares that differ by at most one."""
    return [number // parts + (index < number % parts) for index in range(parts)]


def split_like(number: int | None, weights: Sequence[int]) -> list[int | None]:
    """``number`` in whole shares that are to each other as ``weights``; no number stays none."""
    if number is None:
        return [None] * len(weights)
    ends = [number * end // sum(weights) for end in accumulate(weights, initial=0)]
    return [end - start for start, end in pairwise(ends)]


def parse_concurrencies(text: str) -> list[int]:
    """``4``, ``1,2,4``, ``1:8`` (each), ``1:64:8`` (steps of 8) or ``1:64:x2`` (doubling)."""
    return _levels(text, "--concurrency", int)


def parse_rates(text: str) -> list[float]:
    """Requests a second: ``500``, ``100,200``, ``100:2000:100`` or ``100:3200:x2``."""
    return _levels(text, "--rate", float)


def parse_duration(text: str, option: str) -> float:
    """Seconds of ``10``, ``10s``, ``500ms`` or ``2m``."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :] or "s"
    try:
        seconds = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        seconds = math.nan
    if not 0 <= seconds <= MAX_S:
        raise UsageError(f"{option} {text!r} is no duration", f"{option} 10s, 500ms or 2m")
    return seconds


def read_trace(path: Path) -> Load:
    """Arrival times in seconds from the start, one a line; what follows a ``#`` is a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}", TRACE_FORMAT) from error
    times: list[int] = []
    for number, line in enumerate(lines, 1):
        value = line.partition("#")[0].strip()
        if not value:
            continue
        try:
            at = float(value)
        except ValueError:
            at = math.nan
        if not 0 <= at <= MAX_S:
            raise InputError(f"{path}, line {number}: {value!r} is no time in seconds", TRACE_FORMAT)
        if times and at * 1e9 < times[-1] - 1:
            raise InputError(f"{path}, line {number}: {value} is before the line above it", TRACE_FORMAT)
        times.append(round(at * 1e9))
    if not times:
        raise InputError(f"{path} has no arrival times", TRACE_FORMAT)
    return Load(trace_ns=tuple(times))


def trace_of(times: Iterable[object]) -> Load:
    """The same of seconds that are at hand; UsageError when they are no arrival times."""
    seconds: list[float] = []
    for at in times:
        number = float(at) if isinstance(at, numbers.Real) else math.nan
        if not (seconds[-1] if seconds else 0.0) <= number <= MAX_S:
            raise UsageError(f"--trace: {at!r} is no time in seconds after those before it", TRACE_FORMAT)
        seconds.append(number)
    if not seconds:
        raise UsageError("--trace has no arrival times", TRACE_FORMAT)
    return Load(trace_ns=tuple(round(at * 1e9) for at in seconds))


def _levels(text: str, option: str, kind: Callable[[str], _Number]) -> list[_Number]:
    hint = f"{option} 8, 1,2,4, 1:64:x2 or 10:100:10"
    try:
        levels = [level for part in text.split(",") for level in _range(part, kind)]
    except ValueError:
        levels = []
    if not levels or min(levels) <= 0 or not all(map(math.isfinite, levels)):
        raise UsageError(f"{option} {text!r} is no list of levels", hint)
    return levels


def _range(text: str, kind: Callable[[str], _Number]) -> list[_Number]:
    start, *rest = text.split(":")
    if not rest:
        return [kind(start)]
    if len(rest) > 2:
        raise ValueError(text)
    level, end, step = kind(start), kind(rest[0]), rest[1] if len(rest) == 2 else "1"
    doubling = step.startswith("x")
    by = float(step[1:]) if doubling else kind(step)
    if level <= 0 or end < level or by <= (1 if doubling else 0):
        raise ValueError(text)
    levels: list[_Number] = []
    while level <= end and len(levels) < 1000:
        levels.append(level)
        level = kind(str(round(level * by))) if doubling else kind(str(level + by))
        if levels[-1] >= level:
            raise ValueError(text)
    return levels
