"""One run of ``python -m client.bench``, from its options to its exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.client import Client
from client.errors import ClientError, UsageError
from client.inputs import parse_assignments
from client.load.bodies import LoadData
from client.load.html import report_page
from client.load.live import Progress
from client.load.report import closing_lines, perf_analyzer_csv, result_tables
from client.load.result import RunResult, write_text
from client.load.run import DEFAULT_DURATION_S, Observer, Plan, carry_out
from client.load.schedule import (
    Load,
    Window,
    parse_concurrencies,
    parse_duration,
    parse_rates,
    parse_warmup,
    read_trace,
)
from client.load.verdict import Threshold
from client.report import show

THRESHOLD_EXIT: Final = 99


@dataclass(frozen=True)
class Options:
    """What the command line asks for; the fields are named after its flags."""

    model: str | None
    version: str
    pictures: tuple[Path, ...]
    url: str | None
    concurrency: str | None
    rate: str | None
    poisson: bool
    trace: Path | None
    duration: str | None
    requests: int | None
    warmup: str
    batch: int | None
    inputs: tuple[str, ...]
    shapes: tuple[str, ...]
    ranges: tuple[str, ...]
    variants: int
    seed: int
    timeout: float
    workers: int | None
    connections: int
    percentile: float
    fail_if: tuple[str, ...]
    floor: bool
    output: Path | None
    csv: Path | None
    html: Path | None


def run(options: Options, *, as_json: bool, quiet: bool) -> int:
    """Measure, show and save; what was measured is saved and shown even when one of the files can't be written."""
    plan = make_plan(options)
    _check_folders(options)
    with Client(options.url, timeout=min(options.timeout, 30.0)) as client:
        observer = Observer() if quiet else Progress()
        result = carry_out(client, options.model, options.version, plan, observer)
    if as_json:
        sys.stdout.write(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    else:
        for table in result_tables(result):
            show(table)
        for line in closing_lines(result):
            sys.stdout.write(line + "\n")
    sys.stdout.flush()
    _save(options, result)
    if result.broken_thresholds:
        return THRESHOLD_EXIT
    return 0 if result.valid else 1


def make_plan(options: Options) -> Plan:
    """Read the options; :class:`UsageError` for what can't be right, before anything is sent."""
    kinds = [flag for flag in ("concurrency", "rate", "trace") if getattr(options, flag) is not None]
    if len(kinds) > 1:
        raise UsageError(f"--{kinds[0]} and --{kinds[1]} can't go together: a run is one or the other")
    if options.poisson and options.rate is None:
        raise UsageError("--poisson is for --rate")
    if options.trace and options.duration:
        raise UsageError("--trace ends with its last request; --duration is for the other loads")
    seconds = parse_duration(options.duration, "--duration") if options.duration else 0.0
    if options.duration and not seconds:
        raise UsageError("--duration must be more than 0")
    if not seconds and options.requests is None and not options.trace:
        seconds = DEFAULT_DURATION_S
    return Plan(
        loads=_loads(options),
        window=Window(seconds, options.requests),
        warmup=parse_warmup(options.warmup),
        data=LoadData(
            pictures=options.pictures,
            inputs=parse_assignments(options.inputs, "--input"),
            shapes=parse_assignments(options.shapes, "--shape"),
            ranges=parse_assignments(options.ranges, "--input-range"),
            variants=options.variants,
        ),
        batch=options.batch,
        seed=options.seed,
        timeout_s=options.timeout,
        workers=options.workers,
        max_connections=options.connections,
        percentile=round(options.percentile / 100, 6),
        thresholds=tuple(map(Threshold.parse, options.fail_if)),
        floor=options.floor,
    )


def _loads(options: Options) -> tuple[Load, ...]:
    if options.trace is not None:
        return (read_trace(options.trace),)
    if options.rate is not None:
        return tuple(Load(rate=rate, poisson=options.poisson) for rate in parse_rates(options.rate))
    return tuple(Load(concurrency=level) for level in parse_concurrencies(options.concurrency or "1"))


def _check_folders(options: Options) -> None:
    """A run of minutes must not end with a folder that isn't there."""
    for flag in ("output", "csv", "html"):
        path = getattr(options, flag)
        if path is not None and (not path.parent.is_dir() or path.is_dir()):
            raise UsageError(f"--{flag} {path}: {'a folder' if path.is_dir() else 'its folder does not exist'}")


def _save(options: Options, result: RunResult) -> None:
    """Try every file, then raise the first error."""
    jobs: list[Callable[[], None]] = []
    if (output := options.output) is not None:
        jobs.append(lambda: result.save(output))
    if (csv := options.csv) is not None:
        jobs.append(lambda: write_text(csv, perf_analyzer_csv(result), "--csv"))
    if (html := options.html) is not None:
        jobs.append(lambda: write_text(html, report_page(result.to_json()), "--html"))
    errors = []
    for job in jobs:
        try:
            job()
        except ClientError as error:
            errors.append(error)
    if errors:
        raise errors[0]
