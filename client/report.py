"""Results for people (a table on a terminal, plain text otherwise) and for programs (JSON)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.exchange import LatencyReport
from client.latency import LatencySummary, samples_needed
from client.metadata import ModelMetadata, format_shape
from client.tensors import Array
from client.text import printable, shortened
from client.topk import Classification

_STAGES: Final = ("preprocess", "request", "postprocess")
_SERVER: Final = {
    "queue": "queue_ns",
    "compute_input": "compute_input_ns",
    "compute_infer": "compute_infer_ns",
    "compute_output": "compute_output_ns",
}
_WHOLE: Final = 11
"""Characters of a word that a narrow terminal doesn't break: concurrency."""

_REST: Final = "network_and_rest"


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; ``align`` has one of ``<`` and ``>`` for each column."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    notes: tuple[str, ...] = ()


def show(table: Table) -> None:
    """Write a table to stdout: with rich on a terminal, else as plain aligned text."""
    if sys.stdout.isatty():
        _show_rich(table)
    else:
        sys.stdout.write("\n".join(_plain_lines(table)) + "\n\n")
        sys.stdout.flush()


def classes_table(title: object, classes: Sequence[Classification]) -> Table:
    """The best classes of one picture."""
    labelled = any(entry.label is not None for entry in classes)
    rows = [
        (f"{entry.score:.4f}", str(entry.index), *([printable(entry.label or "")] if labelled else []))
        for entry in classes
    ]
    header = ("score", "class", "label") if labelled else ("score", "class")
    return Table(printable(title), header, tuple(rows), ">><"[: len(header)])


def tensors_table(
    title: object, model: ModelMetadata, outputs: Mapping[str, Array], saved: Mapping[str, Path]
) -> Table:
    """A short view of each output."""
    rows = [
        (printable(name), _datatype(model, name), format_shape(array.shape), view(array))
        for name, array in outputs.items()
    ]
    notes = tuple(f"saved as {printable(path)}" for path in saved.values())
    return Table(printable(title), ("output", "datatype", "shape", "values"), tuple(rows), "<<<<", notes)


def latency_tables(report: LatencyReport, noun: str) -> tuple[Table, ...]:
    """Mean latency of each stage with the server's parts of a request, and how several requests differ.

    ``noun`` is what an item is.  The tables are narrow enough for 60 columns.
    """
    several = report.request.count > 1
    rows: list[tuple[str, ...]] = []
    for stage in _STAGES:
        rows.append((stage, _ms(getattr(report, stage).mean_ns)))
        if stage == "request":
            rows += [(_part(name), _ms(ns)) for name, ns in server_parts(report).items()]
    title = f"latency of {_count(report.request.count, 'request')} with {_count(report.items, noun)}"
    header = ("", "mean ms" if several else "ms")
    stages = Table(title, header, tuple(rows), "<>", _server_notes(report))
    return (stages, _spread_table(report, noun)) if several else (stages,)


def server_parts(report: LatencyReport) -> dict[str, float]:
    """Mean nanoseconds of a request in each of the server's stages, and outside of them."""
    server = report.server
    if server is None or server.requests <= 0:
        return {}
    parts = {name: getattr(server, field) / server.requests for name, field in _SERVER.items()}
    rest = report.request.mean_ns - sum(parts.values())
    if report.others == 0 and rest >= 0:
        parts[_REST] = rest
    return parts


def view(array: Array, limit: int = 6) -> str:
    """The first values of an array, in row-major order."""
    flat = array.reshape(-1)
    values = ", ".join(_value(value) for value in flat[:limit])
    more = f", ... {flat.size - limit} more" if flat.size > limit else ""
    return f"{values}{more}"


def classes_json(classes: Sequence[Classification]) -> list[dict[str, Any]]:
    return [{"index": c.index, "score": _finite(c.score), "label": c.label} for c in classes]


def tensors_json(
    model: ModelMetadata, outputs: Mapping[str, Array], saved: Mapping[str, Path], limit: int = 8
) -> list[dict[str, Any]]:
    """Outputs with their first values; whole arrays are what ``--output-dir`` is for."""
    return [
        {
            "name": name,
            "datatype": _datatype(model, name),
            "shape": list(array.shape),
            "first_values": [_json_value(value) for value in array.reshape(-1)[:limit]],
            "saved_as": str(saved[name]) if name in saved else None,
        }
        for name, array in outputs.items()
    ]


def latency_json(report: LatencyReport) -> dict[str, Any]:
    """Milliseconds of each stage; percentiles that the sample can't carry are named in ``unsupported``."""
    return {
        "requests": report.request.count,
        "items": report.items,
        "items_per_second": report.items_per_second,
        **{f"{stage}_ms": _summary_json(getattr(report, stage)) for stage in _STAGES},
        "server_mean_ms": {name: ns / 1e6 for name, ns in server_parts(report).items()} or None,
        "server_requests_of_other_clients": report.others if report.server else None,
    }


def _summary_json(summary: LatencySummary) -> dict[str, Any]:
    return {
        "min": summary.min_ns / 1e6,
        "mean": summary.mean_ns / 1e6,
        **{percentile.name: percentile.ns / 1e6 for percentile in summary.percentiles},
        "max": summary.max_ns / 1e6,
        "unsupported": [p.name for p in summary.percentiles if not p.supported],
    }


def _spread_table(report: LatencyReport, noun: str) -> Table:
    percentiles = report.request.percentiles
    header = ("min", *(f"{p.name} " for p in percentiles), "max")
    values = (_ms(p.ns) + (" " if p.supported else "*") for p in percentiles)
    row = (_ms(report.request.min_ns), *values, _ms(report.request.max_ns))
    notes = [f"{report.items_per_second:.1f} {noun}s/s, one request at a time"]
    weak = [p for p in percentiles if not p.supported]
    if weak:
        needed = ", ".join(f"{p.name} takes {samples_needed(p.quantile)}" for p in weak)
        notes.append(f"* too few requests to claim with 99% confidence: {needed}")
    return Table("request in ms", header, (row,), ">" * len(header), tuple(notes))


def _part(name: str) -> str:
    words = name.replace("_", " ")
    return f"  {words}" if name == _REST else f"  server {words}"


def _ms(ns: float) -> str:
    return f"{ns / 1e6:.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _server_notes(report: LatencyReport) -> tuple[str, ...]:
    if report.server is None:
        return ("the server gives no statistics",)
    if report.others:
        text = f"server times are means over {report.server.requests} requests, of which this run sent"
        return (f"{text} {report.request.count}",)
    return ()


def _datatype(model: ModelMetadata, name: str) -> str:
    return next((output.datatype for output in model.outputs if output.name == name), "?")


def _value(value: object) -> str:
    if isinstance(value, bytes):
        text = value.decode(errors="backslashreplace")
        return printable(repr(shortened(text, 40)))
    if isinstance(value, np.floating) or type(value).__name__ == "bfloat16":
        return f"{float(value):.4g}"  # type: ignore[arg-type]
    return printable(value)


def _json_value(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    plain = value.item() if hasattr(value, "item") else value
    return _finite(plain) if isinstance(plain, float) else plain


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _plain_lines(table: Table) -> list[str]:
    rows = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    lines = [table.title] if table.title else []
    for row in rows:
        cells = (f"{cell:{align}{width}}" for cell, align, width in zip(row, table.align, widths, strict=True))
        lines.append("  " + "  ".join(cells).rstrip())
    return [*lines, *(f"  {note}" for note in table.notes)]


def _show_rich(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    if table.title:
        console.print(Text(table.title, style="bold"), soft_wrap=True)  # a path stays one that can be copied
    grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column, (name, align) in enumerate(zip(table.header, table.align, strict=True)):
        # A number is broken by nothing, not even a terminal that is narrower than the table then.
        longest = max((len(word) for row in table.rows for word in row[column].split()), default=0)
        whole = longest if align == ">" else min(longest, _WHOLE)
        grid.add_column(name, justify="right" if align == ">" else "left", overflow="fold", min_width=whole)
    for index, row in enumerate(table.rows):
        best = index == 0 and "score" in table.header
        grid.add_row(*(Text(cell) for cell in row), style="green" if best else "")
    console.print(grid, crop=False)
    for note in table.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print()
