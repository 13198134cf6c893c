"""What of a change between two runs is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.load.comparison import LevelChange, Saved, compare, slower

STEADY = {"value": 100.0, "low": 99.9, "high": 100.1}


def saved(
    throughput: dict[str, Any] = STEADY, p90: dict[str, Any] = STEADY, concurrencies: tuple[int, ...] = (4,)
) -> Saved:
    level = {
        "throughput_requests_per_s": throughput,
        "response_time": {"mean_ms": STEADY, "percentiles": [{"name": "p90", "ms": p90, "supported": True}]},
        "reasons": [],
    }
    loads = [{"kind": "closed", "concurrency": number, "rate": None, "poisson": False} for number in concurrencies]
    levels = [{**level, "load": load} for load in loads]
    document = {"model": {"name": "m", "version": "1"}, "settings": {}, "environment": {}, "levels": levels}
    return Saved(Path("run.json"), document, "run.json")


def change(**estimates: Any) -> tuple[LevelChange, ...]:
    return compare(saved(), saved(**estimates)).levels


@pytest.mark.parametrize(
    ("metric", "estimate", "found"),
    [
        # More than 5%, and certainly more than nothing, but its interval reaches below 5%.
        ("p90", {"value": 107.0, "low": 102.4, "high": 111.7}, None),
        ("p90", {"value": 112.0, "low": 107.0, "high": 117.0}, "p90 +12.0%, by at least 7."),
        ("p90", {"value": 88.0, "low": 83.0, "high": 93.0}, None),
        ("p90", {"value": 200.0, "low": None, "high": None}, None),
        ("throughput", {"value": 93.0, "low": 89.0, "high": 97.0}, None),
        ("throughput", {"value": 88.0, "low": 86.0, "high": 90.0}, "throughput -12.0%, by at least 10.0%"),
        ("throughput", {"value": 120.0, "low": 119.0, "high": 121.0}, None),
    ],
)
def test_slower_is_what_lies_beyond_the_limit_with_all_of_its_interval(
    metric: str, estimate: dict[str, Any], found: str | None
) -> None:
    texts = slower(change(**{metric: estimate}), 0.05)
    assert len(texts) == (found is not None)
    assert not found or f"concurrency 4: {found}" in texts[0]


def test_a_limit_of_nothing_takes_what_is_no_noise() -> None:
    assert slower(change(p90={"value": 107.0, "low": 102.4, "high": 111.7}), 0.0)
    assert not slower(change(p90={"value": 102.0, "low": 99.0, "high": 105.0}), 0.0)


def test_each_load_has_its_own_and_what_only_one_run_has_is_told() -> None:
    found = compare(saved(concurrencies=(4, 1, 4, 8)), saved(concurrencies=(4, 4, 1)))
    assert [level.load for level in found.levels] == ["concurrency 4", "concurrency 1", "concurrency 4 (2)"]
    assert found.differences == ("only run.json has concurrency 8",)
