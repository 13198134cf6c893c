"""The server's account beside the run's own: what doesn't fit is left out, and said to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import run_load
from client.load.account import Account, reconcile
from client.load.records import Outcome, PhaseEnd, Records
from client.load.result import Level
from client.load.statistics import summarise
from client.load.workers import PhaseResult
from tests.client.command import command
from tests.client.load.fake_server import MODEL, Script, fake_server
from tests.client.load.test_server_statistics import statistics

MS = 1_000_000


def level(script: Script, **options: Any) -> Level:
    with fake_server(script) as url:
        (found,) = run_load(url=url, floor=False, **{"warmup_s": 0, **options}).levels
    return found


def account(
    *,
    send_ms: float = 0.1,
    service_ms: float = 1.0,
    counted: int = 100,
    abandoned: int = 0,
    outcome: int = Outcome.OK,
    lost: int = 0,
) -> Account:
    """Of 100 requests, of which the last failed with ``outcome``; the server was with each for 0.0007 ms."""
    done = np.arange(1, 101) * 10 * MS
    service = np.full(100, round(service_ms * MS), np.int64)
    status = np.where(np.arange(100) == 99, outcome, 0).astype(np.uint8)
    phase = PhaseResult(ends=[PhaseEnd(round(send_ms * MS * 100), 0, 0, 1, 1, 0)], lost_workers=lost)
    phase.store.add(Records(done.tobytes(), service.tobytes(), service.tobytes(), status.tobytes()))
    found = summarise(phase.store, 0, 0, {}, open_loop=False)
    return reconcile(statistics(10, {1: 10}), statistics(10 + counted, {1: 10 + counted}), found, phase, abandoned)


class TestStartedAnew:
    def test_a_second_life_that_is_longer_than_the_warm_up(self, tmp_path: Path) -> None:
        page, file = tmp_path / "a.html", tmp_path / "a.json"
        with fake_server(Script(delays_s=(0.002,), dead=(0.5, 0.7))) as url:
            done = command(
                "bench", MODEL, "-u", url, "--concurrency", 2, "--warmup", "100ms", "--duration", "1.5s",
                "--no-floor", "--quiet", "--html", page, "--output", file,
            )  # fmt: skip
        (found,) = json.loads(file.read_text())["levels"]
        assert found["requests"] > found["errors"] > 0
        assert (found["server"], found["server_process"], found["dynamic_batching"]) == (None, None, None)
        assert found["mean_response_split"] == []
        for text in (done.stdout, page.read_text(), found["notes"][0]):
            assert "the server was started anew during the run" in text
        assert "somebody else" not in done.stdout
        assert "batches that the server made" not in done.stdout
        assert "CPU of" not in done.stdout

    def test_counters_that_go_backwards(self) -> None:
        found = level(Script(delays_s=(0.002,), dead=(0.6, 0.7)), concurrency=2, duration_s=0.4, warmup_s=0.5)
        assert found.server is None
        assert "started anew during the run" in found.notes[0]


class TestFailures:
    def test_refusals_that_the_server_counts_as_answered(self) -> None:
        found = level(Script(refuse_every=10, refused_succeed=True), concurrency=2, requests=90)
        assert found.server is not None
        assert found.server.requests == 90
        assert found.split == ()
        assert len(found.notes) == 1
        assert "executed 9 of the requests that failed for this run" in found.notes[0]
        assert "where the time goes can't be told" in found.notes[0]

    def test_refusals_that_it_counts_as_failures(self) -> None:
        found = level(Script(delays_s=(0.002,), refuse_every=10), concurrency=2, requests=90)
        assert found.notes == ()
        assert found.split

    def test_timeouts_that_the_server_answered(self) -> None:
        found = level(Script(delays_s=(0.002,) * 39 + (0.4,)), concurrency=2, requests=40, timeout_s=0.15)
        assert found.statistics.errors == 1
        assert "executed 1 of the requests that timed out for this run" in found.notes[0]

    def test_of_a_timeout_in_the_warm_up_the_server_may_count_the_answer(self) -> None:
        assert "somebody else uses the model" in account(counted=103).notes[0]
        assert (account().others, account(counted=103).others) == (0, 3)
        assert "executed 3 of the requests that timed out" in account(counted=103, abandoned=3).notes[0]

    def test_what_a_lost_worker_sent_need_not_be_somebody_elses(self) -> None:
        found = account(counted=103, lost=1)
        assert found.others == 0
        assert "it ended before it had heard of all of them, or somebody else uses the model" in found.notes[0]

    def test_requests_that_were_never_sent_are_somebody_elses(self) -> None:
        assert "somebody else uses the model" in account(outcome=Outcome.NO_CONNECTION).notes[0]


class TestSplit:
    def test_parts(self) -> None:
        parts = {part.name: part.ms for part in account().split}
        assert parts["client send"] == pytest.approx(0.1)
        assert parts["network and server front end"] == pytest.approx(0.899)
        assert sum(parts.values()) == pytest.approx(1.0)

    def test_a_send_that_lasts_until_the_server_is_done_is_no_free_network(self) -> None:
        parts = {part.name: part.ms for part in account(send_ms=5.0).split}
        assert "network and server front end" not in parts
        assert parts["client send, network and server front end"] == pytest.approx(0.999, abs=0.001)
        assert sum(parts.values()) == pytest.approx(1.0)

    def test_a_server_that_claims_more_than_there_was(self) -> None:
        found = account(send_ms=0.0, service_ms=0.0001)
        assert (found.split, len(found.notes)) == ((), 1)
        assert "where the time goes can't be told" in found.notes[0]


def test_no_statistics() -> None:
    found = summarise(PhaseResult().store, 0, 1, {}, open_loop=False)
    assert "no statistics of the whole window" in reconcile(None, {}, found, PhaseResult()).notes[0]


def test_busy_is_of_the_time_until_the_last_answer() -> None:
    """The fake says 0.23 ms an execution; 150 answers at 1 s to a window of 10 ms would be 345%."""
    found = level(
        Script(delays_s=(1.0,), config={"instance_group": [{"count": 1}]}, batches=(2,)),
        concurrency=300,
        duration_s=0.01,
    )
    assert found.batching is not None
    assert found.server is not None
    assert found.server.busy_s / found.statistics.window_s > 1
    assert "busy" not in found.batching
