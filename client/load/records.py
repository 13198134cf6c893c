"""One request that was sent, as worker processes hand it on.

A worker imports this module and :mod:`client.load.engine` and little else: it starts in a few milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from client.tls import Tls


class Outcome(IntEnum):
    """What became of a request; all but ``OK`` are errors."""

    OK = 0
    NO_CONNECTION = 1
    CONNECTION_BROKE = 2
    TIMEOUT = 3
    NOT_UNDERSTOOD = 4
    REFUSED = 5
    SERVER_ERROR = 6

    @property
    def text(self) -> str:
        return _TEXTS[self]

    @classmethod
    def of_http(cls, status: int) -> Outcome:
        """Of an HTTP status that isn't 200."""
        return cls.SERVER_ERROR if status >= 500 else cls.REFUSED


_TEXTS: Final = {
    Outcome.OK: "answered",
    Outcome.NO_CONNECTION: "no connection",
    Outcome.CONNECTION_BROKE: "connection broke",
    Outcome.TIMEOUT: "timeout",
    Outcome.NOT_UNDERSTOOD: "answer not understood",
    Outcome.REFUSED: "refused",
    Outcome.SERVER_ERROR: "server error",
}

WAITED: Final = 0x80
"""Flag in a record's status: as many as may be were in flight, so the request was sent later than intended."""


@dataclass(frozen=True)
class ClosedLoop:
    """Of ``in_flight`` requests each is followed by the next one when it is answered."""

    in_flight: int
    requests: int | None = None  # None: until the end of the phase


@dataclass(frozen=True)
class DueTimes:
    """Nanoseconds after the start at which requests are due: evenly spaced, a Poisson process, or a list.

    A Poisson process of ``rate`` per second has independent gaps, exponential with mean 1 / rate.
    """

    rate: float = 0.0
    poisson: bool = False
    seed: int = 0
    trace_ns: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[int]:
        if self.trace_ns:
            yield from self.trace_ns
        elif self.poisson:
            draw, scale, due = random.Random(self.seed).expovariate, self.rate / 1e9, 0.0  # noqa: S311
            while True:
                due += draw(scale)
                yield int(due)
        else:
            number = 0
            while True:
                yield int(number * 1e9 / self.rate)
                number += 1


@dataclass(frozen=True)
class OpenLoop:
    """Requests are sent when they are due, answered or not, as long as no more than ``most`` are in flight.

    There are connections for ``in_flight`` from the start on.  Of the due times, this worker takes every ``stride``-th
    from ``first`` on.
    """

    due: DueTimes
    in_flight: int
    most: int
    requests: int | None = None  # of all workers; None: until the end of the phase
    first: int = 0
    stride: int = 1


@dataclass(frozen=True)
class Phase:
    """What one worker does between two drained moments; ``duration_ns`` 0: until the requests are all sent."""

    loop: ClosedLoop | OpenLoop
    duration_ns: int


@dataclass(frozen=True)
class DeviceRegions:
    """Regions of ``size`` bytes each in the memory of GPU ``device``, and the handles that open them."""

    device: int
    size: int
    handles: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class Slots:
    """Where in shared memory answers go: each request in flight has a slot of its own.

    Requests name slot 0, and the call whose slot is another puts that one's region, whose name is as long, in
    its place.  A region is a file in the folder ``where``, or memory of a GPU.
    """

    name: str
    where: str | DeviceRegions
    first: int = 0
    stride: int = 1

    @staticmethod
    def region(name: str, slot: int) -> str:
        """The name of the region that slot ``slot`` is."""
        return f"{name}-output-{slot:05}"

    def reader(self) -> Callable[[int], bytes]:
        """Open the slots that are this worker's, which takes CUDA a while; the function reads one (OSError)."""
        where = self.where
        if isinstance(where, str):
            return lambda slot: Path(where, self.region(self.name, slot)).read_bytes()
        from client.load.device_memory import open_regions

        return open_regions(where, range(self.first, len(where.handles), self.stride))


@dataclass(frozen=True)
class Setup:
    """What a worker needs once: where to send, what, and how long to wait for an answer.

    ``requests`` are whole for HTTP/1.1; for gRPC they are messages behind their prefix.  ``authority`` is the
    server's name (and port) as requests give it; with ``tls``, its certificate must be for that name.  ``streams`` is
    the most gRPC calls that the server takes on a connection at a time.
    """

    family: int
    address: tuple[object, ...]
    requests: tuple[bytes, ...] = field(repr=False)
    timeout_ns: int
    grpc: bool = False
    streams: int = 2**31 - 1
    authority: str = ""
    host: str = ""
    tls: Tls | None = None
    slots: Slots | None = None


@dataclass(frozen=True)
class Stop:
    """Send nothing more; what is in flight is waited for."""


@dataclass(frozen=True)
class Ready:
    """The connections of the next phase are open."""


@dataclass(frozen=True)
class Records:
    """Requests that were finished since the last message: columns of int64 (status: uint8), as bytes."""

    done: bytes
    response: bytes
    service: bytes
    status: bytes


@dataclass(frozen=True)
class Waiting:
    """Nothing more is sent, and so many requests have no answer yet: told once a second."""

    requests: int


@dataclass(frozen=True)
class Sample:
    """One whole answer, for the parent to check; ``outputs`` is what it left in shared memory.

    ``problem``: why that can't be read.
    """

    header_length: int
    body: bytes
    encoding: str = ""
    outputs: bytes | None = None
    problem: str = ""


@dataclass(frozen=True)
class Failure:
    """The first message of an outcome."""

    outcome: Outcome
    message: str


@dataclass(frozen=True)
class PhaseEnd:
    """A worker's account of a phase: totals over its requests, the CPU time and wall time it took.

    ``unsent``: requests that were due before the end and not sent, as too many were in flight until then.
    """

    send_ns: int
    receive_ns: int
    cpu_ns: int
    wall_ns: int
    connections: int
    unsent: int
