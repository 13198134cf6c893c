from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from client.load.server_statistics import (
    Batching,
    BatchSize,
    Sent,
    ServerWindow,
    StartedAnewError,
    difference,
    explain_batching,
)

STAGES = ("compute_input", "compute_infer", "compute_output")


def statistics(requests: int, sizes: dict[int, int], infer_ns: int = 300) -> dict[str, Any]:
    """Triton's answer after so many requests in executions of these sizes."""

    def spent(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": count * ns}

    times = {"success": spent(requests, 1000), "fail": spent(2, 5), "queue": spent(requests, 400)}
    times |= {"cache_hit": spent(0, 0)} | {stage: spent(requests, 100) for stage in STAGES}
    batches = [
        {"batch_size": size, **{stage: spent(count, infer_ns) for stage in STAGES}} for size, count in sizes.items()
    ]
    model = {
        "inference_count": sum(size * count for size, count in sizes.items()),
        "execution_count": sum(sizes.values()),
        "inference_stats": times,
        "batch_stats": batches,
    }
    return {"model_stats": [model]}


def test_the_window_is_the_difference() -> None:
    window = difference(statistics(10, {1: 10}), statistics(110, {1: 30, 4: 20}))
    assert window is not None
    assert (window.requests, window.failures, window.inferences, window.executions) == (100, 0, 100, 40)
    assert window.batches == (BatchSize(1, 20, 0.0003), BatchSize(4, 20, 0.0003))
    assert window.mean_batch == 2.5
    assert window.queue_ms == pytest.approx(0.0004)
    assert window.total_ms == pytest.approx(0.001)
    assert window.busy_s == pytest.approx(40 * 3 * 300e-9)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, statistics(1, {1: 1})),
        ({"model_stats": []}, {"model_stats": []}),
        (statistics(1, {1: 1}), {"model_stats": [{"inference_stats": {}}]}),
    ],
)
def test_nonsense_is_no_window(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert difference(before, after) is None


@pytest.mark.parametrize(
    "after",
    [
        statistics(5, {1: 5}),
        statistics(90, {1: 5, 8: 20}),  # a longer second life, with fewer executions of one size
        statistics(90, {8: 20}),  # or none
        statistics(90, {1: 40}, infer_ns=10),
    ],
)
def test_what_goes_backwards_is_a_restart(after: dict[str, Any]) -> None:
    with pytest.raises(StartedAnewError):
        difference(statistics(10, {1: 10}), after)


def test_reads_a_configuration() -> None:
    config = {
        "max_batch_size": 16,
        "dynamic_batching": {"max_queue_delay_microseconds": 300},
        "instance_group": [{"count": 2, "gpus": [0, 1]}, {"count": 1, "gpus": []}],
    }
    assert Batching.of(config) == Batching(16, dynamic=True, delay_us=300, instances=5)
    assert Batching.of({}) == Batching(0, dynamic=False, delay_us=0, instances=1)
    assert Batching.of({"max_batch_size": 4, "dynamic_batching": {}}).dynamic


def window(
    sizes: dict[int, int], *, total_ms: float = 1.0, busy_s: float = 1.0, requests: int | None = None
) -> ServerWindow:
    """A window with so many executions of these sizes."""
    items, executions = sum(size * count for size, count in sizes.items()), sum(sizes.values())
    batches = tuple(BatchSize(size, count, 1.0) for size, count in sizes.items())
    return ServerWindow(
        items if requests is None else requests, 0, items, executions, 0, total_ms, 0.1, 0.1, 0.5, 0.1, busy_s, batches
    )


DYNAMIC = Batching(8, dynamic=True, delay_us=0, instances=1)
SENT = Sent(batch=1, in_flight=512, seconds=10.0)


@pytest.mark.parametrize(
    ("measured", "config", "sent", "sentence"),
    [
        (
            window({8: 1000}),
            DYNAMIC,
            SENT,
            "works: 8,000 requests ran in 1,000 executions, 100% of the requests with others, 8.00 items at once",
        ),
        (window({8: 1000}, busy_s=9.9), DYNAMIC, SENT, "the one instance was busy 99% of the time"),
        # Most of the executions are of one item, and most of the requests in the others.
        (window({1: 500, 2: 125, 3: 100}), DYNAMIC, SENT, "works: .* 52% of the requests with others"),
        (window({1: 9100, 2: 450}), DYNAMIC, SENT, "joined 9% of the requests: requests come 1,000 us apart"),
        (window({1: 9990, 2: 5}), DYNAMIC, SENT, "joined less than 1% of the requests"),
        (window({2: 500, 4: 500}), DYNAMIC, replace(SENT, batch=2), "works: .* 67% of the requests with others"),
        (window({1: 1000}), replace(DYNAMIC, max_batch_size=0), SENT, "no batch axis"),
        (window({1: 1000}), replace(DYNAMIC, dynamic=False), SENT, "has no dynamic_batching"),
        (window({8: 1000}), DYNAMIC, replace(SENT, batch=8), "two requests of 8 don't fit in a batch of 8"),
        (window({}), DYNAMIC, SENT, "was not executed"),
        (replace(window({1: 1000}), inferences=0), DYNAMIC, SENT, "no request succeeded"),
    ],
)
def test_says_whether_batching_works(measured: ServerWindow, config: Batching, sent: Sent, sentence: str) -> None:
    assert re.search(sentence, explain_batching(measured, config, sent))


@pytest.mark.parametrize(
    ("measured", "config", "sent", "sentence"),
    [
        (window({1: 1000}), DYNAMIC, replace(SENT, in_flight=1), "the load is too low, with one request in flight"),
        (window({1: 1}), DYNAMIC, SENT, "the load is too low, with one request in flight"),
        (
            window({1: 2000}, busy_s=1.4),
            replace(DYNAMIC, delay_us=100),
            SENT,
            "5,000 us apart .*, wait at most 100 us for others and run 700 us; .* queue delay of more than 5,000 us",
        ),
        # A longer delay keeps requests in the server, which is no higher load.
        (
            window({1: 2000}, busy_s=1.4, total_ms=9),
            replace(DYNAMIC, delay_us=4900),
            SENT,
            "at most 4,900 us for others",
        ),
        (
            window({1: 2000}, busy_s=1.4),
            replace(DYNAMIC, delay_us=6000),
            SENT,
            "up to 6,000 us .* still were taken one by",
        ),
        (
            window({1: 10_000}, total_ms=4, busy_s=38),
            replace(DYNAMIC, instances=4),
            replace(SENT, in_flight=4),
            "4 instances take 4.0 at once, one each; they meet with fewer instances or a queue delay",
        ),
        (
            window({1: 10_000}, total_ms=2, busy_s=19),
            replace(DYNAMIC, instances=4),
            replace(SENT, in_flight=2),
            "take 2.0 at once, one each; they meet with a queue delay",  # one instance runs 2 in turns
        ),
        (window({1: 2000}, busy_s=1.4), replace(DYNAMIC, instances=4), SENT, "5,000 us apart .* under a higher load"),
        (
            window({1: 10_000}, total_ms=9, busy_s=9.8),
            DYNAMIC,
            SENT,
            "busy 98% .* still requests were taken one by one",
        ),
        (
            window({1: 10_000}, total_ms=2, busy_s=9.8),
            DYNAMIC,
            SENT,
            "joined nothing: of 2.0 requests in the server 1 ran, and the next one waited alone",
        ),
    ],
)
def test_says_why_requests_ran_alone(measured: ServerWindow, config: Batching, sent: Sent, sentence: str) -> None:
    assert re.search(sentence, explain_batching(measured, config, sent))


def test_what_includes_requests_of_others_is_not_told_as_of_the_run() -> None:
    sent = replace(SENT, others=1500)
    told = explain_batching(window({4: 500}), DYNAMIC, sent)
    assert "can't be told: 1,500 of the 2,000 requests in the server's counters are somebody else's" in told
    assert told.endswith("All together ran in executions of 4.00 items, at most 8.")
    # The configuration holds for everybody.
    assert "no dynamic_batching" in explain_batching(window({1: 500}), replace(DYNAMIC, dynamic=False), sent)
