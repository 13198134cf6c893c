"""What the records of a phase say: latency, throughput, how sure that is, and what went wrong when.

The measured window is cut into 60 slices.  Confidence intervals are 95%, by a bootstrap over 20 blocks of three
slices each: requests that follow one another are not independent, so whole stretches of time are drawn and
not single requests (Kuensch 1989; Efron and Tibshirani, An Introduction to the Bootstrap, 8.6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from client.latency import samples_needed
from client.load.histogram import BUCKETS, Counts, bucket_index, bucket_middle, quantile
from client.load.records import WAITED, Outcome
from client.load.workers import Integers, Store

QUANTILES: Final = (0.50, 0.90, 0.95, 0.99, 0.999)
SLICES: Final = 60
ERROR_GAP_NS: Final = 1_000_000_000
"""Errors further apart than this belong to different windows."""

_BLOCKS: Final = 20
_RESAMPLES: Final = 400
_CHUNK: Final = 1 << 18  # rows that are worked on at a time, so that no column is ever copied whole
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% confidence interval; None where the sample is too small for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Percentile:
    """A quantile in milliseconds; ``supported`` if the sample can claim it, which takes ``requests_needed``."""

    quantile: float
    ms: Estimate
    supported: bool
    requests_needed: int

    @property
    def name(self) -> str:
        return f"p{self.quantile * 100:g}"


@dataclass(frozen=True)
class Latency:
    """Durations of the requests that were answered, in milliseconds; percentiles are nearest rank, exact."""

    count: int
    min_ms: float
    mean_ms: Estimate
    stddev_ms: float
    percentiles: tuple[Percentile, ...]
    max_ms: float

    def percentile(self, quantile: float) -> Percentile:
        """One of :data:`QUANTILES`."""
        return next(entry for entry in self.percentiles if entry.quantile == quantile)


@dataclass(frozen=True)
class ErrorKind:
    """Failed requests of one kind, and the first one's message."""

    kind: str
    count: int
    message: str


@dataclass(frozen=True)
class ErrorWindow:
    """A stretch of time with errors, in seconds from the start: from the first one's send to the last one's end."""

    start_s: float
    end_s: float
    errors: int


@dataclass(frozen=True)
class Slice:
    """A sixtieth of the window; latencies are response times, None when nothing was answered in it."""

    start_s: float
    requests: int
    errors: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Lateness:
    """How long after they were due requests were sent that had a free connection: the generator's own delay."""

    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Statistics:
    """One load on one server: what its records say.

    ``requests`` were finished, ``errors`` of them failed.  ``throughput`` is requests answered per second
    within ``window_s``.  ``response`` counts from when a request was due, ``service`` from when it was sent;
    None if none was answered.
    """

    window_s: float
    requests: int
    errors: int
    throughput: Estimate
    response: Latency | None
    service: Latency | None
    kinds: tuple[ErrorKind, ...]
    error_windows: tuple[ErrorWindow, ...]
    timeline: tuple[Slice, ...]
    lateness: Lateness | None
    response_counts: Counts
    service_counts: Counts
    thirds: tuple[tuple[float, float], ...]

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


def summarise(
    store: Store, start_ns: int, duration_ns: int, messages: Mapping[Outcome, str], *, open_loop: bool
) -> Statistics:
    """Read the records of a phase.  This sorts them in place: the store is spent afterwards.

    The window is ``duration_ns`` from ``start_ns``, or up to the last answer when that is 0.
    """
    done, status = store.done, store.status
    last = int(done.max()) - start_ns if len(done) else 0
    window = max(1, duration_ns or last)
    failed = status & ~np.uint8(WAITED) != Outcome.OK
    errors = int(np.count_nonzero(failed))
    slices = _slice_counts(store, failed, start_ns, window)
    kinds = _error_kinds(status[failed], messages)
    error_windows = _error_windows(done[failed] - start_ns, store.service[failed])
    response, service = store.response, store.service
    if errors:
        response, service = response[~failed], service[~failed]
    return Statistics(
        window_s=window / 1e9,
        requests=len(status),
        errors=errors,
        throughput=_throughput(slices.answered, window),
        response=_latency(response, slices.response),
        service=_latency(service, slices.service),
        kinds=kinds,
        error_windows=error_windows,
        timeline=_timeline(slices, window),
        lateness=_lateness(slices) if open_loop else None,
        response_counts=slices.response.sum(axis=0),
        service_counts=slices.service.sum(axis=0),
        thirds=_thirds(slices, window),
    )


@dataclass(frozen=True)
class _Slices:
    """Rows are slices of the window; what was answered after its end is in the last row of the histograms."""

    answered: Counts
    failed: Counts
    response: Counts
    service: Counts
    late: Counts  # of all requests that had a free connection
    latest_ns: int


def _slice_counts(store: Store, failed: npt.NDArray[np.bool_], start_ns: int, window: int) -> _Slices:
    response = np.zeros(SLICES * BUCKETS, np.int64)
    service = np.zeros(SLICES * BUCKETS, np.int64)
    late, latest = np.zeros(BUCKETS, np.int64), 0
    answered, errors = np.zeros(SLICES + 1, np.int64), np.zeros(SLICES + 1, np.int64)
    for at in range(0, len(store), _CHUNK):
        part = slice(at, at + _CHUNK)
        place = np.clip((store.done[part] - start_ns - 1) * SLICES // window, 0, SLICES)
        bad = failed[part]
        errors += np.bincount(place[bad], minlength=SLICES + 1)
        good = ~bad
        place = place[good]
        answered += np.bincount(place, minlength=SLICES + 1)
        row = np.minimum(place, SLICES - 1) * BUCKETS
        for counts, values in ((response, store.response), (service, store.service)):
            np.add.at(counts, row + bucket_index(values[part][good]), 1)
        delay = (store.response[part] - store.service[part])[store.status[part] & WAITED == 0]
        late += np.bincount(bucket_index(delay), minlength=BUCKETS)
        latest = max(latest, int(delay.max(initial=0)))
    shape = (SLICES, BUCKETS)
    return _Slices(answered, errors, response.reshape(shape), service.reshape(shape), late, latest)


def _throughput(answered: Counts, window: int) -> Estimate:
    per_block = answered[:SLICES].reshape(_BLOCKS, -1).sum(axis=1)
    rates = _weights() @ per_block / (window / 1e9)
    return _estimate(per_block.sum() * 1e9 / window, rates, int(per_block.sum()))


def _latency(values: Integers, slices: Counts) -> Latency | None:
    """``values`` are reordered."""
    count = len(values)
    if not count:
        return None
    blocks = slices.reshape(_BLOCKS, SLICES // _BLOCKS, -1).sum(axis=1)
    used = np.flatnonzero(blocks.any(axis=0))
    cumulative = np.cumsum(_weights() @ blocks[:, used].astype(np.float64), axis=1)
    middle = bucket_middle(used)
    ranks = [math.ceil(q * count) - 1 for q in QUANTILES]
    mean, deviation = _moments(values)
    values.partition(sorted({0, *ranks, count - 1}))
    percentiles = []
    for q, rank in zip(QUANTILES, ranks, strict=True):
        drawn = middle[(cumulative >= q * cumulative[:, -1:]).argmax(axis=1)]
        needed = samples_needed(q)
        percentiles.append(Percentile(q, _estimate(int(values[rank]), drawn, count, 1e6), count >= needed, needed))
    means = np.diff(cumulative, prepend=0.0, axis=1) @ middle / np.maximum(cumulative[:, -1], 1)
    return Latency(
        count=count,
        min_ms=int(values[0]) / 1e6,
        mean_ms=_estimate(mean, means, count, 1e6),
        stddev_ms=deviation / 1e6,
        percentiles=tuple(percentiles),
        max_ms=int(values[-1]) / 1e6,
    )


def _moments(values: Integers) -> tuple[float, float]:
    """Mean and standard deviation without a second array of all values."""
    mean = float(values.mean())
    squares = sum(float(np.square(values[at : at + _CHUNK] - mean).sum()) for at in range(0, len(values), _CHUNK))
    return mean, math.sqrt(squares / max(1, len(values) - 1))


def _weights() -> _Floats:
    """How often each block is drawn in each resample; seeded, so that a result can be computed again."""
    generator = np.random.default_rng(0)
    return generator.multinomial(_BLOCKS, np.full(_BLOCKS, 1 / _BLOCKS), _RESAMPLES).astype(np.float64)


def _estimate(value: float, drawn: _Floats, count: int, scale: float = 1.0) -> Estimate:
    if count < 2 * _BLOCKS:
        return Estimate(value / scale)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value / scale, min(value, float(low)) / scale, max(value, float(high)) / scale)


def _timeline(slices: _Slices, window: int) -> tuple[Slice, ...]:
    return tuple(
        Slice(
            start_s=index * window / SLICES / 1e9,
            requests=int(slices.answered[index]),
            errors=int(slices.failed[index]),
            p50_ms=quantile(row, 0.50) / 1e6 if row.any() else None,
            p99_ms=quantile(row, 0.99) / 1e6 if row.any() else None,
        )
        for index, row in enumerate(slices.response)
    )


def _thirds(slices: _Slices, window: int) -> tuple[tuple[float, float], ...]:
    """Throughput and median response time in ms of each third of the window."""
    rows = SLICES // 3
    thirds = []
    for at in range(0, SLICES, rows):
        counts = slices.response[at : at + rows].sum(axis=0)
        rate = int(slices.answered[at : at + rows].sum()) * 3e9 / window
        thirds.append((rate, quantile(counts, 0.5) / 1e6 if counts.any() else math.inf))
    return tuple(thirds)


def _error_kinds(status: npt.NDArray[np.uint8], messages: Mapping[Outcome, str]) -> tuple[ErrorKind, ...]:
    counts = np.bincount(status & ~np.uint8(WAITED), minlength=len(Outcome)).tolist()
    found = sorted(((counts[outcome], outcome) for outcome in Outcome if counts[outcome]), reverse=True)
    return tuple(ErrorKind(outcome.text, count, messages.get(outcome, "")) for count, outcome in found)


def _error_windows(done: Integers, service: Integers) -> tuple[ErrorWindow, ...]:
    if not len(done):
        return ()
    order = np.argsort(done)
    ended, began = done[order], (done - service)[order]
    cuts = np.flatnonzero(np.diff(ended) > ERROR_GAP_NS) + 1
    return tuple(
        ErrorWindow(int(start.min()) / 1e9, int(end.max()) / 1e9, len(end))
        for start, end in zip(np.split(began, cuts), np.split(ended, cuts), strict=True)
    )


def _lateness(slices: _Slices) -> Lateness | None:
    if not slices.late.any():
        return None
    return Lateness(quantile(slices.late, 0.50) / 1e6, quantile(slices.late, 0.99) / 1e6, slices.latest_ns / 1e6)
