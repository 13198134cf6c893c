"""One level of a run: warmed up, measured, held to the server's account and judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final

import numpy as np

from client.client import Client
from client.errors import ClientError
from client.load.account import STARTED_ANEW, Account, reconcile
from client.load.check import wrong_answers
from client.load.interrupts import Interrupts
from client.load.observer import Observer
from client.load.plan import Plan
from client.load.prepare import Prepared
from client.load.records import WAITED, Outcome, Sample
from client.load.result import Level
from client.load.schedule import Load, Window
from client.load.server_statistics import Batching, Sent, explain_batching
from client.load.server_usage import ServerUsage, Watch, Whereabouts
from client.load.statistics import Statistics, summarise
from client.load.verdict import Generator, judge
from client.load.workers import PhaseResult, Workers
from client.metadata import ModelMetadata

_READINGS: Final = 10
_BETWEEN_READINGS_S: Final = 0.02


@dataclass(frozen=True)
class Subject:
    """What all levels of a run are measured on, and with."""

    client: Client
    model: ModelMetadata
    config: Mapping[str, Any]
    plan: Plan
    prepared: Prepared
    workers: Workers
    observer: Observer
    interrupts: Interrupts


def measure_level(subject: Subject, load: Load, where: Whereabouts) -> tuple[Level, Sample | None]:
    """Warm up, wait until nothing is in flight, measure, wait again; the server's counters are read in between.

    The level, and one of its answers.
    """
    plan = subject.plan
    window = Window(0.0, plan.window.requests or len(load.trace_ns)) if load.trace_ns else plan.window
    warmup = _warm_up(subject, load)
    read = partial(subject.interrupts.dispensable, partial(_counters, subject))
    before = None if warmup.broken_off else read()
    subject.observer.level_started(load, window)
    started = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    watch = Watch(where)
    phase = PhaseResult(interrupted=warmup.interrupted, lost_workers=warmup.lost_workers)
    if not warmup.broken_off:
        with watch:
            phase = _press(subject, load, window)
    after = None if warmup.broken_off else read()
    last_s = (int(phase.store.done.max()) - phase.start_ns) / 1e9 if len(phase.store) else 0.0
    statistics = _statistics(phase, load, window)
    anew = watch.server_ended and after is not None
    account = Account(notes=(STARTED_ANEW,)) if anew else reconcile(before, after, statistics, phase, _timeouts(warmup))
    server = account.server
    sent = Sent(
        batch=subject.prepared.bodies.batch,
        in_flight=load.concurrency or plan.max_connections,
        seconds=max(statistics.window_s, last_s),
        others=account.others,
    )
    generator = _generator(statistics, phase, subject)
    level = Level(
        load=load,
        started=started,
        statistics=statistics,
        server=server,
        split=account.split,
        batching=explain_batching(server, Batching.of(subject.config), sent) if server else None,
        generator=generator,
        verdict=judge(statistics, generator, plan.percentile),
        broken_thresholds=tuple(filter(None, (entry.broken_by(statistics) for entry in plan.thresholds))),
        notes=account.notes,
        usage=ServerUsage() if watch.server_ended or server is None else watch.usage,
    )
    return level, next(iter(phase.samples), None)


def _warm_up(subject: Subject, load: Load) -> PhaseResult:
    plan, workers = subject.plan, subject.workers
    if plan.warmup is None:
        return PhaseResult()
    return workers.run(load.phases(len(workers), plan.warmup, plan.seed + 1, plan.max_connections))


def _press(subject: Subject, load: Load, window: Window) -> PhaseResult:
    plan, workers, observer = subject.plan, subject.workers, subject.observer
    phases = load.phases(len(workers), window, plan.seed, plan.max_connections)
    return workers.run(phases, observer.records, on_waiting=observer.waiting)


def _statistics(phase: PhaseResult, load: Load, window: Window) -> Statistics:
    cut_short = phase.interrupted or window.requests is not None or not window.seconds
    duration_ns = 0 if cut_short else round(window.seconds * 1e9)
    return summarise(phase.store, phase.start_ns, duration_ns, phase.messages, open_loop=load.open_loop)


def _generator(statistics: Statistics, phase: PhaseResult, subject: Subject) -> Generator:
    prepared = subject.prepared
    wrong, first = wrong_answers(phase.samples, grpc=prepared.setup.grpc, places=prepared.places)
    requests, answers = max(1, statistics.requests), max(1, statistics.requests - statistics.errors)
    return Generator(
        workers=len(subject.workers),
        connections=sum(end.connections for end in phase.ends),
        cpu=max((end.cpu_ns / end.wall_ns for end in phase.ends), default=0.0),
        cpu_us_per_request=sum(end.cpu_ns for end in phase.ends) / requests / 1e3,
        send_ms=sum(end.send_ns for end in phase.ends) / requests / 1e6,
        receive_ms=sum(end.receive_ns for end in phase.ends) / answers / 1e6,
        unsent=sum(end.unsent for end in phase.ends),
        interrupted=phase.interrupted,
        lost_workers=phase.lost_workers,
        wrong_answers=wrong,
        wrong_answer=first,
    )


def _timeouts(phase: PhaseResult) -> int:
    return int(np.count_nonzero(phase.store.status & ~np.uint8(WAITED) == Outcome.TIMEOUT))


def _counters(subject: Subject) -> dict[str, Any] | None:
    """The server's counters, when two readings agree: Triton counts a request shortly after it has answered it."""
    client, model = subject.client, subject.model
    try:
        counters = client.raw_statistics(model.name, model.version)
        for _ in range(_READINGS):
            time.sleep(_BETWEEN_READINGS_S)
            earlier, counters = counters, client.raw_statistics(model.name, model.version)
            if counters == earlier:
                break
    except ClientError:
        return None  # the server may be down for a while; that is a finding, not a reason to stop
    return counters
