"""Requests to one model, one after another, with the time that each part of them takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from client.client import Client
from client.errors import ClientError
from client.latency import LatencySummary, ServerStatistics
from client.metadata import ModelMetadata
from client.protocol import Request, Response

_Result = TypeVar("_Result")

_PATIENCE: Final = 50  # looks at the server's counters, a millisecond apart


@dataclass(frozen=True)
class LatencyReport:
    """Where the time went.

    ``preprocess`` and ``postprocess`` are per batch, ``request`` is per request: from its first byte sent to
    the last byte of its answer read.  ``server`` is the server's own account of the window, for the requests
    of every client; None if it gives none.
    """

    items: int
    preprocess: LatencySummary
    request: LatencySummary
    postprocess: LatencySummary
    server: ServerStatistics | None

    @property
    def items_per_second(self) -> float:
        """Items by the time spent in requests: the rate of one connection that always has a request out."""
        return self.items * 1e9 / (self.request.mean_ns * self.request.count)

    @property
    def others(self) -> int:
        """Requests in the server's account that were not of this run (negative if it misses some)."""
        return 0 if self.server is None else self.server.requests - self.request.count


@dataclass
class Exchange:
    """Sends requests one after another and keeps their times.

    Each request is sent ``repeat`` times; ``warmup`` requests are sent before the first and not counted.
    """

    client: Client
    model: ModelMetadata
    warmup: int = 0
    repeat: int = 1
    _items: int = 0
    _preprocess_ns: list[int] = field(default_factory=list)
    _request_ns: list[int] = field(default_factory=list)
    _postprocess_ns: list[int] = field(default_factory=list)
    _before: ServerStatistics | None = None

    def send(
        self,
        build: Callable[[], Request],
        read: Callable[[Response], _Result],
        *,
        items: int,
        preprocess_ns: int = 0,
    ) -> _Result:
        """Build a request of ``items``, send it, and return what ``read`` makes of the last answer.

        ``preprocess_ns`` is what making its arrays took; building the body is added to it.
        """
        start = time.perf_counter_ns()
        request = build()
        self._preprocess_ns.append(preprocess_ns + time.perf_counter_ns() - start)
        if not self._request_ns:
            self._warm_up(request)
        for _ in range(self.repeat):
            start = time.perf_counter_ns()
            response = self._send(request)
            self._request_ns.append(time.perf_counter_ns() - start)
            self._items += items
        start = time.perf_counter_ns()
        result = read(response)
        self._postprocess_ns.append(time.perf_counter_ns() - start)
        return result

    def report(self) -> LatencyReport | None:
        """The times of all requests up to now; None if there were none."""
        if not self._request_ns:
            return None
        after = self._statistics(self._before.requests + len(self._request_ns)) if self._before else None
        return LatencyReport(
            items=self._items,
            preprocess=LatencySummary.of(self._preprocess_ns),
            request=LatencySummary.of(self._request_ns),
            postprocess=LatencySummary.of(self._postprocess_ns),
            server=after - self._before if after and self._before else None,
        )

    def _send(self, request: Request) -> Response:
        return self.client.send(request, self.model.name, self.model.version)

    def _warm_up(self, request: Request) -> None:
        self._before = self._statistics()
        for _ in range(self.warmup):
            self._send(request)
        if self._before and self.warmup:
            self._before = self._statistics(self._before.requests + self.warmup)

    def _statistics(self, requests: int = 0) -> ServerStatistics | None:
        """The server's counters once they hold ``requests``: it counts a request a little after answering."""
        try:
            for _ in range(_PATIENCE):
                statistics = self.client.statistics(self.model.name, self.model.version)
                if statistics.requests >= requests:
                    break
                time.sleep(0.001)
        except ClientError:
            return None  # a server may be built without statistics; the answers matter more
        return statistics
