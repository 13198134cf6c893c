"""A run for people, as tables and sentences, and for scripts, as perf_analyzer's CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from client.load.result import Level, RunResult, ScenarioResult
from client.load.schedule import Load
from client.load.server_metrics import GpuUsage
from client.load.server_process import MemoryKind, ProcessUsage
from client.load.statistics import Estimate, Latency, Statistics
from client.report import Table
from client.text import printable, shortened

_CSV_SERVER: Final = (
    ("Network+Server Send/Recv", "network"),
    ("Server Queue", "queue_ms"),
    ("Server Compute Input", "compute_input_ms"),
    ("Server Compute Infer", "compute_infer_ms"),
    ("Server Compute Output", "compute_output_ms"),
)
_CSV_QUANTILES: Final = (0.50, 0.90, 0.95, 0.99)
_MEMORY: Final = {MemoryKind.PROPORTIONAL: "shared pages once (PSS)", MemoryKind.RESIDENT: "resident (RSS)"}
TWO_TIMES: Final = "response time counts from when a request was due, service time from when it was sent"
_MESSAGE: Final = 240
"""Characters of an error's message in its table; the document has all of it."""


def what_is_sent(variants: int, size: int) -> str:
    """So many different requests of ``size`` bytes, in words."""
    if variants == 1:
        return f"one request of {size:,} bytes again and again, which a cache may answer in the model's place"
    return f"{variants:,} different requests of {size:,} bytes in turn"


def milliseconds(value: float) -> str:
    """Three significant digits at least, and no more than microseconds."""
    return f"{value:,.3f}" if value < 10 else f"{value:,.2f}" if value < 100 else f"{value:,.1f}"


def count(number: float) -> str:
    """A rate: whole where it is large."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:,.1f}"


def result_tables(result: RunResult) -> Iterator[Table]:
    """Everything that a terminal shows at the end of a run."""
    several = len(result.levels) > 1
    if several:
        yield _overview(result)
    for level in result.levels:
        if not several:
            yield from _details(level, result)
        if level.statistics.errors:
            yield _errors(level.statistics, f"errors of {level.load}" if several else "errors")


def closing_lines(result: RunResult) -> Iterator[str]:
    """The floor, what a scenario gave and the verdicts."""
    if result.floor is not None:
        floor = result.floor
        yield (
            f"floor: against a server that does nothing this generator has p50 {milliseconds(floor.p50_ms)} ms, "
            f"p99 {milliseconds(floor.p99_ms)} ms, and makes {floor.throughput:,.0f} requests/s "
            f"at concurrency {floor.concurrency}"
        )
    if result.environment.server_unseen:
        yield f"note: {result.environment.server_unseen}"
    if result.scenario is not None:
        yield scenario_line(result.scenario)
    for level in result.levels:
        name = f"{level.load}: " if len(result.levels) > 1 else ""
        for note in level.notes:
            yield f"note: {name}{note}"
        for text in level.broken_thresholds:
            yield f"threshold: {name}{printable(text)}"
        if level.verdict.valid:
            yield f"{name}VALID"
        for reason in level.verdict.reasons:
            yield f"{name}INVALID: {printable(reason)}"


def where_the_rest_is(result: RunResult, page: Path | None, document: Path | None) -> str | None:
    """A line that tells where to find what the tables of several loads leave out; None where nothing is."""
    if len(result.levels) < 2:
        return None
    files = [printable(path) for path in (page, document) if path is not None]
    where = f"in {' and '.join(files)}" if files else "what --html FILE.html and --output FILE.json save"
    return (
        "each load's service time, other percentiles, intervals, parts of the mean response time, batches, and the "
        f"server's CPU and memory are {where}"
    )


def scenario_line(scenario: ScenarioResult) -> str:
    """A scenario's metric in a sentence."""
    found = f"none, {scenario.reason}" if scenario.value is None else f"{scenario.value:.6g} {scenario.unit}"
    rules = "; ".join(scenario.shortfalls)
    short = f"; not by MLPerf's rules: {rules}" if rules else "; duration and count are by MLPerf's rules"
    return f"scenario {scenario.name}: {scenario.metric}: {found}{short}"


def processes(number: int) -> str:
    """So many of them, in words."""
    return "1 process" if number == 1 else f"{number:,} processes"


def process_cells(usage: ProcessUsage) -> Iterator[tuple[str, str]]:
    """What the server's processes used, as pairs of a name and a text."""
    yield f"CPU of {usage.name}", f"{usage.cpu_s:.2f} s, {usage.cores:.2f} cores on average"
    mean, peak = usage.memory_mean_bytes / 1e6, usage.memory_peak_bytes / 1e6
    yield f"memory, {_MEMORY[usage.memory_kind]}", f"{mean:,.0f} MB on average, {peak:,.0f} MB at most"
    if usage.processes > 1:
        yield "of which", f"{processes(usage.processes)}: its own and its children, those of all of its models"


def gpu_cells(gpu: GpuUsage) -> Iterator[tuple[str, str]]:
    """What a GPU was used, likewise; what the server doesn't export is left out."""
    if gpu.utilization_mean is not None and gpu.utilization_peak is not None:
        yield f"utilisation of {gpu.uuid}", f"{gpu.utilization_mean:.0%} on average, {gpu.utilization_peak:.0%} at most"
    if gpu.memory_peak_bytes is not None:
        whole = f" of {gpu.memory_total_bytes / 1e6:,.0f} MB" if gpu.memory_total_bytes else ""
        yield "its memory", f"{gpu.memory_peak_bytes / 1e6:,.0f} MB at most{whole}"
    if gpu.power_mean_w is not None:
        yield "its power", f"{gpu.power_mean_w:.1f} W on average"
    if gpu.energy_j is not None:
        yield "its energy", f"{gpu.energy_j:,.0f} J"


def usage_rows(process: ProcessUsage | None, gpus: Iterable[GpuUsage]) -> list[tuple[str, str]]:
    """All that is known of what the server used."""
    cells = [*process_cells(process)] if process else []
    return cells + [cell for gpu in gpus for cell in gpu_cells(gpu)]


def _overview(result: RunResult) -> Table:
    batch = result.settings.batch
    items = ("inferences/s",) if batch > 1 else ()
    header = ("load", "requests/s", *items, "p50 ms", "p90 ms", "p99 ms", "max ms", "errors", "batch", "")
    rows = []
    for level in result.levels:
        statistics = level.statistics
        latency = statistics.response
        row = [str(level.load), count(statistics.throughput.value)]
        row += [count(statistics.throughput.value * batch) for _ in items]
        row += _quantile_cells(latency, (0.5, 0.9, 0.99)) if latency else ["-"] * 3
        row += [milliseconds(latency.max_ms) if latency else "-", f"{statistics.errors:,}"]
        row += [f"{level.server.mean_batch:.2f}" if level.server else "-"]
        rows.append((*row, "VALID" if level.verdict.valid else "INVALID"))
    notes = [f"{level.load}: {level.batching}" for level in result.levels if level.batching]
    align = "<" + ">" * (len(header) - 2) + "<"
    return Table("response time by load", header, tuple(rows), align, (*notes, *_support(result)))


def _details(level: Level, result: RunResult) -> Iterator[Table]:
    statistics = level.statistics
    if statistics.response is not None and statistics.service is not None:
        yield _latency_table(level, statistics.response, statistics.service, result)
    if level.split:
        total = sum(part.ms for part in level.split)
        rows = [(part.name, milliseconds(part.ms), f"{part.ms / total:.1%}") for part in level.split]
        rows.append(("mean response time", milliseconds(total), ""))
        yield Table("where the time goes", ("", "ms", ""), tuple(rows), "<>>")
    if level.server is not None and level.server.executions:
        executions = level.server.executions
        batches = [
            (str(b.size), f"{b.executions:,}", f"{b.executions / executions:.1%}", milliseconds(b.infer_ms))
            for b in level.server.batches
        ]
        header = ("batch size", "executions", "", "infer ms")
        yield Table("batches that the server made", header, tuple(batches), ">>>>", (level.batching or "",))
    used = usage_rows(level.usage.process, level.usage.gpus)
    if used:
        cells = tuple((printable(name), text) for name, text in used)
        yield Table("what the server used", ("", "until the last answer"), cells, "<<")


def _errors(statistics: Statistics, title: str) -> Table:
    kinds = [(kind.kind, f"{kind.count:,}", shortened(printable(kind.message), _MESSAGE)) for kind in statistics.kinds]
    notes = tuple(
        f"from {window.start_s:.2f} s to {window.end_s:.2f} s: {window.errors:,} errors"
        for window in statistics.error_windows[:10]
    )
    return Table(title, ("kind", "requests", "first message"), tuple(kinds), "<><", notes)


def _latency_table(level: Level, response: Latency, service: Latency, result: RunResult) -> Table:
    rows = [("min", milliseconds(response.min_ms), "", milliseconds(service.min_ms))]
    rows.append(("mean", *_with_interval(response.mean_ms), milliseconds(service.mean_ms.value)))
    rows.append(("std", milliseconds(response.stddev_ms), "", milliseconds(service.stddev_ms)))
    for first, second in zip(response.percentiles, service.percentiles, strict=True):
        name = first.name + ("" if first.supported else "*")
        rows.append((name, *_with_interval(first.ms), milliseconds(second.ms.value)))
    rows.append(("max", milliseconds(response.max_ms), "", milliseconds(service.max_ms)))
    statistics = level.statistics
    throughput, batch = statistics.throughput, result.settings.batch
    items = f", {count(throughput.value * batch)} inferences/s" if batch > 1 else ""
    rate = f"{count(throughput.value)} requests/s{rate_interval(throughput.low, throughput.high)}{items}"
    notes = (
        f"{rate}; {statistics.requests:,} requests, {statistics.errors:,} failed",
        TWO_TIMES,
        *_support(result),
    )
    return Table(str(level.load), ("ms", "response time", "95% interval", "service time"), tuple(rows), "<>>>", notes)


def rate_interval(low: float | None, high: float | None) -> str:
    """The confidence interval of a rate in brackets, if there is one."""
    return "" if low is None or high is None else f" (95%: {count(low)} to {count(high)})"


def _with_interval(estimate: Estimate) -> tuple[str, str]:
    if estimate.low is None or estimate.high is None:
        return milliseconds(estimate.value), "-"
    return milliseconds(estimate.value), f"{milliseconds(estimate.low)} .. {milliseconds(estimate.high)}"


def _quantile_cells(latency: Latency, quantiles: tuple[float, ...]) -> list[str]:
    chosen = [latency.percentile(quantile) for quantile in quantiles]
    return [milliseconds(entry.ms.value) + (" " if entry.supported else "*") for entry in chosen]


def _support(result: RunResult) -> tuple[str, ...]:
    weak = {
        entry.name: entry.requests_needed
        for level in result.levels
        if level.statistics.response is not None
        for entry in level.statistics.response.percentiles
        if not entry.supported
    }
    if not weak:
        return ()
    needs = ", ".join(f"{name} takes {needed:,}" for name, needed in weak.items())
    return (f"* too few requests to claim with 99% confidence: {needs}",)


def perf_analyzer_csv(result: RunResult) -> str:
    """The rows that perf_analyzer's ``-f`` writes, in its columns and order: microseconds, service time.

    As there, the server's columns are means of all that it counted, requests that failed or are another client's
    included; the network's is what is left of the mean service time, 0 at least; a trace has its mean rate; and levels
    of which nothing was answered have no row.  The server's columns are left out where it gave no statistics of any
    level, and empty for a level of which it gave none.
    """
    levels = [level for level in result.levels if level.statistics.service is not None]
    server = [name for name, _ in _CSV_SERVER] if any(level.server for level in levels) else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    load = "Request Rate" if any(level.load.open_loop for level in levels) else "Concurrency"
    percentiles = [f"p{q * 100:g} latency" for q in _CSV_QUANTILES]
    writer.writerow([load, "Inferences/Second", "Client Send", *server, "Client Recv", *percentiles])
    for level in levels:
        rate = f"{level.statistics.throughput.value * result.settings.batch:.6g}"
        writer.writerow([_csv_load(level.load), rate, *_csv_times(level, len(server))])
    return text.getvalue()


def _csv_load(load: Load) -> str:
    if load.concurrency is not None:
        return str(load.concurrency)
    if load.rate is not None:
        return f"{load.rate:g}"
    seconds = (load.trace_ns[-1] - load.trace_ns[0]) / 1e9
    return f"{(len(load.trace_ns) - 1) / seconds:g}" if seconds else "0"  # all at once: there is none


def _csv_times(level: Level, of_server: int) -> Iterator[str]:
    service, generator, server = level.statistics.service, level.generator, level.server
    times: list[float | None] = [generator.send_ms, *[None] * of_server, generator.receive_ms]
    if service is not None and server is not None:
        core = [getattr(server, name) for _, name in _CSV_SERVER[1:]]
        network = max(0.0, service.mean_ms.value - generator.send_ms - generator.receive_ms - sum(core))
        times[1:-1] = [network, *core]
    if service is not None:
        times += [service.percentile(q).ms.value for q in _CSV_QUANTILES]
    for ms in times:
        yield "" if ms is None else f"{ms * 1e3:.0f}"
