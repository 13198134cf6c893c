from __future__ import annotations

from typing import Any

import pytest

from client.load.server_statistics import (
    Batching,
    BatchSize,
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


def window(requests: int, executions: int, *, total_ms: float = 1.0, busy_s: float = 1.0) -> ServerWindow:
    """A window of 10 s."""
    size, more = divmod(requests, executions) if executions else (0, 0)
    sizes: tuple[BatchSize, ...] = (BatchSize(size, executions - more, 1.0),) if executions else ()
    sizes += (BatchSize(size + 1, more, 1.0),) if more else ()
    return ServerWindow(requests, 0, requests, executions, 0, total_ms, 0.1, 0.1, 0.5, 0.1, busy_s, sizes)


DYNAMIC = Batching(8, dynamic=True, delay_us=0, instances=1)


@pytest.mark.parametrize(
    ("measured", "config", "batch", "sentence"),
    [
        (window(8000, 1000), DYNAMIC, 1, "works: 8,000 requests ran in 1,000 executions, 8.00 items each of at most 8"),
        (window(8000, 1000, busy_s=9.9), DYNAMIC, 1, "the one instance was busy 99% of the time"),
        (window(1000, 1000), Batching(0, dynamic=False, delay_us=0, instances=1), 1, "no batch axis"),
        (window(1000, 1000), Batching(8, dynamic=False, delay_us=0, instances=1), 1, "has no dynamic_batching"),
        (window(8000, 1000), DYNAMIC, 8, "two requests of 8 don't fit in a batch of 8"),
        (window(1000, 1000), DYNAMIC, 1, "the load is too low, with 0.10 requests"),
        (window(10_000, 10_000, total_ms=2), DYNAMIC, 1, "a queue delay of 0 us is too short .* 1000 us apart"),
        (
            window(10_000, 10_000, total_ms=3),
            Batching(8, dynamic=True, delay_us=0, instances=4),
            1,
            "4 instances take 3.0 requests at once, one each",
        ),
        (window(10_000, 10_000, total_ms=9, busy_s=9.8), DYNAMIC, 1, "still requests were taken one by one"),
        (
            window(10_000, 9_900, total_ms=9, busy_s=9.8),
            DYNAMIC,
            1,
            "joined hardly anything: the one instance was busy",
        ),
        (
            window(10_000, 10_000, total_ms=2, busy_s=9.8),
            DYNAMIC,
            1,
            "joined nothing: of 2.0 requests in the server 1 ran, and the next one waited alone",
        ),
        (window(0, 0), DYNAMIC, 1, "was not executed"),
    ],
)
def test_says_whether_batching_works_and_why_not(
    measured: ServerWindow, config: Batching, batch: int, sentence: str
) -> None:
    import re

    assert re.search(sentence, explain_batching(measured, config, batch, 10.0))
