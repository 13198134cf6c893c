"""MLPerf Inference's four scenarios: how requests are sent, what is measured, and how much of it.

Rules: "MLPerf Inference Rules", section Scenarios and appendix Early stopping, in inference_rules.adoc of
https://github.com/mlcommons/inference_policies; numbers: loadgen/mlperf.conf of https://github.com/mlcommons/inference
as of round 5.1.  A sample is an item of a batch, a query is one request.

===============  ==============================================  ==============================================
scenario         queries                                         metric, of at least 600 s
===============  ==============================================  ==============================================
single-stream    1 sample, the next when the last is answered    90th percentile of latency
multi-stream     8 samples, likewise                             99th percentile of latency
server           1 sample, a Poisson process                     highest rate with p99 within the bound
offline          any, all samples are there from the start       samples a second, of at least 24,576
===============  ==============================================  ==============================================

Early stopping is used as there: percentiles are estimates from above with 99% confidence.  This is not LoadGen: samples
are not drawn at random from a data set but sent in turn, accuracy is not looked at, and a result is none of MLPerf's.
Latencies come from the histogram, 0.05% off at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from client.errors import UsageError
from client.load.histogram import Counts, bucket_index, quantile
from client.load.result import Level, ScenarioResult
from client.load.schedule import Load

MIN_DURATION_S: Final = 600.0
MIN_OFFLINE_SAMPLES: Final = 24_576
MULTI_STREAM_SAMPLES: Final = 8
CONFIDENCE: Final = 0.99
OFFLINE_CONCURRENCY: Final = 16
"""Requests in flight of the largest batch: a supply that keeps up to so many instances busy."""


class Scenario(str, Enum):
    """The scenarios by their names on the command line."""

    SINGLE_STREAM = "single-stream"
    MULTI_STREAM = "multi-stream"
    SERVER = "server"
    OFFLINE = "offline"

    @property
    def quantile(self) -> float:
        """The quantile of latency that a run has to be able to claim; the median where none is asked for."""
        return {Scenario.SINGLE_STREAM: 0.90, Scenario.OFFLINE: 0.50}.get(self, 0.99)


@dataclass(frozen=True)
class Asked:
    """A scenario, and the bound on latency of ``server``."""

    scenario: Scenario
    target_latency_ms: float | None = None


def read_scenario(name: str) -> Scenario:
    """The scenario of that name; :class:`UsageError` lists them."""
    try:
        return Scenario(name)
    except ValueError:
        names = ", ".join(scenario.value for scenario in Scenario)
        raise UsageError(f"there is no scenario {name!r}", f"--scenario takes {names}") from None


def loads_of(asked: Asked, concurrencies: Sequence[int], rates: Sequence[float]) -> tuple[Load, ...]:
    """The loads of a scenario: those given, where it leaves a choice."""
    scenario = asked.scenario
    if scenario is Scenario.SERVER:
        if not rates or asked.target_latency_ms is None:
            raise UsageError(
                "the scenario server needs the rates to try and the bound on latency",
                "--scenario server --rate 100:1000:100 --target-latency 15ms",
            )
    elif rates or asked.target_latency_ms is not None:
        raise UsageError(
            f"--scenario {scenario.value} has its own pace: --rate and --target-latency can't go with it",
            "leave them out, or --scenario server",
        )
    if concurrencies and scenario is not Scenario.OFFLINE:
        raise UsageError(f"--scenario {scenario.value} has its own concurrency", "leave --concurrency out")
    if scenario is Scenario.SERVER:
        return tuple(Load(rate=rate, poisson=True) for rate in rates)
    if scenario is Scenario.OFFLINE:
        return tuple(Load(concurrency=level) for level in concurrencies or (OFFLINE_CONCURRENCY,))
    return (Load(concurrency=1),)


def batch_of(scenario: Scenario, batch: int | None, largest: int) -> int | None:
    """Samples of a query: the scenario's number, or for offline the one asked for, else the model's largest batch."""
    if scenario is Scenario.OFFLINE:
        return batch or largest or None
    samples = MULTI_STREAM_SAMPLES if scenario is Scenario.MULTI_STREAM else 1
    if batch not in {None, samples}:
        raise UsageError(
            f"--scenario {scenario.value} sends {samples} sample{'s' * (samples > 1)} a query, not --batch {batch}",
            "leave --batch out",
        )
    if samples > max(largest, 1):
        raise UsageError(
            f"--scenario multi-stream sends {samples} samples a query, and the model takes batches up to {largest}",
            f"serve it with max_batch_size: {samples} or more, or --scenario single-stream",
        )
    return samples if largest else None


def allowed_over(queries: int, percentile: float) -> int:
    """How many of ``queries`` may be above a latency, if it shall be claimed to bound ``percentile``.

    The most t for which t or fewer of them would be above it with a probability below 1%, were the true percentile
    just there: the binomial distribution with 1 - ``percentile``, as in LoadGen's early stopping.  -1: too few queries.
    """
    over = 1 - percentile
    count = np.arange(math.ceil(queries * over) + 1)
    # log of C(n, k) (1-p)^k p^(n-k), each term from the one before
    steps = np.log((queries - count[:-1]) / (count[:-1] + 1) * (over / percentile)) if queries else np.zeros(0)
    terms = np.cumsum(np.concatenate(([queries * math.log(percentile)], steps)))
    return int(np.searchsorted(np.logaddexp.accumulate(terms), math.log(1 - CONFIDENCE))) - 1


def fewest_queries(percentile: float) -> int:
    """Queries that early stopping takes for an estimate: 64 for p90, 662 for p99."""
    queries = 1
    while allowed_over(queries, percentile) < 1:
        queries += 1
    return queries


def judge_scenario(asked: Asked, levels: Sequence[Level], batch: int, duration_s: float) -> ScenarioResult:
    """The scenario's metric of a run; ``duration_s`` is the window asked for, 0 when only a number was."""
    scenario = asked.scenario
    short = [] if duration_s >= MIN_DURATION_S else [_short(levels, duration_s)]
    if scenario is Scenario.SERVER:
        metric, value, unit, reason = _highest_rate(levels, asked.target_latency_ms or 0.0)
    elif scenario is Scenario.OFFLINE:
        metric, value, unit, reason = _throughput(levels, batch)
        samples = max((level.statistics.requests for level in levels), default=0) * batch
        if samples < MIN_OFFLINE_SAMPLES:
            short.append(f"{samples:,} of at least {MIN_OFFLINE_SAMPLES:,} samples")
    else:
        metric, value, unit, reason = _latency(levels, scenario.quantile)
    return ScenarioResult(
        name=scenario.value,
        metric=metric,
        value=value,
        unit=unit,
        target_latency_ms=asked.target_latency_ms,
        reason=reason,
        shortfalls=tuple(short),
    )


_Metric = tuple[str, "float | None", str, str]


def _short(levels: Sequence[Level], duration_s: float) -> str:
    seconds = duration_s or max((level.statistics.window_s for level in levels), default=0.0)
    return f"{seconds:.1f} s of at least {MIN_DURATION_S:g} s"


def _latency(levels: Sequence[Level], percentile: float) -> _Metric:
    """The early-stopping estimate: the t-th largest latency, t being as many as may be above it."""
    metric, unit = f"p{percentile * 100:g} of latency (early-stopping estimate)", "ms"
    if not levels or levels[0].statistics.response is None:
        return metric, None, unit, "nothing was answered"
    counts = levels[0].statistics.response_counts
    queries = int(counts.sum())
    over = allowed_over(queries, percentile)
    if over < 1:
        needed = fewest_queries(percentile)
        return metric, None, unit, f"{queries:,} queries are too few for early stopping, which takes {needed:,}"
    return metric, quantile(counts, (queries - over + 0.5) / queries) / 1e6, unit, ""


def _highest_rate(levels: Sequence[Level], target_ms: float) -> _Metric:
    metric, unit = f"highest Poisson rate with p99 within {target_ms:g} ms", "queries/s"
    kept = [level.load.rate for level in levels if level.load.rate and not _misses(level, target_ms)]
    if kept:
        return metric, max(kept), unit, ""
    reasons = [f"{level.load}: {_misses(level, target_ms)}" for level in levels]
    return metric, None, unit, f"no rate kept it ({'; '.join(reasons)})"


def _misses(level: Level, target_ms: float) -> str:
    """Why a rate doesn't count; empty if it does."""
    if not level.verdict.valid:
        return level.verdict.reasons[0]
    counts = level.statistics.response_counts
    over = _above(counts, target_ms)
    queries = int(counts.sum())
    if over <= allowed_over(queries, Scenario.SERVER.quantile):
        return ""
    return f"{over:,} of {queries:,} queries took longer"


def _above(counts: Counts, milliseconds: float) -> int:
    last = int(bucket_index(np.array([round(milliseconds * 1e6)], np.int64))[0])
    return int(counts[last + 1 :].sum())


def _throughput(levels: Sequence[Level], batch: int) -> _Metric:
    metric, unit = "throughput", "samples/s"
    rates = [level.statistics.throughput.value for level in levels if level.verdict.valid]
    if not rates:
        return metric, None, unit, "no load gave a valid result"
    return metric, max(rates) * batch, unit, ""
