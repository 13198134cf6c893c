"""What the server counted over exactly the measured window, and whether its dynamic batching works.

The counters are read when no request is in flight, before the first and after the last, so their difference
holds the requests of the window and no others, unless somebody else uses the model, which shows in the counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BUSY: float = 0.9
"""Fraction of the time from which on the model's instances count as saturated."""


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


def explain_batching(window: ServerWindow, config: Batching, batch: int, window_s: float) -> str:
    """One sentence: whether requests were joined into batches, and if not, why.

    ``window_s`` seconds passed until the last answer, all of which the server's counters hold.
    """
    if not window.executions:
        return "Dynamic batching: the model was not executed."
    if config.max_batch_size == 0:
        return "Dynamic batching is off: the model has no batch axis (max_batch_size is 0)."
    mean, most = window.mean_batch, config.max_batch_size
    busy = window.busy_s / window_s / config.instances
    if mean > batch * 1.05:
        full = sum(entry.executions for entry in window.batches if entry.size >= most) / window.executions
        saturated = f"; {_instances(config)} busy {busy:.0%} of the time" if busy >= BUSY else ""
        return (
            f"Dynamic batching works: {window.requests:,} requests ran in {window.executions:,} executions, "
            f"{mean:.2f} items each of at most {most} ({full:.0%} were full){saturated}."
        )
    if not config.dynamic:
        return "Dynamic batching is off: the configuration has no dynamic_batching, so each request ran alone."
    if batch > most // 2:
        return f"Dynamic batching had nothing to join: two requests of {batch} don't fit in a batch of {most}."
    some = any(entry.size > batch for entry in window.batches)
    joined = "hardly anything" if some else "nothing"
    return f"Dynamic batching joined {joined}: {_why_alone(window, config, window_s, busy)}."


def _why_alone(window: ServerWindow, config: Batching, window_s: float, busy: float) -> str:
    in_server = window.requests * window.total_ms / 1e3 / window_s  # Little's law
    gap_us = window_s / max(window.requests, 1) * 1e6
    if in_server < 1.2:
        return f"the load is too low, with {in_server:.2f} requests in the server on average"
    if in_server <= config.instances * 1.2 and config.instances > 1:
        return f"{config.instances} instances take {in_server:.1f} requests at once, one each; fewer would batch them"
    if busy < BUSY:
        return (
            f"a queue delay of {config.delay_us} us is too short for requests that come {gap_us:.0f} us apart "
            "(max_queue_delay_microseconds)"
        )
    if in_server < config.instances * 2.2:
        return f"of {in_server:.1f} requests in the server {config.instances} ran, and the next one waited alone"
    return f"{_instances(config)} busy {busy:.0%} of the time, and still requests were taken one by one"


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
