"""A run's result as one value, and as a versioned JSON document (its schema: ``run.schema.json``)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from client.errors import ClientError
from client.load.floor import Floor
from client.load.histogram import encode
from client.load.schedule import Load
from client.load.server_statistics import Batching, ServerWindow
from client.load.server_usage import ServerUsage
from client.load.statistics import Statistics
from client.load.verdict import Generator, Threshold, Verdict

FORMAT: Final = "client.bench/1"


@dataclass(frozen=True)
class Part:
    """A part of the mean response time, in milliseconds."""

    name: str
    ms: float


@dataclass(frozen=True)
class Level:
    """One load: what was measured under it.

    ``split`` sums to the mean response time; it is empty when the server's account is missing or has other
    clients' requests in it.  ``notes`` say what is missing and why.
    """

    load: Load
    started: str
    statistics: Statistics
    server: ServerWindow | None
    split: tuple[Part, ...]
    batching: str | None
    generator: Generator
    verdict: Verdict
    broken_thresholds: tuple[str, ...]
    notes: tuple[str, ...]
    usage: ServerUsage


@dataclass(frozen=True)
class Model:
    """What was under load; ``config_sha256`` is of its configuration on the server, keys sorted.

    ``files_sha256`` are the files of its version by name; None when they are not on this machine.
    """

    name: str
    version: str
    platform: str
    config_sha256: str
    batching: Batching
    image: bool = False
    files_sha256: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Settings:
    """What was asked for; ``requests_sha256`` is of the tensors that were sent.

    Inferences went to ``target``, everything else to ``url``.
    """

    url: str
    target: str
    protocol: str
    shared_memory: str
    compression: str
    batch: int
    data: str
    variants: int
    request_bytes: int
    requests_sha256: str
    duration_s: float
    requests: int | None
    warmup: str
    timeout_s: float
    workers: int
    max_connections: int
    seed: int
    percentile: float


@dataclass(frozen=True)
class Environment:
    """Where the generator ran, and what it ran against; ``server_unseen`` says why the server's process wasn't seen."""

    client_version: str
    python: str
    system: str
    cpu: str
    cpus: int
    hostname: str
    server: str
    server_unseen: str = ""


@dataclass(frozen=True)
class ScenarioResult:
    """The metric of one of MLPerf's scenarios; ``value`` None: there is none, for ``reason``.

    ``shortfalls`` are what the run lacks to be by MLPerf's rules.
    """

    name: str
    metric: str
    value: float | None
    unit: str
    target_latency_ms: float | None
    reason: str
    shortfalls: tuple[str, ...]


@dataclass(frozen=True)
class RunResult:
    """A whole run: one level or several."""

    settings: Settings
    model: Model
    environment: Environment
    floor: Floor | None
    levels: tuple[Level, ...]
    thresholds: tuple[Threshold, ...] = field(default=())
    scenario: ScenarioResult | None = None

    @property
    def valid(self) -> bool:
        """Whether every level is; of a scenario that tries several, whether it found its metric on one that is."""
        valid = [level.verdict.valid for level in self.levels]
        if self.scenario is not None:
            return self.scenario.value is not None and any(valid)
        return bool(valid) and all(valid)

    @property
    def broken_thresholds(self) -> tuple[str, ...]:
        return tuple(f"{level.load}: {text}" for level in self.levels for text in level.broken_thresholds)

    def to_json(self) -> dict[str, Any]:
        """The document that ``--output`` writes."""
        return {
            "format": FORMAT,
            "valid": self.valid,
            "settings": asdict(self.settings),
            "model": asdict(self.model),
            "environment": asdict(self.environment),
            "floor": asdict(self.floor) if self.floor else None,
            "scenario": asdict(self.scenario) if self.scenario else None,
            "thresholds": [threshold.text for threshold in self.thresholds],
            "levels": [_level(level, self.settings.batch) for level in self.levels],
        }

    def save(self, path: Path) -> None:
        """Write the document to ``path``: all of it or nothing."""
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", "--output")


def load_name(load: Mapping[str, Any]) -> str:
    """A load of :meth:`RunResult.to_json` in words."""
    if load["kind"] == "closed":
        return f"concurrency {load['concurrency']}"
    if load["kind"] == "trace":
        return "trace"
    return f"{load['rate']:g} requests/s{' (Poisson)' if load['poisson'] else ''}"


def is_ordinary(path: Path) -> bool:
    """Whether a file can be put there: not what is no file, nor /dev/stdout when that is a link to one."""
    special = path.exists() and not path.is_file()
    return not (special or {Path("/dev"), Path("/proc")} & set(path.absolute().parents))


def write_text(path: Path, text: str, option: str) -> None:
    """Put ``text`` in place in one step; a disk that is full leaves what was there before.

    What is no ordinary file, such as /dev/stdout, is written to as it is.
    """
    data = text.encode(errors="backslashreplace")  # names of files need not be text
    temporary = None
    try:
        if not is_ordinary(path):
            path.write_bytes(data)
            return
        real = Path(os.path.realpath(path))  # a link stays one
        with tempfile.NamedTemporaryFile(dir=real.parent, prefix=".", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(real)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ClientError(
            f"{path} can't be written: {error.strerror or error}", f"another file with {option}"
        ) from error


def _level(level: Level, batch: int) -> dict[str, Any]:
    statistics = level.statistics
    return {
        "load": {
            "kind": "closed" if not level.load.open_loop else "trace" if level.load.rate is None else "open",
            "concurrency": level.load.concurrency,
            "rate": level.load.rate,
            "poisson": level.load.poisson,
        },
        "started": level.started,
        "window_s": statistics.window_s,
        "requests": statistics.requests,
        "errors": statistics.errors,
        "throughput_requests_per_s": asdict(statistics.throughput),
        "throughput_inferences_per_s": _scaled(asdict(statistics.throughput), batch),
        "response_time": _latency(statistics, "response"),
        "service_time": _latency(statistics, "service"),
        "lateness": asdict(statistics.lateness) if statistics.lateness else None,
        "error_kinds": [asdict(kind) for kind in statistics.kinds],
        "error_windows": [asdict(window) for window in statistics.error_windows],
        "timeline": [asdict(entry) for entry in statistics.timeline],
        "server": asdict(level.server) if level.server else None,
        "server_process": asdict(level.usage.process) if level.usage.process else None,
        "gpus": [asdict(gpu) for gpu in level.usage.gpus],
        "mean_response_split": [asdict(part) for part in level.split],
        "dynamic_batching": level.batching,
        "generator": asdict(level.generator),
        "valid": level.verdict.valid,
        "reasons": list(level.verdict.reasons),
        "broken_thresholds": list(level.broken_thresholds),
        "notes": list(level.notes),
    }


def _scaled(estimate: Mapping[str, float | None], factor: int) -> dict[str, float | None]:
    return {name: None if value is None else value * factor for name, value in estimate.items()}


def _latency(statistics: Statistics, kind: str) -> dict[str, Any] | None:
    latency = getattr(statistics, kind)
    if latency is None:
        return None
    plain = {entry.name: getattr(latency, entry.name) for entry in fields(latency) if entry.name != "percentiles"}
    plain["mean_ms"] = asdict(latency.mean_ms)
    plain["percentiles"] = [{"name": entry.name, **asdict(entry)} for entry in latency.percentiles]
    plain["hdr_histogram_ns"] = encode(getattr(statistics, f"{kind}_counts"))
    return plain
