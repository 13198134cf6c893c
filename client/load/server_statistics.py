"""What the server counted over exactly the measured window, and whether its dynamic batching works.

The counters are read when no request is in flight, before the first and after the last, so their difference
holds the requests of the window and no others, unless somebody else uses the model, which shows in the counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

BUSY: Final = 0.9
"""Fraction of the time from which on the model's instances count as saturated."""

WORKS: Final = 0.5
"""Share of the requests that ran with others from which on batching works: most of them had it.

A mean of items says less: it is 1.05 when 5% of the executions had two, and the others one.
"""

_ANOTHER: Final = 1.2  # mean number of waiting requests from which on one that waits often finds another


class StartedAnewError(Exception):
    """A counter went backwards."""


@dataclass(frozen=True)
class BatchSize:
    """Executions of one batch size, and the mean milliseconds of their inference."""

    size: int
    executions: int
    infer_ms: float


@dataclass(frozen=True)
class ServerWindow:
    """The server's account of the window; times are means in milliseconds of a request.

    ``requests`` succeeded with ``inferences`` items in ``executions`` of the model, ``failures`` failed.
    ``total_ms`` is from the request's arrival in Triton's core to its answer and has the other four and some
    bookkeeping in it.  ``busy_s`` is the time that instances spent in executions, all of them together.
    """

    requests: int
    failures: int
    inferences: int
    executions: int
    cache_hits: int
    total_ms: float
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    busy_s: float
    batches: tuple[BatchSize, ...]

    @property
    def mean_batch(self) -> float:
        """Items an execution; 0 when nothing was executed."""
        return self.inferences / self.executions if self.executions else 0.0


@dataclass(frozen=True)
class Batching:
    """What a model's configuration says about batches."""

    max_batch_size: int
    dynamic: bool
    delay_us: int
    instances: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Batching:
        """Read Triton's ModelConfig as JSON."""
        dynamic = config.get("dynamic_batching")
        groups = config.get("instance_group") or [{}]
        return cls(
            max_batch_size=int(config.get("max_batch_size", 0)),
            dynamic=dynamic is not None,
            delay_us=int((dynamic or {}).get("max_queue_delay_microseconds", 0)),
            instances=sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in groups),
        )


@dataclass(frozen=True)
class Sent:
    """What a run sent in a window: requests of ``batch`` items, of which at most ``in_flight`` were on their way.

    ``seconds`` passed until the last answer.  ``others`` of the requests in the server's counters are somebody else's.
    """

    batch: int
    in_flight: int
    seconds: float
    others: int = 0


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> ServerWindow | None:
    """The window between two answers of ``/v2/models/NAME/versions/VERSION/stats``.

    None when they can't be read; :class:`StartedAnewError` when a counter went backwards.
    """
    try:
        (old,), (new,) = before["model_stats"], after["model_stats"]
        counts, spent = _inference_stats(old, new)
        requests = counts["success"]
        batches, busy_ns = _batches(old, new)
        shrunk = _shrunk(old, new)
        inferences = int(new["inference_count"]) - int(old["inference_count"])
        executions = int(new["execution_count"]) - int(old["execution_count"])
    except (KeyError, TypeError, ValueError):
        return None
    if shrunk or min(*counts.values(), *spent.values(), inferences, executions) < 0:
        raise StartedAnewError
    mean = {name: ns / requests / 1e6 if requests else 0.0 for name, ns in spent.items()}
    return ServerWindow(
        requests=requests,
        failures=counts["fail"],
        inferences=inferences,
        executions=executions,
        cache_hits=counts["cache_hit"],
        total_ms=mean["success"],
        queue_ms=mean["queue"],
        compute_input_ms=mean["compute_input"],
        compute_infer_ms=mean["compute_infer"],
        compute_output_ms=mean["compute_output"],
        busy_s=busy_ns / 1e9,
        batches=batches,
    )


def explain_batching(window: ServerWindow, config: Batching, sent: Sent) -> str:
    """Whether requests were joined into batches, in which proportion, and if few or none were, why."""
    most, mean = config.max_batch_size, window.mean_batch
    if not window.executions:
        return "Dynamic batching: the model was not executed."
    if not window.inferences:
        return "Dynamic batching: it can't be told what it did, since no request succeeded."
    if most == 0:
        return "Dynamic batching is off: the model has no batch axis (max_batch_size is 0)."
    if not config.dynamic:
        return "Dynamic batching is off: the configuration has no dynamic_batching, so each request ran alone."
    if sent.others:
        counted = f"{sent.others:,} of the {window.requests + window.failures:,} requests in the server's counters"
        return (
            f"What dynamic batching did for this run can't be told: {counted} are somebody else's.  All together "
            f"ran in executions of {mean:.2f} items, at most {most}."
        )
    joined = sum(entry.size * entry.executions for entry in window.batches if entry.size > sent.batch)
    share = joined / window.inferences if window.inferences else 0.0
    busy = window.busy_s / sent.seconds / config.instances
    if share >= WORKS:
        full = sum(entry.executions for entry in window.batches if entry.size >= most) / window.executions
        saturated = f"; {_instances(config)} busy {busy:.0%} of the time" if busy >= BUSY else ""
        return (
            f"Dynamic batching works: {window.requests:,} requests ran in {window.executions:,} executions, "
            f"{_percent(share)} of the requests with others, {mean:.2f} items at once of at most {most} "
            f"({_percent(full)} were full){saturated}."
        )
    if sent.batch > most // 2:
        return f"Dynamic batching had nothing to join: two requests of {sent.batch} don't fit in a batch of {most}."
    found = f"{_percent(share)} of the requests" if joined else "nothing"
    return f"Dynamic batching joined {found}: {_why_alone(window, config, sent, busy)}."


def _why_alone(window: ServerWindow, config: Batching, sent: Sent, busy: float) -> str:
    """Requests meet in the queue, where one waits for the delay, or longer if no instance is free.

    So a time between requests that is longer than the delay keeps them apart until the instances are busy.
    """
    requests = max(1, window.inferences // sent.batch)
    if min(sent.in_flight, requests) == 1:
        return "the load is too low, with one request in flight at a time: no delay lets it meet another"
    in_server = requests * window.total_ms / 1e3 / sent.seconds  # Little's law
    gap_us, run_us = sent.seconds / requests * 1e6, window.busy_s / window.executions * 1e6
    come = f"requests come {gap_us:,.0f} us apart on average"
    longer = f"more than {gap_us:,.0f} us (max_queue_delay_microseconds), which costs up to as much latency"
    few = in_server - config.instances < _ANOTHER
    if few and config.instances > 1 and config.delay_us < gap_us < run_us:
        fewer = "fewer instances or " if in_server - 1 >= _ANOTHER else ""
        taken = f"{config.instances} instances take {in_server:.1f} at once, one each"
        return f"{come}, and {taken}; they meet with {fewer}a queue delay of {longer}"
    if few and busy >= BUSY:
        return f"of {in_server:.1f} requests in the server {config.instances} ran, and the next one waited alone"
    if busy >= BUSY:
        return f"{_instances(config)} busy {busy:.0%} of the time, and still requests were taken one by one"
    if config.delay_us >= gap_us:
        return f"{come} and wait up to {config.delay_us:,} us for others, and still were taken one by one"
    stay = f"wait at most {config.delay_us:,} us for others and run {run_us:,.0f} us"
    return f"{come}, {stay}; they meet under a higher load or with a queue delay of {longer}"


def _percent(share: float) -> str:
    """Of 1, never rounded to none or all."""
    if 0 < share < 0.01:
        return "less than 1%"
    return "more than 99%" if 0.99 < share < 1 else f"{share:.0%}"


def _instances(config: Batching) -> str:
    return "the one instance was" if config.instances == 1 else f"all {config.instances} instances were"


def _inference_stats(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    first, second = old["inference_stats"], new["inference_stats"]
    counts = {
        name: int(second[name]["count"]) - int(first[name]["count"]) if name in second else 0
        for name in ("success", "fail", "cache_hit")
    }
    spent = {
        name: int(second[name]["ns"]) - int(first[name]["ns"])
        for name in ("success", "queue", "compute_input", "compute_infer", "compute_output")
    }
    return counts, spent


def _batches(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[tuple[BatchSize, ...], int]:
    """Executions by batch size, and the nanoseconds of them all."""
    earlier = {int(entry["batch_size"]): entry for entry in old.get("batch_stats", [])}
    found, busy_ns = [], 0
    for entry in new.get("batch_stats", []):
        size = int(entry["batch_size"])
        before = earlier.get(size)
        executions, infer_ns = (_grown(entry, before, "compute_infer", field) for field in ("count", "ns"))
        if executions > 0:
            found.append(BatchSize(size, executions, infer_ns / executions / 1e6))
            busy_ns += sum(
                _grown(entry, before, stage, "ns") for stage in ("compute_input", "compute_infer", "compute_output")
            )
    return tuple(sorted(found, key=lambda entry: entry.size)), busy_ns


def _shrunk(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether executions of some batch size are fewer than before, or gone."""
    later = {int(entry["batch_size"]): entry for entry in new.get("batch_stats", [])}
    for entry in old.get("batch_stats", []):
        now = later.get(int(entry["batch_size"]))
        if now is None or min(_grown(now, entry, "compute_infer", field) for field in ("count", "ns")) < 0:
            return True
    return False


def _grown(entry: Mapping[str, Any], before: Mapping[str, Any] | None, stage: str, field: str) -> int:
    return int(entry[stage][field]) - (int(before[stage][field]) if before else 0)
