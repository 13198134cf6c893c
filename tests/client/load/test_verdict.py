from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client import UsageError
from client.load.records import Outcome
from client.load.statistics import Lateness, Statistics
from client.load.verdict import Generator, Threshold, judge
from tests.client.load.test_statistics import START, evenly, store_of, summary

QUIET = Generator(
    workers=1,
    connections=1,
    cpu=0.1,
    cpu_us_per_request=20,
    send_ms=0.1,
    receive_ms=0.1,
    unsent=0,
    interrupted=False,
    lost_workers=0,
    wrong_answers=0,
)


def measured(count: int = 1000, response: Any = 2_000_000, status: Any = 0) -> Statistics:
    return summary(store_of(evenly(count), np.broadcast_to(response, count), status=status))


def reasons(statistics: Statistics, **generator: Any) -> Sequence[str]:
    return judge(statistics, replace(QUIET, **generator)).reasons


def test_a_quiet_run_is_valid() -> None:
    assert judge(measured(), QUIET).valid


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cpu": 0.95}, "bottleneck"),
        ({"unsent": 12}, "12 requests were due and never sent"),
        ({"interrupted": True}, "interrupted"),
        ({"lost_workers": 1}, "1 of 1 worker processes died"),
        ({"wrong_answers": 3, "wrong_answer": "no JSON"}, "3 of the answers .* no JSON"),
    ],
)
def test_what_the_generator_did(changes: dict[str, Any], reason: str) -> None:
    (found,) = reasons(measured(), **changes)
    assert re.search(reason, found)


def test_errors_are_a_reason() -> None:
    status = np.where(np.arange(1000) == 3, Outcome.TIMEOUT, 0)
    (found,) = reasons(measured(status=status))
    assert "1 of 1,000 requests failed (0.100%), most of them: timeout" in found


def test_too_few_requests() -> None:
    (found,) = reasons(measured(100))
    assert found == "100 requests can't carry p99, which takes 459"
    assert judge(measured(100), QUIET, 0.9).valid


def test_no_answers() -> None:
    found = reasons(measured(status=int(Outcome.NO_CONNECTION)))
    assert "no request was answered" in found


def test_a_drift_is_not_stable() -> None:
    found = reasons(measured(response=np.linspace(1e6, 2e6, 1000)))
    assert ["not stable: the median response time" in text for text in found] == [True]


def test_the_throughput_of_an_open_loop_is_its_schedules() -> None:
    """A Poisson process of 100 a third leaves the 10% by chance alone."""
    done = np.sort(np.random.default_rng(0).uniform(1, 10e9, 1000)).astype(np.int64)
    done[:500] //= 2  # twice as many in the first quarter
    closed = summary(store_of(START + np.sort(done), np.broadcast_to(2_000_000, 1000)))
    assert ["not stable: the throughput" in text for text in reasons(closed)] == [True]
    assert not reasons(replace(closed, lateness=Lateness(0.1, 0.2, 0.3)))


def test_a_late_generator() -> None:
    late = replace(measured(), lateness=Lateness(0.1, 1.5, 3.0))
    assert ["the generator was late" in text for text in reasons(late)] == [True]
    assert not reasons(replace(measured(), lateness=Lateness(0.1, 0.9, 3.0)))


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("p99>20ms", False),
        ("p99>1.9ms", True),
        ("p50 >= 2000us", True),
        ("service.p99.9<1s", True),
        ("max>0.001s", True),
        ("mean>2.1ms", False),
        ("errors>0", True),
        ("errors>1%", False),
        ("errors>0.05%", True),
        ("throughput<90", False),
        ("throughput<101", True),
    ],
)
def test_thresholds(text: str, broken: bool) -> None:
    status = np.where(np.arange(1000) == 3, Outcome.REFUSED, 0)
    assert (Threshold.parse(text).broken_by(measured(status=status)) is not None) is broken


def test_a_fraction_of_errors_needs_its_unit() -> None:
    with pytest.raises(UsageError, match="may be a share or a number of errors") as caught:
        Threshold.parse("errors>0.1")
    assert caught.value.hint == "'errors>0.1%' is in percent"


def test_a_latency_that_nobody_has_breaks_its_threshold() -> None:
    statistics = measured(status=int(Outcome.REFUSED))
    assert Threshold.parse("p99>20ms").broken_by(statistics) == "p99>20ms: nothing was answered"


@pytest.mark.parametrize(
    "text", ["", "p99", "p99>20", "p99>ms", "p98>1ms", "errors>1ms", "throughput<5%", "service.errors>1", "p99>1..2ms"]
)
def test_thresholds_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-if"):
        Threshold.parse(text)
