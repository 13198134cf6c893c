"""One whole run: from a model's name to its result."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from client.client import Client
from client.errors import ClientError
from client.load.bodies import Bodies, LoadData, make_inputs
from client.load.delivery import Delivery, Protocol
from client.load.environment import describe_environment, describe_model
from client.load.floor import Floor, measure_floor
from client.load.interrupts import Interrupts
from client.load.level import Subject, measure_level
from client.load.observer import Observer
from client.load.plan import DEFAULT_TIMEOUT_S, DEFAULT_WARMUP_S, Plan, make_plan
from client.load.prepare import Prepared, prepare
from client.load.records import Sample
from client.load.result import Level, RunResult, Settings
from client.load.scenario import Scenario, batch_of, judge_scenario
from client.load.schedule import DEFAULT_CONNECTIONS, Load
from client.load.server_usage import Whereabouts, found_anew, grpc_port, locate
from client.load.target import inference_url, open_client, resolve
from client.load.workers import Workers
from client.metadata import ModelMetadata
from client.transport import Url


def run_load(
    model: str | None = None,
    *,
    version: str = "",
    url: str | None = None,
    concurrency: int | Sequence[int] = (),
    rate: float | Sequence[float] = (),
    poisson: bool = False,
    trace: Path | str | Sequence[float] | None = None,
    duration_s: float | None = None,
    requests: int | None = None,
    warmup_s: float = DEFAULT_WARMUP_S,
    warmup_requests: int | None = None,
    data: LoadData | None = None,
    delivery: Delivery | None = None,
    batch: int | None = None,
    seed: int = 0,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    workers: int | None = None,
    connections: int = DEFAULT_CONNECTIONS,
    percentile: float | None = None,
    fail_if: Sequence[str] = (),
    floor: bool = True,
    scenario: str | None = None,
    target_latency_ms: float | None = None,
    metrics_url: str | None = None,
) -> RunResult:
    """Put a model under load and measure it.

    ::

        result = client.run_load("resnet50", concurrency=[1, 8], duration_s=10)
        print(result.levels[0].statistics.response.percentile(0.99).ms)

    Each ``concurrency`` is a closed loop with that many requests in flight; each ``rate`` an open loop of
    requests a second, of which ``connections`` may be in flight; ``trace`` has the seconds at which to send, or is a
    file of them.  Without any, concurrency 1.  A level ends after ``duration_s`` (10 s if ``requests`` isn't given
    either) or ``requests``; before it come ``warmup_requests``, or else ``warmup_s``.  Random inputs are sent unless
    ``data`` says otherwise.  The run has to be able to claim ``percentile`` (99, or the scenario's).  ``scenario`` is
    one of MLPerf's (see :mod:`client.load.scenario`), of 600 s a level.

    Raises :class:`client.ClientError` when the run can't start, :class:`client.UsageError` for arguments that can't
    be right.  What goes wrong later is part of the result.
    """
    plan = make_plan(
        concurrency=concurrency,
        rate=rate,
        poisson=poisson,
        trace=trace,
        duration_s=duration_s,
        requests=requests,
        warmup_s=warmup_s,
        warmup_requests=warmup_requests,
        data=data,
        delivery=delivery,
        batch=batch,
        seed=seed,
        timeout_s=timeout_s,
        workers=workers,
        connections=connections,
        percentile=percentile,
        fail_if=fail_if,
        floor=floor,
        scenario=scenario,
        target_latency_ms=target_latency_ms,
        metrics_url=metrics_url,
    )
    with Interrupts() as interrupts, open_client(url, plan.delivery, plan.timeout_s) as client:
        return carry_out(client, model, version, plan, Observer(), interrupts)


def carry_out(
    client: Client, name: str | None, version: str, plan: Plan, observer: Observer, interrupts: Interrupts
) -> RunResult:
    """Carry out a plan; a run that is interrupted, or loses a worker, is a result too, of the levels until then."""
    with contextlib.ExitStack() as held:
        return _carry_out(client, name, version, plan, observer, interrupts, held)


def _carry_out(
    client: Client,
    name: str | None,
    version: str,
    plan: Plan,
    observer: Observer,
    interrupts: Interrupts,
    held: contextlib.ExitStack,
) -> RunResult:
    model = client.metadata(name or client.default_model(), version)
    config = client.configuration(model.name, model.version)
    inputs = make_inputs(model, plan.data, _batch(model, plan), plan.seed)
    family, address = resolve(client.address)
    where = locate(client.address, family, str(address[0]), client.address.port, plan.metrics_url)
    plan = replace(plan, delivery=_with_grpc_url(plan.delivery, client.address, where))
    prepared = held.enter_context(prepare(client, model, inputs, plan.delivery, plan.timeout_s, _most_in_flight(plan)))
    bodies = prepared.bodies
    described = describe_model(model, config, where), describe_environment(client, where)
    observer.run_started(model, client.url, plan, bodies)
    count = plan.workers or default_workers(plan.loads)
    levels: list[Level] = []
    sample: Sample | None = None
    with Workers(prepared.setup, count, interrupts) as workers:
        subject = Subject(client, model, config, plan, prepared, workers, observer, interrupts)
        for index, load in enumerate(plan.loads):
            if index:
                where = found_anew(where, family, str(address[0]), client.address.port)
            level, seen = measure_level(subject, load, where)
            levels.append(level)
            sample = sample or seen
            observer.level_ended(level)
            if level.generator.interrupted or level.generator.lost_workers:
                break
    if interrupts.count and not any(level.statistics.requests for level in levels):
        raise KeyboardInterrupt
    floor = None
    if plan.floor and sample and not interrupts.count:
        with contextlib.suppress(ClientError):  # a run is worth more than its floor
            floor = interrupts.dispensable(partial(_floor, plan, prepared, sample, count))
    return RunResult(
        settings=_settings(client, plan, bodies, count),
        model=described[0],
        environment=described[1],
        floor=floor,
        levels=tuple(levels),
        thresholds=plan.thresholds,
        scenario=judge_scenario(plan.scenario, levels, bodies.batch, plan.window.seconds) if plan.scenario else None,
    )


def _with_grpc_url(delivery: Delivery, url: Url, where: Whereabouts) -> Delivery:
    """The same with the port that the server was started with, where that can be seen and no other is given."""
    port = grpc_port(where)
    if port is None or delivery.protocol is not Protocol.GRPC or delivery.grpc_url is not None:
        return delivery
    return replace(delivery, grpc_url=str(Url(url.scheme, url.host, port)))


def _batch(model: ModelMetadata, plan: Plan) -> int | None:
    """Items of a request; None where arrays are sent as they are."""
    if plan.scenario is None or (plan.scenario.scenario is Scenario.OFFLINE and plan.data.inputs):
        return plan.batch
    return batch_of(plan.scenario.scenario, plan.batch, model.max_batch_size)


def default_workers(loads: Sequence[Load]) -> int:
    """A process carries some 20,000 requests/s; more of them than a quarter of the cores would press the server."""
    most = max(load.concurrency or DEFAULT_CONNECTIONS for load in loads)
    return max(1, min(4, (os.cpu_count() or 1) // 4, most))


def _most_in_flight(plan: Plan) -> int:
    return max(load.concurrency or plan.max_connections for load in plan.loads)


def _floor(plan: Plan, prepared: Prepared, sample: Sample, workers: int) -> Floor | None:
    if prepared.setup.tls is not None:
        return None  # the server that does nothing has no certificate, and without TLS it would tell another story
    most = max(load.concurrency or 16 for load in plan.loads)
    return measure_floor(prepared.setup, sample, most, workers)


def _settings(client: Client, plan: Plan, bodies: Bodies, workers: int) -> Settings:
    return Settings(
        url=client.url,
        target=str(inference_url(client.address, plan.delivery)),
        protocol=plan.delivery.protocol.value,
        shared_memory=plan.delivery.shared_memory.value,
        compression=plan.delivery.compression.value,
        batch=bodies.batch,
        data=bodies.source,
        variants=len(bodies.requests),
        request_bytes=sum(map(len, bodies.requests)) // len(bodies.requests),
        requests_sha256=bodies.sha256,
        duration_s=plan.window.seconds,
        requests=plan.window.requests,
        warmup=str(plan.warmup or "none"),
        timeout_s=plan.timeout_s,
        workers=workers,
        max_connections=plan.max_connections,
        seed=plan.seed,
        percentile=plan.percentile,
    )
