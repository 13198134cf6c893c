"""Latency of a sample of requests, and the server's own account of the same time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from client.errors import BadResponse

QUANTILES: Final = (0.50, 0.90, 0.95, 0.99)
CONFIDENCE: Final = 0.99


@dataclass(frozen=True)
class Percentile:
    """A quantile of a sample; ``supported`` when the sample is large enough to claim it."""

    quantile: float
    ns: int
    supported: bool

    @property
    def name(self) -> str:
        return f"p{self.quantile * 100:g}"


@dataclass(frozen=True)
class LatencySummary:
    """A sample of durations in nanoseconds."""

    count: int
    min_ns: int
    mean_ns: float
    percentiles: tuple[Percentile, ...]
    max_ns: int

    @classmethod
    def of(cls, durations_ns: Sequence[int]) -> LatencySummary:
        """Summarise at least one duration.  Percentiles are durations that occurred (nearest rank)."""
        ordered = sorted(durations_ns)
        count = len(ordered)
        return cls(
            count=count,
            min_ns=ordered[0],
            mean_ns=sum(ordered) / count,
            percentiles=tuple(
                Percentile(q, ordered[math.ceil(q * count) - 1], count >= samples_needed(q)) for q in QUANTILES
            ),
            max_ns=ordered[-1],
        )


def samples_needed(quantile: float) -> int:
    """Fewest samples that can claim ``quantile`` with 99% confidence.

    All n samples lie below the true quantile q with probability q**n (binomial), so a sample bounds it from
    above with confidence 1 - q**n: 459 samples for p99, 90 for p95, 44 for p90, 7 for p50.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(quantile))


@dataclass(frozen=True)
class ServerStatistics:
    """Counters of ``/v2/models/NAME/versions/VERSION/stats``: they only grow, so a difference is a window.

    ``requests`` that succeeded, ``inferences`` (items) in them, ``executions`` of the model; the total
    nanoseconds that requests spent queued, and in a batch that was gathered, computed and scattered.
    """

    requests: int
    inferences: int
    executions: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int

    @classmethod
    def from_server(cls, statistics: Mapping[str, Any]) -> ServerStatistics:
        """Read the server's JSON for one version of one model."""
        try:
            (model,) = statistics["model_stats"]
            times = model["inference_stats"]
            return cls(
                requests=int(times["success"]["count"]),
                inferences=int(model["inference_count"]),
                executions=int(model["execution_count"]),
                queue_ns=int(times["queue"]["ns"]),
                compute_input_ns=int(times["compute_input"]["ns"]),
                compute_infer_ns=int(times["compute_infer"]["ns"]),
                compute_output_ns=int(times["compute_output"]["ns"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadResponse(f"the server's statistics can't be read: {error!r}") from None

    def __sub__(self, earlier: ServerStatistics) -> ServerStatistics:
        return ServerStatistics(*(getattr(self, field.name) - getattr(earlier, field.name) for field in fields(self)))
