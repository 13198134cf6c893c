"""Arguments of ``run_load`` and of the command line, which go through the same checks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from client import Client, InputError, UsageError, run_load
from client.load.plan import Plan, make_plan
from client.load.schedule import Load, Window
from tests.client.command import command
from tests.client.load.fake_server import MODEL, fake_server

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rate": -4}, "--rate -4 can't be"),
    ({"rate": 0}, "--rate 0 can't be"),
    ({"rate": [100, math.nan]}, "--rate nan can't be"),
    ({"rate": math.inf}, "--rate inf can't be"),
    ({"rate": 2e6}, "--rate 2000000.0 can't be"),
    ({"rate": "100"}, "--rate '100' can't be"),
    ({"concurrency": -1}, "--concurrency -1 can't be"),
    ({"concurrency": [0]}, "--concurrency 0 can't be"),
    ({"concurrency": 1.5}, "--concurrency 1.5 can't be"),
    ({"concurrency": True}, "--concurrency True can't be"),
    ({"concurrency": 20_000}, "--concurrency 20000 can't be"),
    ({"concurrency": "8"}, "--concurrency '8' can't be"),
    ({"rate": 5, "concurrency": 2}, "--concurrency and --rate can't go together"),
    ({"trace": [0.1], "rate": 2}, "--rate and --trace can't go together"),
    ({"trace": [0.1], "duration_s": 2}, "--trace ends with its last request"),
    ({"trace": []}, "--trace has no arrival times"),
    ({"trace": [1.0, 0.5]}, "0.5 is no time"),
    ({"trace": [math.nan]}, "nan is no time"),
    ({"trace": ["1"]}, "'1' is no time"),
    ({"poisson": True}, "--poisson needs a rate"),
    ({"poisson": True, "concurrency": 2}, "--poisson needs a rate"),
    ({"seed": -1}, "--seed -1 can't be"),
    ({"seed": 0.5}, "--seed 0.5 can't be"),
    ({"duration_s": -1}, "--duration -1 can't be"),
    ({"duration_s": 0}, "--duration 0 can't be"),
    ({"requests": 0}, "--requests 0 can't be"),
    ({"requests": -5}, "--requests -5 can't be"),
    ({"warmup_s": -1}, "--warmup -1 can't be"),
    ({"warmup_s": math.nan}, "--warmup nan can't be"),
    ({"warmup_requests": -1}, "--warmup -1 can't be"),
    ({"batch": 0}, "--batch 0 can't be"),
    ({"workers": 0}, "--workers 0 can't be"),
    ({"workers": 257}, "--workers 257 can't be"),
    ({"connections": 0}, "--connections 0 can't be"),
    ({"timeout_s": 0}, "--timeout 0 can't be"),
    ({"timeout_s": math.nan}, "--timeout nan can't be"),
    ({"percentile": 98}, "--percentile 98 is not measured"),
    ({"percentile": 0.99}, "--percentile 0.99 is not measured"),
    ({"percentile": math.nan}, "--percentile nan can't be"),
    ({"fail_if": "p99"}, "is no condition"),
    ({"scenario": "mlperf"}, "no scenario 'mlperf'"),
    ({"scenario": "offline", "poisson": True}, "has its own way to send"),
    ({"scenario": "server", "rate": 5, "target_latency_ms": -1}, "--target-latency -1 can't be"),
    ({"target_latency_ms": 5}, "--target-latency is for --scenario server"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=str)
def test_what_cannot_be_is_refused_before_anything_is_sent(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_load(url="127.0.0.1:9", **arguments)  # nobody is there: asking it would be another error
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("arguments", [("--rate", "1e9"), ("--concurrency", "20000")])
def test_the_command_line_has_the_same_checks(arguments: tuple[str, str]) -> None:
    done = command("bench", MODEL, "--url", "127.0.0.1:9", *arguments)
    assert done.returncode == 2
    assert f"{arguments[0]} " in done.stderr
    assert " can't be\n" in done.stderr


def test_what_is_not_said() -> None:
    assert make_plan() == Plan(loads=(Load(concurrency=1),))
    assert make_plan(scenario="single-stream").window == Window(600.0)
    assert make_plan(scenario="single-stream").percentile == 0.9


def test_the_warm_up_is_a_time_or_a_number() -> None:
    assert make_plan(warmup_s=2).warmup == Window(2.0)
    assert make_plan(warmup_requests=100).warmup == Window(requests=100)
    assert make_plan(warmup_s=0).warmup is make_plan(warmup_requests=0).warmup is None


def test_what_is_claimed() -> None:
    assert make_plan(percentile=99.9).percentile == 0.999


def test_a_trace_is_a_file_or_times(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("0\n0.25\n")
    loads = (Load(trace_ns=(0, 250_000_000)),)
    assert make_plan(trace=file).loads == make_plan(trace=str(file)).loads == make_plan(trace=[0, 0.25]).loads == loads
    with pytest.raises(InputError, match="No such file"):
        make_plan(trace=tmp_path / "none")


def test_a_run_does_all_that_the_command_line_does() -> None:
    with fake_server() as url:
        result = run_load(
            url=url, trace=[0.0, 0.01, 0.02], warmup_requests=2, connections=7, percentile=50, floor=False
        )
        with Client(url) as asking:
            assert asking.statistics(MODEL, "1").requests == 2 + 3
        done = command(
            "bench", "-u", url, "--rate", 100, "--requests", 3, "--warmup", 2, "--connections", 7,
            "--percentile", 50, "--no-floor", "--quiet", "--json",
        )  # fmt: skip
    settings = json.loads(done.stdout)["settings"]
    assert result.levels[0].statistics.requests == 3
    ours = result.to_json()["settings"]
    for name in ("warmup", "max_connections", "percentile"):
        assert ours[name] == settings[name]
    assert (ours["warmup"], ours["max_connections"], ours["percentile"]) == ("2 requests", 7, 0.5)
