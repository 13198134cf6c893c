"""May a result be believed, and does it keep what was asked of it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from client.errors import UsageError
from client.load.statistics import Latency, Statistics

STABILITY: Final = 0.10
"""Throughput and median of each third of the window lie within this of their mean, as perf_analyzer has it.

Of an open loop, the median alone: its throughput is its schedule's."""

BUSY_WORKER: Final = 0.90
LATE_FRACTION: Final = 0.05
LATE_MS: Final = 1.0

_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_TIMES: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_THRESHOLD: Final = re.compile(r"\s*(service\.)?([a-z_]+[0-9.]*)\s*(>=|<=|>|<)\s*([0-9.]+)\s*(us|ms|s|%)?\s*")
_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
_METRICS: Final = "p50 p90 p95 p99 p99.9 mean max (of response time, or service.p99), throughput, errors"


@dataclass(frozen=True)
class Verdict:
    """``valid``, or the ``reasons`` why not."""

    reasons: tuple[str, ...]

    @property
    def valid(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Generator:
    """What it took to make the load: ``cpu`` is the busiest worker's fraction of a core.

    ``send_ms`` and ``receive_ms`` are means of a request's send and of the receipt of an answer.
    """

    workers: int
    connections: int
    cpu: float
    cpu_us_per_request: float
    send_ms: float
    receive_ms: float
    unsent: int
    interrupted: bool
    lost_workers: int
    wrong_answers: int
    wrong_answer: str = ""


@dataclass(frozen=True)
class Threshold:
    """A condition that a run must not meet, such as ``p99>20ms``."""

    text: str
    service: bool
    metric: str
    comparison: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read ``METRIC>VALUE``: a latency with its unit, a throughput, or errors as a number or in percent."""
        match = _THRESHOLD.fullmatch(text)
        hint = f"such as 'p99>20ms', 'errors>0.1%', 'throughput<100'; it takes {_METRICS}"
        if match is None:
            raise UsageError(f"--fail-if {text!r} is no condition", hint)
        service, metric, comparison, number, unit = match.groups()
        latency = metric in _QUANTILES or metric in {"mean", "max"}
        allowed = set(_TIMES) if latency else {"%", None} if metric == "errors" else {None}
        if metric == "errors" and unit is None and "." in number:
            share = f"'errors{comparison}{number}%' is in percent"
            raise UsageError(f"--fail-if {text!r} may be a share or a number of errors", share)
        known = latency or (metric in {"throughput", "errors"} and not service)
        try:
            value = float(number)
        except ValueError:
            known, value = False, 0.0
        if not known or unit not in allowed:
            raise UsageError(f"--fail-if {text!r} is no condition", hint)
        scale = _TIMES.get(unit, 1.0) if unit != "%" else 1.0
        return cls(text.strip(), bool(service), f"{metric}%" if unit == "%" else metric, comparison, value * scale)

    def broken_by(self, statistics: Statistics) -> str | None:
        """What was measured, if that meets the condition; a latency that nobody has meets it."""
        value, unit = self._measured(statistics)
        if value is None:
            return f"{self.text}: nothing was answered"
        if not _COMPARISONS[self.comparison](value, self.limit):
            return None
        return f"{self.text}: {value:.4g}{unit}"

    def _measured(self, statistics: Statistics) -> tuple[float | None, str]:
        if self.metric == "errors":
            return statistics.errors, " failed"
        if self.metric == "errors%":
            return statistics.error_rate * 100, "%"
        if self.metric == "throughput":
            return statistics.throughput.value, " requests/s"
        latency: Latency | None = statistics.service if self.service else statistics.response
        if latency is None:
            return None, ""
        if self.metric == "mean":
            return latency.mean_ms.value, " ms"
        if self.metric == "max":
            return latency.max_ms, " ms"
        return latency.percentile(_QUANTILES[self.metric]).ms.value, " ms"


def judge(statistics: Statistics, generator: Generator, quantile: float = 0.99) -> Verdict:
    """Every reason not to believe what was measured; ``quantile`` is the one that the run is to claim."""
    reasons = [*_failures(statistics, generator), *_too_little(statistics, quantile)]
    if not reasons:
        reasons += _unstable(statistics)
    return Verdict((*reasons, *_generator(statistics, generator)))


def _failures(statistics: Statistics, generator: Generator) -> list[str]:
    reasons = []
    if generator.interrupted:
        reasons.append("interrupted before its end")
    if generator.lost_workers:
        reasons.append(f"{generator.lost_workers} of {generator.workers} worker processes died")
    if statistics.errors:
        first = statistics.kinds[0]
        reasons.append(
            f"{statistics.errors:,} of {statistics.requests:,} requests failed "
            f"({statistics.error_rate:.3%}), most of them: {first.kind}"
        )
    if generator.wrong_answers:
        reasons.append(f"{generator.wrong_answers} of the answers looked into were wrong: {generator.wrong_answer}")
    return reasons


def _too_little(statistics: Statistics, quantile: float) -> list[str]:
    if statistics.response is None:
        return ["no request was answered"]
    claimed = statistics.response.percentile(quantile)
    if claimed.supported:
        return []
    return [
        f"{statistics.response.count:,} requests can't carry {claimed.name}, which takes {claimed.requests_needed:,}"
    ]


def _unstable(statistics: Statistics) -> list[str]:
    reasons = []
    found = [("median response time", [median for _, median in statistics.thirds], "ms")]
    if statistics.lateness is None:  # in an open loop the schedule says how many requests come when
        found.insert(0, ("throughput", [rate for rate, _ in statistics.thirds], "requests/s"))
    for name, values, unit in found:
        mean = sum(values) / len(values)
        if max(abs(value - mean) for value in values) > STABILITY * mean:
            thirds = ", ".join(f"{value:.4g}" for value in values)
            reasons.append(f"not stable: the {name} of its thirds was {thirds} {unit}")
    return reasons


def _generator(statistics: Statistics, generator: Generator) -> list[str]:
    reasons = []
    if generator.unsent:
        unable = "the generator" if generator.cpu > BUSY_WORKER else "the server"
        reasons.append(
            f"{generator.unsent:,} requests were due and never sent: the load is more than {unable} takes "
            f"(on {generator.connections} connections)"
        )
    if generator.cpu > BUSY_WORKER:
        reasons.append(f"the generator was the bottleneck: a worker used {generator.cpu:.0%} of a core (--workers)")
    late, response = statistics.lateness, statistics.response
    if late is not None and response is not None:
        allowed = max(LATE_MS, LATE_FRACTION * response.percentile(0.5).ms.value)
        if late.p99_ms > allowed:
            reasons.append(
                f"the generator was late: 1% of its requests were sent more than {late.p99_ms:.2f} ms after they were "
                "due (--workers, or a less busy machine)"
            )
    return reasons
