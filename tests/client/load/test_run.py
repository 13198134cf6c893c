"""``run_load`` against fakes that answer by a script: what is reported is what was done."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from client import ClientError, ConnectionFailed, UsageError, run_load
from client.load import workers
from client.load.channel import Call
from client.load.histogram import decode
from client.load.http1 import Http1Channel
from client.load.interrupts import Interrupts
from client.load.observer import Observer
from client.load.plan import make_plan
from client.load.records import ClosedLoop, Outcome, Phase, Records, Setup
from client.load.result import Level, RunResult
from client.load.run import carry_out
from client.load.schedule import Load, Window
from client.load.target import open_client
from client.load.workers import Workers
from tests.client.command import command
from tests.client.load.fake_server import Script, fake_server


def run(script: Script, **options: Any) -> RunResult:
    with fake_server(script) as url:
        return run_load(url=url, **{"warmup_s": 0, "floor": False, "requests": None, **options})


def level(script: Script, **options: Any) -> Level:
    (found,) = run(script, **options).levels
    return found


def kinds(found: Level) -> dict[str, int]:
    return {kind.kind: kind.count for kind in found.statistics.kinds}


def setup(address: str, timeout_ns: int = 10**10) -> Setup:
    """What a worker needs to send empty requests."""
    host, _, port = address.partition(":")
    request = b"POST /v2/models/fake/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
    return Setup(socket.AF_INET, (host, int(port)), (request,), timeout_ns)


class TestTruth:
    @pytest.mark.parametrize("load", [{"concurrency": 5}, {"rate": 150}])
    def test_percentiles_are_those_of_the_script(self, load: dict[str, Any]) -> None:
        found = level(Script(delays_s=(0.005,) * 12 + (0.05,) * 7 + (0.2,)), requests=100, **load).statistics.service
        assert found is not None
        # So far apart that a busy machine doesn't mix them up; how exact they are is shown by benchmarks/truth.py.
        for quantile, truth in ((0.5, 5), (0.9, 50), (0.99, 200)):
            assert truth <= found.percentile(quantile).ms.value < truth + 40

    def test_batches_are_the_servers_to_the_last(self) -> None:
        found = level(Script(batches=(1, 2, 3)), concurrency=2, requests=300)
        assert found.server is not None
        assert [(b.size, b.executions) for b in found.server.batches] == [(1, 50), (2, 50), (3, 50)]
        assert found.batching is not None
        assert "works: 300 requests ran in 150 executions, 83% of the requests with others, 2.00" in found.batching

    def test_the_warm_up_is_in_no_number(self) -> None:
        found = level(Script(delays_s=(0.002,)), concurrency=2, requests=100, warmup_s=0.2)
        assert found.server is not None
        assert found.statistics.requests == found.server.requests == 100

    def test_parts_sum_to_the_mean(self) -> None:
        found = level(Script(delays_s=(0.003,)), rate=200, requests=100)
        assert found.statistics.response is not None
        assert {part.name: part.ms for part in found.split}["server queue"] == pytest.approx(0.1)
        assert sum(part.ms for part in found.split) == pytest.approx(found.statistics.response.mean_ms.value)
        assert all(part.ms >= 0 for part in found.split)

    def test_histogram_and_columns_tell_the_same(self) -> None:
        result = run(Script(delays_s=(0.001, 0.005)), concurrency=1, requests=100)
        latency = result.to_json()["levels"][0]["response_time"]
        assert decode(latency["hdr_histogram_ns"]).sum() == latency["count"] == 100

    def test_a_constant_rate_is_kept(self) -> None:
        found = level(Script(delays_s=(0.01,)), rate=200, duration_s=0.5)
        assert found.statistics.requests + found.generator.unsent == 100
        assert found.generator.unsent < 10  # due in the last moment, on a busy machine
        assert found.server is not None
        assert found.server.requests == found.statistics.requests


class TestStall:
    def test_response_time_has_the_wait_that_service_time_forgets(self) -> None:
        """One connection, 100 requests/s, a stall of 0.4 s: some 40 requests were due in it, one was sent."""
        script = Script(delays_s=(0.001,), stall=(0.2, 0.6))
        found = level(script, rate=100, duration_s=1.0, connections=1)
        response, service = found.statistics.response, found.statistics.service
        assert response is not None
        assert service is not None
        assert response.max_ms > 350
        assert response.percentile(0.9).ms.value > 200
        assert service.percentile(0.9).ms.value < 50
        assert service.percentile(0.95).ms.value < 50

    def test_a_server_that_falls_behind_is_told(self) -> None:
        found = level(Script(delays_s=(0.2,)), rate=5000, duration_s=0.5)
        assert found.generator.unsent > 500
        assert any("due and never sent" in reason for reason in found.verdict.reasons)
        assert found.statistics.requests + found.generator.unsent == 2500


class TestErrors:
    def test_refusals_and_failures_are_counted_and_the_run_goes_on(self) -> None:
        found = level(Script(refuse_every=10, fail_every=3), concurrency=2, requests=90)
        assert kinds(found) == {"server error": 27, "refused": 9}
        assert {kind.message for kind in found.statistics.kinds} == {
            "HTTP 400: refused by the script",
            "HTTP 500: failed by the script",
        }
        assert not found.verdict.valid

    def test_silence_is_a_timeout(self) -> None:
        found = level(Script(silent_every=25), concurrency=2, requests=100, timeout_s=0.15)
        assert kinds(found) == {"timeout": 4}
        assert found.statistics.response is not None
        assert found.statistics.response.count == 96

    @pytest.mark.parametrize("load", [{"concurrency": 4}, {"rate": 150}])
    def test_an_answer_after_the_timeout_is_none(self, load: dict[str, Any]) -> None:
        found = level(Script(delays_s=(0.01, 0.055, 0.066, 0.08)), requests=100, timeout_s=0.06, **load)
        assert kinds(found)["timeout"] > 5
        assert found.statistics.service is not None
        assert 50 < found.statistics.service.max_ms <= 60

    def test_a_timeout_is_noticed_when_it_is_over(self) -> None:
        with fake_server(Script(silent_every=1)) as address, Workers(setup(address, 5_000_000), 1) as running:
            phase = running.run([Phase(ClosedLoop(1, 20), 0)])
        assert phase.store.status.tolist() == [Outcome.TIMEOUT] * 20
        # The shortest, as a busy machine may be late; looking 20 times a second would find each after 40 ms.
        assert 5_000_000 < phase.store.service.min() < 25_000_000

    def test_garbage(self) -> None:
        found = level(Script(garbage_every=20), concurrency=1, requests=100)
        assert kinds(found) == {"answer not understood": 5}

    def test_every_answer_that_is_no_inference_is_an_error(self) -> None:
        found = level(Script(wrong_every=7), concurrency=2, requests=210)
        assert kinds(found) == {"answer not understood": 30}
        assert found.statistics.error_windows
        assert not found.verdict.valid

    def test_a_server_that_comes_back_leaves_a_window_of_errors(self) -> None:
        found = level(Script(delays_s=(0.002,), dead=(0.4, 0.8)), concurrency=2, duration_s=1.4)
        (window,) = found.statistics.error_windows
        assert window.start_s == pytest.approx(0.4, abs=0.1)
        assert window.end_s == pytest.approx(0.8, abs=0.1)
        assert kinds(found)["connection broke"] >= 1
        assert kinds(found)["no connection"] >= 10
        assert found.statistics.timeline[-5].requests > 0

    def test_a_server_that_stays_away(self) -> None:
        found = level(Script(delays_s=(0.002,), dies_at=0.3), concurrency=2, duration_s=0.6)
        assert found.server is None
        assert found.notes
        assert kinds(found)["no connection"] > 5
        assert found.statistics.requests > found.statistics.errors > 0

    def test_an_open_loop_meets_a_dead_server_at_its_rate(self) -> None:
        found = level(Script(delays_s=(0.002,), dead=(0.2, 0.6)), rate=200, duration_s=1)
        assert found.statistics.requests + found.generator.unsent == 200
        assert 60 <= found.statistics.errors <= 100


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "told"),
        [
            (b'{"error":"[ONNXRuntimeError] : 2 : \\"x\\"\\nGot: 3"}', '[ONNXRuntimeError] : 2 : "x" Got: 3'),
            (b"<html>\nBad Gateway", "<html> Bad Gateway"),
            (json.dumps({"error": "x" * 1100}).encode(), "x" * 997 + "..."),
            (b"[1]", "[1]"),
        ],
    )
    def test_the_servers_words_are_told(self, body: bytes, told: str) -> None:
        channel, call = Http1Channel({}), Call(0)
        channel.calls.append(call)
        channel.begin(call, memoryview(b"POST"))
        call.sent = 1
        data = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        ((_, answer),) = channel.take(bytearray(data), len(data), 2)
        assert answer.message == f"HTTP 400: {told}"


class TestConnections:
    @pytest.mark.parametrize("script", [Script(chunked=True), Script(close_after=True), Script(pieces=5)])
    def test_ways_of_answering(self, script: Script) -> None:
        found = level(script, concurrency=3, requests=60)
        assert found.statistics.errors == 0
        assert found.statistics.requests == 60
        assert found.generator.wrong_answers == 0

    def test_workers_without_a_connection_leave_the_schedule_to_the_others(self) -> None:
        with fake_server() as url:
            done = command(
                "bench", "fake", "-u", url, "--rate", 100, "--requests", 60, "--warmup", 0, "--workers", 3,
                "--connections", 2, "--no-floor", "--quiet", "--json",
            )  # fmt: skip
        (found,) = json.loads(done.stdout)["levels"]
        assert (found["requests"], found["errors"], found["generator"]["unsent"]) == (60, 0, 0)

    def test_several_workers_divide_the_load(self) -> None:
        found = level(Script(delays_s=(0.002,)), concurrency=5, requests=101, workers=3)
        assert found.statistics.requests == 101
        assert (found.generator.workers, found.generator.connections) == (3, 5)

    def test_large_requests_arrive_whole(self) -> None:
        config = {"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [500_000]}]}
        found = level(Script(config=config), concurrency=2, requests=30)
        assert (found.statistics.requests, found.statistics.errors) == (30, 0)


class TestSamples:
    def test_large_ones_are_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "MAX_SAMPLE_BYTES", 1)
        with fake_server() as address, Workers(setup(address), 1) as running:
            phase = running.run(Load(concurrency=1).phases(1, Window(0.4), 0))
        assert len(phase.store) > len(phase.samples) == 1

    def test_a_head_of_its_own_makes_none(self) -> None:
        channel, call = Http1Channel({}), Call(0)
        channel.calls.append(call)
        for number in range(2):
            channel.begin(call, memoryview(b"POST"))
            call.sent = 1
            data = b"HTTP/1.1 200 OK\r\nX-Request-Id: %d\r\nContent-Length: 14\r\n\r\n" % number + b'{"outputs":[]}'
            ((_, answer),) = channel.take(bytearray(data), len(data), 2)
            assert (answer.outcome, call.keep) == (Outcome.OK, False)


class KillWorkers(Observer):
    """Kills all worker processes when the first requests were answered."""

    def records(self, records: Records) -> None:  # noqa: ARG002
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if "client.load.engine" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)


def test_what_was_measured_before_a_worker_died_is_kept() -> None:
    plan = make_plan(concurrency=[2, 4], duration_s=60, warmup_s=0, workers=1, floor=False)
    with fake_server() as url, open_client(url, plan.delivery, plan.timeout_s) as client, Interrupts() as interrupts:
        result = carry_out(client, None, "", plan, KillWorkers(), interrupts)
    (found,) = result.levels
    assert found.statistics.requests > 0
    assert found.verdict.reasons[0] == "1 of 1 worker processes died"


class TestMisuse:
    def test_no_server(self) -> None:
        with pytest.raises(ConnectionFailed):
            run_load("x", url="127.0.0.1:9")

    def test_a_batch_that_is_too_large(self) -> None:
        with fake_server() as url, pytest.raises(UsageError, match="batches up to 8"):
            run_load(url=url, batch=9)

    def test_a_free_axis_needs_a_shape(self) -> None:
        script = Script(config={"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}]})
        with fake_server(script) as url, pytest.raises(ClientError) as caught:
            run_load(url=url)
        assert caught.value.hint is not None
        assert re.search("--shape x=", caught.value.hint)
