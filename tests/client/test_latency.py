from __future__ import annotations

import copy

import pytest

from client.errors import BadResponse
from client.latency import LatencySummary, ServerStatistics, samples_needed


def test_summary_of_a_known_sample() -> None:
    summary = LatencySummary.of([ns * 10 for ns in range(100, 0, -1)])
    assert (summary.count, summary.min_ns, summary.max_ns) == (100, 10, 1000)
    assert summary.mean_ns == 505
    assert {p.name: p.ns for p in summary.percentiles} == {"p50": 500, "p90": 900, "p95": 950, "p99": 990}


def test_summary_of_one() -> None:
    summary = LatencySummary.of([7])
    assert {p.ns for p in summary.percentiles} == {7}
    assert not any(p.supported for p in summary.percentiles)


@pytest.mark.parametrize(("quantile", "needed"), [(0.5, 7), (0.9, 44), (0.95, 90), (0.99, 459)])
def test_samples_needed_by_the_binomial_rule(quantile: float, needed: int) -> None:
    assert samples_needed(quantile) == needed
    assert 1 - quantile**needed >= 0.99 > 1 - quantile ** (needed - 1)


@pytest.mark.parametrize(("count", "supported"), [(6, 0), (7, 1), (44, 2), (90, 3), (458, 3), (459, 4)])
def test_percentiles_that_the_sample_cannot_carry_are_marked(count: int, supported: int) -> None:
    assert sum(p.supported for p in LatencySummary.of(range(count)).percentiles) == supported


STATISTICS = {
    "model_stats": [
        {
            "name": "m",
            "version": "1",
            "inference_count": 24,
            "execution_count": 4,
            "inference_stats": {
                "success": {"count": 6, "ns": 900},
                "queue": {"count": 6, "ns": 60},
                "compute_input": {"count": 6, "ns": 10},
                "compute_infer": {"count": 6, "ns": 700},
                "compute_output": {"count": 6, "ns": 20},
            },
        }
    ]
}


def test_server_statistics_of_a_window() -> None:
    after = ServerStatistics.from_server(STATISTICS)
    before = ServerStatistics(2, 8, 1, 10, 1, 100, 5)
    assert after - before == ServerStatistics(4, 16, 3, 50, 9, 600, 15)


@pytest.mark.parametrize("broken", [{}, {"model_stats": []}, {"model_stats": [{"name": "m"}]}, []])
def test_statistics_that_cannot_be_read(broken: object) -> None:
    with pytest.raises(BadResponse, match="statistics"):
        ServerStatistics.from_server(broken)  # type: ignore[arg-type]


def test_statistics_of_two_versions_are_not_taken_for_one() -> None:
    two = copy.deepcopy(STATISTICS)
    two["model_stats"] *= 2
    with pytest.raises(BadResponse):
        ServerStatistics.from_server(two)
