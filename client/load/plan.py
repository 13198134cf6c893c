"""What a run is to do: asked for on the command line or by ``run_load``, checked here for both."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.errors import UsageError
from client.load.bodies import LoadData
from client.load.delivery import Delivery
from client.load.scenario import MIN_DURATION_S, Asked, loads_of, read_scenario
from client.load.schedule import DEFAULT_CONNECTIONS, Load, Window, read_trace, trace_of
from client.load.statistics import QUANTILES
from client.load.verdict import Threshold
from client.transport import MAX_S

DEFAULT_DURATION_S: Final = 10.0
DEFAULT_WARMUP_S: Final = 1.0
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_WINDOW: Final = Window(DEFAULT_DURATION_S)
DEFAULT_WARMUP: Final = Window(DEFAULT_WARMUP_S)
MAX_CONCURRENCY: Final = 10_000
MAX_RATE: Final = 1e6
MAX_WORKERS: Final = 256
MAX_CONNECTIONS: Final = 20_000
_SHORTEST_S: Final = 1e-3
_LARGEST: Final = 2**53
"""Of a whole number in JSON that every reader keeps (RFC 8259, section 6)."""


@dataclass(frozen=True)
class Plan:
    """What a run does; ``window`` and ``warmup`` hold for every level."""

    loads: tuple[Load, ...]
    window: Window = DEFAULT_WINDOW
    warmup: Window | None = DEFAULT_WARMUP
    data: LoadData = field(default_factory=LoadData)
    delivery: Delivery = field(default_factory=Delivery)
    batch: int | None = None
    seed: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    workers: int | None = None
    max_connections: int = DEFAULT_CONNECTIONS
    percentile: float = 0.99
    thresholds: tuple[Threshold, ...] = ()
    floor: bool = True
    scenario: Asked | None = None
    metrics_url: str | None = None


def make_plan(
    *,
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
) -> Plan:
    """Read what :func:`client.run_load` is asked for; :class:`UsageError` for what can't be right."""
    concurrencies = [_whole("--concurrency", level, 1, MAX_CONCURRENCY) for level in _listed(concurrency)]
    rates = [_number("--rate", level, 0.0, MAX_RATE) for level in _listed(rate)]
    asked = _scenario(scenario, target_latency_ms, other_pace=poisson or trace is not None)
    window = Window(
        0.0 if duration_s is None else _number("--duration", duration_s, 0.0, MAX_S),
        None if requests is None else _whole("--requests", requests, 1),
    )
    if trace is not None and duration_s is not None:
        raise UsageError("--trace ends with its last request, not after --duration", "leave --duration out")
    if not window.seconds and window.requests is None and trace is None:
        window = Window(MIN_DURATION_S if asked else DEFAULT_DURATION_S)
    return Plan(
        loads=loads_of(asked, concurrencies, rates) if asked else _loads(concurrencies, rates, poisson, trace),
        window=window,
        warmup=_warmup(warmup_s, warmup_requests),
        data=data or LoadData(),
        delivery=delivery or Delivery(),
        batch=None if batch is None else _whole("--batch", batch, 1),
        seed=_whole("--seed", seed, 0),
        timeout_s=_number("--timeout", timeout_s, _SHORTEST_S, MAX_S),
        workers=None if workers is None else _whole("--workers", workers, 1, MAX_WORKERS),
        max_connections=_whole("--connections", connections, 1, MAX_CONNECTIONS),
        percentile=_quantile(percentile, asked),
        thresholds=tuple(map(Threshold.parse, [fail_if] if isinstance(fail_if, str) else fail_if)),
        floor=floor,
        scenario=asked,
        metrics_url=metrics_url,
    )


def _loads(
    concurrencies: list[int], rates: list[float], poisson: bool, trace: Path | str | Sequence[float] | None
) -> tuple[Load, ...]:
    given = {"--concurrency": concurrencies, "--rate": rates, "--trace": trace is not None}
    kinds = [flag for flag, there in given.items() if there]
    if len(kinds) > 1:
        raise UsageError(f"{kinds[0]} and {kinds[1]} can't go together", "a run is one or the other: leave one out")
    if poisson and not rates:
        raise UsageError("--poisson needs a rate", "--rate 100 --poisson")
    if trace is not None:
        return (read_trace(Path(trace)) if isinstance(trace, Path | str) else trace_of(trace),)
    if rates:
        return tuple(Load(rate=rate, poisson=poisson) for rate in rates)
    return tuple(Load(concurrency=level) for level in concurrencies or [1])


def _scenario(name: str | None, target_ms: float | None, *, other_pace: bool) -> Asked | None:
    if target_ms is not None:
        target_ms = _number("--target-latency", target_ms, 0.0, MAX_S * 1e3)
    if name is None:
        if target_ms is not None:
            raise UsageError("--target-latency is for --scenario server", "--fail-if 'p99>15ms' sets a limit elsewhere")
        return None
    if other_pace:
        raise UsageError(f"--scenario {name} has its own way to send requests", "leave --poisson and --trace out")
    return Asked(read_scenario(name), target_ms)


def _warmup(seconds: float, requests: int | None) -> Window | None:
    """By number where one is given; 0 of either is none."""
    if requests is not None:
        count = _whole("--warmup", requests, 0)
        return Window(requests=count) if count else None
    return None if seconds == 0 else Window(_number("--warmup", seconds, 0.0, MAX_S))


def _quantile(percentile: float | None, asked: Asked | None) -> float:
    if percentile is None:
        return asked.scenario.quantile if asked else Plan.percentile
    quantile = round(_number("--percentile", percentile, 0.0, 100.0) / 100, 6)
    if quantile not in QUANTILES:
        raise UsageError(
            f"--percentile {percentile:g} is not measured", f"one of {', '.join(f'{q * 100:g}' for q in QUANTILES)}"
        )
    return quantile


def _listed(levels: object) -> list[object]:
    return list(levels) if isinstance(levels, Iterable) and not isinstance(levels, str | bytes) else [levels]


def _whole(flag: str, value: object, least: int, most: int = _LARGEST) -> int:
    takes = f"{flag} takes a whole number, {least:,} or more" + ("" if most == _LARGEST else f", up to {most:,}")
    whole = None if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)
    if whole is None or not least <= whole <= most:
        raise UsageError(f"{flag} {value!r} can't be", takes)
    return whole


def _number(flag: str, value: object, least: float, most: float) -> float:
    """``value`` as a float from ``least`` to ``most``; 0 is none."""
    takes = f"{flag} takes a number, {f'{least:g} or more' if least else 'more than 0'}, up to {most:,.0f}"
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if not least <= number <= most or not number:
        raise UsageError(f"{flag} {value!r} can't be", takes)
    return number
