"""A result as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np

from client.load.histogram import bucket_middle, decode
from client.load.plots import COLOURS, Axis, Series, bar_chart, line_chart, linear_axis, log_axis, stacked_bar
from client.load.report import (
    TWO_TIMES,
    count,
    milliseconds,
    processes,
    rate_interval,
    scenario_line,
    usage_rows,
    what_is_sent,
)
from client.load.result import ScenarioResult, load_name
from client.load.schedule import Window
from client.load.server_metrics import GpuUsage
from client.load.server_process import ProcessUsage
from client.report import Table

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--paper:#fff;--card:#f6f8fa;--rule:#d1d9e0;
--good:#116329;--bad:#b31d28;--c0:#0969da;--c1:#bc4c00;--c2:#1a7f37;--c3:#8250df;--c4:#bf3989;--c5:#6e7781}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--card:#161b22;--rule:#3d444d;
--good:#3fb950;--bad:#f85149;--c0:#58a6ff;--c1:#f0883e;--c2:#3fb950;--c3:#bc8cff;--c4:#f778ba;--c5:#8b949e}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1100px;padding:1.2rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper)}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2rem 0 .4rem;padding-top:.8rem;border-top:1px solid var(--rule)}
p{margin:.4rem 0;max-width:46rem}.soft{color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
.valid{color:var(--good);font-weight:600}.invalid{color:var(--bad);font-weight:600}
.grid2{display:grid;margin-top:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:1rem;align-items:start}
figure,.card{margin:0;padding:.8rem;background:var(--card);border:1px solid var(--rule);border-radius:8px;
break-inside:avoid}
figcaption,.card h3{font-weight:600;font-size:1rem;margin:0 0 .3rem}
figure>svg,svg.split{width:100%;height:auto;display:block}
svg text{font-size:13px;fill:var(--soft)}.end{text-anchor:end}.middle{text-anchor:middle}
svg .label{fill:var(--ink)}svg .grid{stroke:var(--rule);stroke-width:1}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:6 4}
.dot,.bar,.swatch{fill:var(--c);background:var(--c)}.light{opacity:.5}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:.3rem 0 0;padding:0;font-size:.85rem}
.key{width:22px;height:8px;margin-right:.35rem}
.swatch{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:600}th:first-child,td:first-child{text-align:left}
table.words td{text-align:left;white-space:normal;overflow-wrap:anywhere}
ul{margin:.3rem 0;padding-left:1.2rem}
@media(max-width:520px){body{padding:.8rem}svg text{font-size:17px}table{font-size:.72rem}
th,td{padding:.25rem .15rem;white-space:normal}figure,.card{padding:.6rem}}
@media print{body{max-width:none;padding:0;font-size:11pt}.grid2{grid-template-columns:1fr 1fr}
h2,h2~p,h2~ul{break-after:avoid;break-inside:avoid}
.scroll{overflow:visible}table{font-size:8.5pt}th,td{padding:.15rem .25rem;white-space:normal}svg text{font-size:17px}
:root{--ink:#000;--soft:#444;--paper:#fff;--card:#fff;--rule:#bbb}}
"""

Document = Mapping[str, Any]
_CURVE: Final = (0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999)


def report_page(document: Document) -> str:
    """The page of a document that :meth:`RunResult.to_json` made."""
    model, settings = document["model"], document["settings"]
    title = f"{model['name']}, version {model['version']}"
    levels = document["levels"]
    body = [f"<h1>{escape(title)} under load</h1>", _verdict(document), _facts(document)]
    if len(levels) > 1:
        body += [_overview(levels, settings["batch"]), f'<div class="grid2">{_common_charts(levels)}</div>']
        body += [_level(level, settings["batch"]) for level in levels]
    else:
        body += [_level(level, settings["batch"], _common_charts(levels)) for level in levels]
    return _page(f"{title} under load", body)


def tables_page(title: str, tables: Sequence[Table]) -> str:
    """A page of tables as on a terminal, but what the first column says has lines of its own: a phone is narrow."""
    body = [f"<h1>{escape(title)}</h1>"]
    for table in tables:
        rows: list[list[str]] = []
        for first, *rest in table.rows:
            rows += [[escape(first)]] * bool(first) + [[escape(cell) for cell in rest]]
        notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in table.notes)
        body.append(f"<h2>{escape(table.title)}</h2>{_table(table.header[1:], rows)}{notes}")
    return _page(title, body)


def _page(title: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _verdict(document: Document) -> str:
    scenario = f"<p>{escape(scenario_line(ScenarioResult(**document['scenario'])))}</p>" if document["scenario"] else ""
    if document["valid"]:
        return f'<p><span class="valid">VALID</span></p>{scenario}'
    return f'<p><span class="invalid">INVALID</span>: the reasons are with each load below.</p>{scenario}'


def _facts(document: Document) -> str:
    settings, environment, floor = document["settings"], document["environment"], document["floor"]
    started = document["levels"][0]["started"] if document["levels"] else ""
    sent = what_is_sent(settings["variants"], settings["request_bytes"])
    lines = [
        f"{settings['url']} ({environment['server']}), {document['model']['platform']}; {started}",
        f"{sent} ({settings['data']}), batch {settings['batch']}, seed {settings['seed']}",
        f"each load: {Window(settings['duration_s'], settings['requests'])}; warm-up: {settings['warmup']}",
        f"sent {_way(settings)} by {processes(settings['workers'])} on {environment['cpus']} x {environment['cpu']}, "
        + environment["system"],
    ]
    if floor:
        lines.append(
            f"floor: against a server that does nothing the generator has p50 {milliseconds(floor['p50_ms'])} ms, "
            f"p99 {milliseconds(floor['p99_ms'])} ms, and makes {floor['throughput']:,.0f} requests/s "
            f"at concurrency {floor['concurrency']}"
        )
    if environment["server_unseen"]:
        lines.append(environment["server_unseen"])
    return "".join(f'<p class="soft">{escape(line)}</p>' for line in lines)


def _way(settings: Document) -> str:
    """How requests got to the server, in words."""
    way = "over HTTP" if settings["protocol"] == "http" else f"over gRPC to {settings['target']}"
    if settings["shared_memory"] != "none":
        way += f", tensors in shared memory ({settings['shared_memory']}),"
    if settings["compression"] != "none":
        way += f", compressed with {settings['compression']},"
    return way


def _overview(levels: Sequence[Document], batch: int) -> str:
    items = ("infer\N{SOFT HYPHEN}ences/s",) if batch > 1 else ()
    head = ("re\N{SOFT HYPHEN}quests/s", *items, "p50 ms", "p90 ms", "p99 ms", "max ms", "errors", "mean batch")
    rows: list[list[str]] = []
    for level in levels:
        latency, server = level["response_time"], level["server"]
        quantiles = {entry["name"]: entry for entry in latency["percentiles"]} if latency else {}
        rate = level["throughput_requests_per_s"]["value"]
        mean = f"{server['inferences'] / server['executions']:.2f}" if server and server["executions"] else "-"
        rows.append([f"{escape(load_name(level['load']))} {_badge(level)}"])
        row = [count(rate), *(count(rate * batch) for _ in items)]
        row += [_percentile(quantiles.get(name)) for name in ("p50", "p90", "p99")]
        row += [milliseconds(latency["max_ms"]) if latency else "-", f"{level['errors']:,}", mean]
        rows.append(row)
    return _table(head, rows)


def _common_charts(levels: Sequence[Document]) -> str:
    charts = []
    answered = [level for level in levels if level["response_time"]]
    if len(answered) > 1:
        charts.append(_latency_by_throughput(answered))
    if answered:
        charts.append(_percentile_curves(answered))
    return "".join(charts)


def _latency_by_throughput(levels: Sequence[Document]) -> str:
    rates = [level["throughput_requests_per_s"]["value"] for level in levels]
    series = [
        Series(name, [(rate, _value(level, name)) for rate, level in zip(rates, levels, strict=True)], colour=colour)
        for colour, name in enumerate(("p50", "p90", "p99"))
    ]
    values = [value for line in series for _, value in line.points if value]
    y = log_axis("response time, ms", min(values), max(values))
    return line_chart("Latency against throughput", series, linear_axis("requests/s", max(rates)), y, dots=True)


def _percentile_curves(levels: Sequence[Document]) -> str:
    """Latency over 1 / (1 - quantile), so that each further nine takes the same room."""
    series = []
    several = len(levels) > 1
    for index, level in enumerate(levels):
        name = load_name(level["load"]) if several else "response time"
        series.append(Series(name, _curve(level["response_time"]), dashed=index >= COLOURS, colour=index))
        if not several:
            series.append(Series("service time", _curve(level["service_time"]), dashed=True, colour=1))
    values = [value for line in series for _, value in line.points if value]
    most = max(at for line in series for at, _ in line.points)
    nines = [(10.0**n, text) for n, text in enumerate(("0", "p90", "p99", "p99.9", "p99.99", "p99.999"))]
    ticks = [tick for tick in nines if tick[0] < most * 9.99]
    y = log_axis("ms", min(values), max(values))
    title = "Response time by percentile" if several else "Latency by percentile"
    return line_chart(title, series, Axis("percentile", ticks, True), y)


def _curve(latency: Document) -> list[tuple[float, float | None]]:
    """Up to the last quantile that a request of its own stands for."""
    counts = decode(latency["hdr_histogram_ns"])
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    points: list[tuple[float, float | None]] = []
    for q in _CURVE:
        if (1 - q) * total < 1 and q > 0.5:
            break
        index = np.searchsorted(cumulative, max(1, int(np.ceil(q * total))))
        points.append((1 / (1 - q), float(bucket_middle(np.array([index]))[0]) / 1e6))
    return points


def _level(level: Document, batch: int, more: str = "") -> str:
    """The findings of a level and its cards, with ``more`` of them."""
    parts = [f"<h2>{escape(load_name(level['load']))} {_badge(level)}</h2>"]
    rate = level["throughput_requests_per_s"]
    interval = rate_interval(rate["low"], rate["high"])
    items = f", {count(rate['value'] * batch)} inferences/s" if batch > 1 else ""
    counts = f"{level['requests']:,} requests, {level['errors']:,} failed"
    parts.append(f"<p>{count(rate['value'])} requests/s{interval}{items}; {counts}</p>")
    findings = [("INVALID", text) for text in level["reasons"]]
    findings += [("threshold", text) for text in level["broken_thresholds"]]
    if findings:
        entries = (f'<li><span class="invalid">{kind}</span>: {escape(text)}</li>' for kind, text in findings)
        parts.append(f"<ul>{''.join(entries)}</ul>")
    if level["dynamic_batching"]:
        parts.append(f"<p>{escape(level['dynamic_batching'])}</p>")
    parts += [f'<p class="soft">note: {escape(text)}</p>' for text in level["notes"]]
    cards = [_latency_card(level), more, _timeline(level), _split(level), _batches(level)]
    cards += [_usage(level), _errors(level)]
    return "".join([*parts, f'<div class="grid2">{"".join(cards)}</div>'])


def _latency_card(level: Document) -> str:
    response, service = level["response_time"], level["service_time"]
    if not response:
        return ""
    both = (response, service)
    rows = [["min", *(milliseconds(latency["min_ms"]) for latency in both)]]
    rows.append(["mean", *(_with_interval(latency["mean_ms"]) for latency in both)])
    rows.append(["std", *(milliseconds(latency["stddev_ms"]) for latency in both)])
    for first, second in zip(response["percentiles"], service["percentiles"], strict=True):
        rows.append([first["name"], *(_percentile(entry, _with_interval) for entry in (first, second))])
    rows.append(["max", *(milliseconds(latency["max_ms"]) for latency in both)])
    notes = [f"{TWO_TIMES}; in brackets: 95% intervals"]
    if any(not entry["supported"] for entry in response["percentiles"]):
        notes.append("* too few requests to claim it with 99% confidence")
    table = _table(("ms", "response time", "service time"), rows)
    return f'<div class="card"><h3>Latency</h3>{table}{"".join(f"<p class=soft>{note}</p>" for note in notes)}</div>'


def _timeline(level: Document) -> str:
    slices = level["timeline"]
    values = [entry[name] for entry in slices for name in ("p50_ms", "p99_ms") if entry[name]]
    if not values:
        return ""
    series = [
        Series("p99", [(entry["start_s"], entry["p99_ms"]) for entry in slices], colour=1),
        Series("p50", [(entry["start_s"], entry["p50_ms"]) for entry in slices], colour=0),
    ]
    x = linear_axis("seconds", level["window_s"])
    return line_chart("Response time over time", series, x, log_axis("ms", min(values), max(values)))


def _split(level: Document) -> str:
    parts = [(part["name"], part["ms"]) for part in level["mean_response_split"]]
    if not parts:
        return ""
    total = sum(ms for _, ms in parts)
    rows = [
        [
            f'<span class="swatch c{index % COLOURS}{" light" if index >= COLOURS else ""}"></span>{escape(name)}',
            milliseconds(ms),
            f"{ms / total:.1%}",
        ]
        for index, (name, ms) in enumerate(parts)
    ]
    rows.append(["mean response time", milliseconds(total), ""])
    table = _table(("", "ms", ""), rows)
    return f'<div class="card"><h3>Where the time goes</h3>{stacked_bar(parts)}{table}</div>'


def _batches(level: Document) -> str:
    if not level["server"] or not level["server"]["batches"]:
        return ""
    bars = [(str(entry["size"]), float(entry["executions"])) for entry in level["server"]["batches"]]
    return bar_chart("Batches that the server made", bars, "items in a batch", "executions")


def _usage(level: Document) -> str:
    process = ProcessUsage(**level["server_process"]) if level["server_process"] else None
    rows = usage_rows(process, [GpuUsage(**gpu) for gpu in level["gpus"]])
    if not rows:
        return ""
    lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<div class="card"><h3>What the server used</h3><table class="words">{lines}</table></div>'


def _errors(level: Document) -> str:
    if not level["error_kinds"]:
        return ""
    rows = [
        [f'<span class="invalid">{escape(kind["kind"])}</span>', f"{kind['count']:,}"] for kind in level["error_kinds"]
    ]
    messages = "".join(
        f'<p class="soft">{escape(kind["kind"])}: {escape(kind["message"])}</p>' for kind in level["error_kinds"]
    )
    windows = "".join(
        f"<li>from {window['start_s']:.2f} s to {window['end_s']:.2f} s: {window['errors']:,} errors</li>"
        for window in level["error_windows"][:20]
    )
    return f'<div class="card"><h3>Errors</h3>{_table(("kind", "requests"), rows)}{messages}<ul>{windows}</ul></div>'


def _value(level: Document, name: str) -> float | None:
    values = (entry["ms"]["value"] for entry in level["response_time"]["percentiles"] if entry["name"] == name)
    return next(values, None)


def _percentile(entry: Document | None, text: Callable[[Document], str] = lambda ms: milliseconds(ms["value"])) -> str:
    if entry is None:
        return "-"
    return text(entry["ms"]) + ("" if entry["supported"] else "*")


def _with_interval(ms: Document) -> str:
    if ms["low"] is None or ms["high"] is None:
        return milliseconds(ms["value"])
    return f"{milliseconds(ms['value'])} ({milliseconds(ms['low'])} to {milliseconds(ms['high'])})"


def _badge(level: Document) -> str:
    return '<span class="valid">VALID</span>' if level["valid"] else '<span class="invalid">INVALID</span>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already; one alone is the heading of the rows after it."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    heading = f'<tr><th colspan="{len(head)}">'
    lines = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" if len(row) > 1 else f"{heading}{row[0]}</th></tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
