from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from client import InputError, UsageError
from client.load.records import ClosedLoop, DueTimes, OpenLoop
from client.load.schedule import (
    Load,
    Window,
    parse_concurrencies,
    parse_duration,
    parse_rates,
    read_trace,
    split,
)


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("4", [4]),
        ("1,2,4", [1, 2, 4]),
        ("1:4", [1, 2, 3, 4]),
        ("1:64:x2", [1, 2, 4, 8, 16, 32, 64]),
        ("1:60:x2", [1, 2, 4, 8, 16, 32]),
        ("8:24:8", [8, 16, 24]),
        ("1,8:16:8", [1, 8, 16]),
        ("5:5", [5]),
        ("2:20:x1.5", [2, 3, 4, 6, 9, 14]),
    ],
)
def test_levels(text: str, levels: list[int]) -> None:
    assert parse_concurrencies(text) == levels


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "a", "4:1", "1:8:0", "1:8:x1", "1:8:x", "1:2:3:4", "1,,2", "1:8:-1"]
)
def test_levels_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_concurrencies(text)


def test_rates() -> None:
    assert parse_rates("0.5") == [0.5]
    assert parse_rates("100:300:100") == [100, 200, 300]
    for text in ("nan", "inf", "0"):
        with pytest.raises(UsageError):
            parse_rates(text)


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("10s", 10), ("500ms", 0.5), ("2m", 120), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--duration") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "10x", "nan", "1 2", "1e99"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--duration"):
        parse_duration(text, "--duration")


def test_shares_add_up() -> None:
    phases = Load(concurrency=10).phases(4, Window(1.0, 1001), seed=0)
    loops = [phase.loop for phase in phases]
    assert all(isinstance(loop, ClosedLoop) for loop in loops)
    assert [loop.in_flight for loop in loops] == split(10, 4) == [3, 3, 2, 2]
    assert [loop.requests for loop in loops] == [300, 300, 200, 201]  # as many a connection


def test_no_requests_go_to_a_worker_without_a_connection() -> None:
    loops = [phase.loop for phase in Load(concurrency=1).phases(3, Window(requests=200), seed=0)]
    assert [(loop.in_flight, loop.requests) for loop in loops] == [(1, 200), (0, 0), (0, 0)]


@pytest.mark.parametrize("poisson", [False, True])
def test_workers_together_send_the_whole_schedule(poisson: bool) -> None:
    loops = [phase.loop for phase in Load(rate=1000, poisson=poisson).phases(3, Window(1.0), seed=7)]
    shares = [
        list(itertools.islice(loop.due, loop.first, 3000, loop.stride)) for loop in loops if isinstance(loop, OpenLoop)
    ]
    whole = list(itertools.islice(DueTimes(1000, poisson, 7), 3000))
    assert sorted(itertools.chain(*shares)) == whole


def test_a_constant_rate_does_not_drift() -> None:
    times = list(itertools.islice(DueTimes(3.0), 30_001))
    assert times[0] == 0
    assert times[30_000] == 10_000 * 10**9


def test_a_poisson_process_has_exponential_gaps() -> None:
    gaps = np.diff(list(itertools.islice(DueTimes(1000, poisson=True, seed=3), 100_000))) / 1e6
    assert gaps.mean() == pytest.approx(1.0, rel=0.02)
    assert gaps.std() == pytest.approx(1.0, rel=0.02)  # the deviation of an exponential is its mean
    assert np.mean(gaps > 2) == pytest.approx(np.exp(-2), rel=0.05)


def test_a_seed_gives_the_same_schedule() -> None:
    first, again, other = (list(itertools.islice(DueTimes(10, poisson=True, seed=s), 50)) for s in (1, 1, 2))
    assert first == again != other


def test_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("# arrivals\n0\n0.5  # the second\n\n0.5\n1.25\n")
    load = read_trace(file)
    assert load.trace_ns == (0, 500_000_000, 500_000_000, 1_250_000_000)
    assert load.open_loop
    assert str(load) == "trace of 4 requests"


@pytest.mark.parametrize(
    ("text", "problem"), [("1\n0.5\n", "line 2"), ("x\n", "line 1"), ("-1\n", "line 1"), ("# none\n", "no arrival")]
)
def test_a_trace_that_is_none(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(InputError, match=problem):
        read_trace(file)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "none")
