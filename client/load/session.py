"""One run of ``python -m client.bench``, from its options to its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.errors import ClientError, UsageError
from client.inputs import parse_assignments
from client.load.bodies import LoadData
from client.load.delivery import Delivery
from client.load.html import report_page
from client.load.interrupts import Interrupts
from client.load.live import Progress
from client.load.observer import Observer
from client.load.plan import Plan, make_plan
from client.load.report import closing_lines, perf_analyzer_csv, result_tables, where_the_rest_is
from client.load.result import RunResult, is_ordinary, write_text
from client.load.run import carry_out
from client.load.schedule import parse_concurrencies, parse_duration, parse_rates
from client.load.target import open_client
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
    delivery: Delivery
    seed: int
    timeout: float
    workers: int | None
    connections: int
    percentile: float | None
    scenario: str | None
    target_latency: str | None
    metrics_url: str | None
    fail_if: tuple[str, ...]
    floor: bool
    output: Path | None
    csv: Path | None
    html: Path | None


def measure(options: Options, interrupts: Interrupts, *, quiet: bool) -> RunResult:
    """Carry out what the options ask for; KeyboardInterrupt when it ends before anything was measured."""
    plan = plan_of(options)
    _check_files(options)
    with open_client(options.url, plan.delivery, plan.timeout_s) as client:
        observer = Observer() if quiet else Progress()
        return carry_out(client, options.model, options.version, plan, observer, interrupts)


def present(options: Options, result: RunResult, interrupts: Interrupts, *, as_json: bool) -> int:
    """Save and show a result, even when one of the files can't be written; the exit code."""
    problem = _save(options, result)  # first: a reader of the table may go away, as ``head`` does
    interrupts.release()
    if as_json:
        sys.stdout.write(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    else:
        for table in result_tables(result):
            show(table)
        for line in (*closing_lines(result), where_the_rest_is(result, options.html, options.output)):
            sys.stdout.write(f"{line}\n" if line else "")
    sys.stdout.flush()
    if problem is not None:
        raise problem
    if result.broken_thresholds:
        return THRESHOLD_EXIT
    return 0 if result.valid else 1


def plan_of(options: Options) -> Plan:
    """Read the options; :class:`UsageError` for what can't be right, before anything is sent."""
    by_number = options.warmup.isdecimal()
    target = options.target_latency
    return make_plan(
        concurrency=() if options.concurrency is None else parse_concurrencies(options.concurrency),
        rate=() if options.rate is None else parse_rates(options.rate),
        poisson=options.poisson,
        trace=options.trace,
        duration_s=None if options.duration is None else parse_duration(options.duration, "--duration"),
        requests=options.requests,
        warmup_s=0.0 if by_number else parse_duration(options.warmup, "--warmup"),
        warmup_requests=int(options.warmup) if by_number else None,
        data=LoadData(
            pictures=options.pictures,
            inputs=parse_assignments(options.inputs, "--input", "NAME=FILE.npy"),
            shapes=parse_assignments(options.shapes, "--shape", "NAME=3x224x224"),
            ranges=parse_assignments(options.ranges, "--input-range", "NAME=LOW:HIGH"),
            variants=options.variants,
        ),
        delivery=options.delivery,
        batch=options.batch,
        seed=options.seed,
        timeout_s=options.timeout,
        workers=options.workers,
        connections=options.connections,
        percentile=options.percentile,
        fail_if=options.fail_if,
        floor=options.floor,
        scenario=options.scenario,
        target_latency_ms=None if target is None else parse_duration(target, "--target-latency") * 1e3,
        metrics_url=options.metrics_url,
    )


def _check_files(options: Options) -> None:
    """A run of minutes must not end with a file that can't be written, or that is written over another."""
    flags: dict[str, str] = {}
    for flag in ("output", "csv", "html"):
        path = getattr(options, flag)
        if path is None:
            continue
        wrong = _wrong_with(path)
        if wrong:
            raise UsageError(f"--{flag} {path}: {wrong}", f"--{flag} takes the name of a file in a folder that exists")
        other = flags.setdefault(os.path.realpath(path), flag)
        if other != flag:
            raise UsageError(f"--{other} and --{flag} are both {path}", "give each a file of its own")


def _wrong_with(path: Path) -> str:
    """Why a result can't be put there; empty if it can."""
    try:
        if path.is_dir():
            return "a folder"
        if not is_ordinary(path):
            return "" if os.access(path, os.W_OK) else "it can't be written to"
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            return "its folder does not exist"
        if not os.access(folder, os.W_OK | os.X_OK):
            return "its folder can't be written to"
        if path.exists() and path.samefile("/dev/stdout"):
            return "that is where the tables go"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _save(options: Options, result: RunResult) -> ClientError | None:
    """Try every file, and what can't be written in its place among the temporary ones, so that a long run isn't lost.

    All that went wrong, as one error.
    """
    jobs: list[tuple[Path | None, Callable[[Path], None]]] = [
        (options.output, result.save),
        (options.csv, lambda path: write_text(path, perf_analyzer_csv(result), "--csv")),
        (options.html, lambda path: write_text(path, report_page(result.to_json()), "--html")),
    ]
    errors: list[ClientError] = []
    kept: list[str] = []
    for path, save in jobs:
        if path is None:
            continue
        try:
            save(path)
        except ClientError as error:
            errors.append(error)
            elsewhere = Path(tempfile.gettempdir(), f"{path.stem}-{os.getpid()}{path.suffix}")
            with contextlib.suppress(ClientError):
                save(elsewhere)
                kept.append(str(elsewhere))
    if not errors:
        return None
    hint = f"kept in {', '.join(kept)}" if kept else errors[0].hint
    return ClientError("; ".join(error.message for error in errors), hint)
