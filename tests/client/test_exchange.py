from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from client.client import Client
from client.exchange import Exchange
from client.metadata import ModelMetadata
from client.protocol import Request, Response
from tests.client.fakes import FakeTransport

MODEL = ModelMetadata("net", "1", 8, (), ())
INFER = "/v2/models/net/versions/1/infer"
STATS = "/v2/models/net/versions/1/stats"


@dataclass
class LateCounters(FakeTransport):
    """Counts inference requests, and shows the newest of them only at the third look."""

    counted: int = 1000
    shown: int = 1000
    looks: int = 0

    def send(self, request: Request) -> Response:
        if request.path == INFER:
            self.counted += 1
            self.looks = 0
        elif request.path == STATS:
            self.looks += 1
            if self.looks > 2:
                self.shown = self.counted
            self.answers[STATS] = statistics(self.shown)
        return super().send(request)


def statistics(requests: int) -> dict[str, Any]:
    stage = {"count": requests, "ns": requests * 1000}
    stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    times = dict.fromkeys(stages, stage)
    return {"model_stats": [{"inference_count": requests, "execution_count": requests, "inference_stats": times}]}


def send(exchange: Exchange, times: int = 1) -> list[bytes]:
    request = Request("POST", INFER, b"body")
    return [
        exchange.send(lambda: request, lambda response: response.body, items=4, preprocess_ns=7_000_000)
        for _ in range(times)
    ]


@pytest.mark.parametrize("warmup", [0, 3])
def test_counters_that_come_late_are_waited_for(warmup: int) -> None:
    transport = LateCounters({INFER: Response(200, {}, b"answer")})
    exchange = Exchange(Client(transport=transport), MODEL, warmup=warmup, repeat=5)
    assert send(exchange, times=2) == [b"answer", b"answer"]
    report = exchange.report()
    assert report is not None
    assert (report.request.count, report.items, report.others) == (10, 40, 0)
    assert report.server is not None
    assert report.server.queue_ns == 10 * 1000
    assert report.preprocess.count == report.postprocess.count == 2
    assert report.preprocess.min_ns >= 7_000_000
    assert sum(request.path == INFER for request in transport.requests) == 10 + warmup


def test_counters_that_never_come_are_not_waited_for_without_end() -> None:
    transport = FakeTransport({INFER: Response(200, {}, b""), STATS: statistics(5)})
    exchange = Exchange(Client(transport=transport), MODEL)
    send(exchange)
    report = exchange.report()
    assert report is not None
    assert report.others == -1


def test_server_without_statistics() -> None:
    exchange = Exchange(Client(transport=FakeTransport({INFER: Response(200, {}, b"")})), MODEL, warmup=1)
    send(exchange)
    report = exchange.report()
    assert report is not None
    assert report.server is None


def test_no_request_no_report() -> None:
    assert Exchange(Client(transport=FakeTransport({})), MODEL).report() is None
