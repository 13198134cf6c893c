"""Statistics of made-up records whose truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from client.load.records import WAITED, Outcome, Records
from client.load.statistics import Statistics, summarise
from client.load.workers import Store

SECOND = 1_000_000_000
START = 5 * SECOND


def store_of(
    done: npt.ArrayLike, response: npt.ArrayLike, service: npt.ArrayLike | None = None, status: npt.ArrayLike = 0
) -> Store:
    columns = [np.asarray(column, np.int64) for column in (done, response, response if service is None else service)]
    marks = np.broadcast_to(np.asarray(status, np.uint8), columns[0].shape)
    store = Store()
    for part in np.array_split(np.arange(len(columns[0])), 3):  # workers tell of them bit by bit
        done_ns, response_ns, service_ns = (column[part].tobytes() for column in columns)
        store.add(Records(done_ns, response_ns, service_ns, marks[part].tobytes()))
    return store


def summary(store: Store, seconds: float = 10, *, open_loop: bool = False) -> Statistics:
    messages = {Outcome.TIMEOUT: "no answer within 1 s"}
    return summarise(store, START, int(seconds * SECOND), messages, open_loop=open_loop)


def evenly(count: int, seconds: float = 10) -> npt.NDArray[np.int64]:
    return START + np.linspace(1, seconds * SECOND, count).astype(np.int64)


def test_percentiles_are_exact_nearest_ranks() -> None:
    response = np.random.default_rng(0).permutation(np.arange(1, 10_001)) * 1000
    latency = summary(store_of(evenly(10_000), response, response - 500)).response
    assert latency is not None
    found = {entry.name: entry.ms.value for entry in latency.percentiles}
    assert found == {"p50": 5.0, "p90": 9.0, "p95": 9.5, "p99": 9.9, "p99.9": 9.99}
    assert (latency.min_ms, latency.max_ms, latency.count) == (0.001, 10.0, 10_000)
    assert latency.mean_ms.value == pytest.approx(5.0005)
    assert latency.stddev_ms == pytest.approx(np.std(response, ddof=1) / 1e6)


def test_response_and_service_are_kept_apart() -> None:
    statistics = summary(store_of(evenly(1000), np.full(1000, 7_000_000), np.full(1000, 2_000_000)))
    assert statistics.response is not None
    assert statistics.service is not None
    assert statistics.response.percentile(0.5).ms.value == 7
    assert statistics.service.percentile(0.5).ms.value == 2


@pytest.mark.parametrize(("count", "supported"), [(458, False), (459, True)])
def test_p99_takes_459_requests(count: int, supported: bool) -> None:
    latency = summary(store_of(evenly(count), np.arange(count))).response
    assert latency is not None
    p99 = latency.percentile(0.99)
    assert (p99.supported, p99.requests_needed) == (supported, 459)


def test_confidence_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95% intervals of 40 runs of exponential times: the truth lies in all but a few of them."""
    generator = np.random.default_rng(2)
    misses = {"p50": 0, "p90": 0, "mean": 0}
    for _ in range(40):
        latency = summary(store_of(evenly(2000), generator.exponential(1e6, 2000))).response
        assert latency is not None
        checks = {"p50": (latency.percentile(0.5).ms, np.log(2)), "p90": (latency.percentile(0.9).ms, np.log(10))}
        for name, (estimate, truth) in {**checks, "mean": (latency.mean_ms, 1.0)}.items():
            assert estimate.low is not None
            assert estimate.high is not None
            misses[name] += not estimate.low <= truth <= estimate.high
    # 5% of 40 are 2, with a deviation of 1.4; a bootstrap of 20 blocks is a little narrow.
    assert max(misses.values()) <= 9, misses
    assert sum(misses.values()) >= 1  # or they would be too wide to tell anything


def test_throughput_counts_answers_within_the_window() -> None:
    done = np.concatenate([evenly(1000), START + 10 * SECOND + np.arange(1, 6)])
    statistics = summary(store_of(done, np.full(1005, 1000)))
    assert statistics.throughput.value == 100
    assert statistics.requests == 1005
    assert statistics.response is not None
    assert statistics.response.count == 1005
    assert sum(entry.requests for entry in statistics.timeline) == 1000


def test_the_window_ends_with_the_last_answer_without_a_duration() -> None:
    assert summary(store_of(evenly(500, 2), np.full(500, 1000)), 0).window_s == pytest.approx(2)


def test_failures_are_counted_and_not_timed() -> None:
    status = np.zeros(1000, np.uint8)
    status[100:120] = Outcome.TIMEOUT | WAITED
    status[500:505] = Outcome.REFUSED
    response = np.where(status == 0, 1_000_000, SECOND)
    statistics = summary(store_of(evenly(1000), response, status=status))
    assert statistics.response is not None
    assert (statistics.errors, statistics.response.count, statistics.response.max_ms) == (25, 975, 1.0)
    assert [(kind.kind, kind.count) for kind in statistics.kinds] == [("timeout", 20), ("refused", 5)]
    assert statistics.kinds[0].message == "no answer within 1 s"
    first, second = statistics.error_windows
    assert (first.errors, second.errors) == (20, 5)
    assert second.start_s == pytest.approx(4.0, abs=0.02)
    assert second.end_s == pytest.approx(5.04, abs=0.02)


def test_a_stall_shows_in_the_timeline_and_in_the_thirds() -> None:
    done = evenly(6000)
    response = np.where((done > START + 5 * SECOND) & (done < START + 6 * SECOND), 500_000_000, 1_000_000)
    statistics = summary(store_of(done, response))
    slow = [entry.start_s for entry in statistics.timeline if entry.p50_ms is not None and entry.p50_ms > 100]
    assert slow == pytest.approx([5, 5.1667, 5.3333, 5.5, 5.6667, 5.8333], abs=1e-3)
    assert [rate for rate, _ in statistics.thirds] == pytest.approx([600, 600, 600])


def test_lateness_is_of_requests_that_had_a_connection() -> None:
    status = np.where(np.arange(1000) < 500, 0, WAITED)
    late = np.where(status == 0, 3_000, 90_000_000)
    store = store_of(evenly(1000), 1_000_000 + late, np.full(1000, 1_000_000), status)
    lateness = summary(store, open_loop=True).lateness
    assert lateness is not None
    assert (lateness.p50_ms, lateness.p99_ms) == pytest.approx((0.003, 0.003), rel=0.001)
    assert lateness.max_ms == 0.003


def test_nothing_at_all() -> None:
    statistics = summary(Store())
    assert (statistics.requests, statistics.throughput.value, statistics.response) == (0, 0, None)
    assert statistics.throughput.low is None


def test_one_request_has_no_interval() -> None:
    latency = summary(store_of([START + 100], [50])).response
    assert latency is not None
    assert latency.mean_ms.low is None
    assert latency.stddev_ms == 0
