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
from client.text import printable
from client.topk import Classification

_STAGES: Final = ("preprocess", "request", "postprocess")
_SERVER: Final = {
    "queue": "queue_ns",
    "compute_input": "compute_input_ns",
    "compute_infer": "compute_infer_ns",
    "compute_output": "compute_output_ns",
}
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
        (printable(name), _datatype(model, name), format_shape(array.shape), view(array), str(saved.get(name, "")))
        for name, array in outputs.items()
    ]
    header = ("output", "datatype", "shape", "values", "saved as")
    columns = len(header) if saved else len(header) - 1
    return Table(printable(title), header[:columns], tuple(row[:columns] for row in rows), "<" * columns)


def latency_table(report: LatencyReport, noun: str) -> Table:
    """Latency of each stage, and beneath ``request`` its parts in the server; ``noun`` is what an item is."""
    several = report.request.count > 1
    header: tuple[str, ...] = ("", "ms")
    if several:
        header = ("ms", "min", "mean", *(f"{p.name} " for p in report.request.percentiles), "max")
    rows: list[tuple[str, ...]] = []
    for stage in _STAGES:
        rows.append((stage, *_columns(getattr(report, stage), several=several)))
        if stage == "request":
            blank = ("",) if several else ()
            parts = server_parts(report).items()
            rows += [(_part(name), *blank, _ms(ns)) for name, ns in parts]
    width = len(header)
    padded = tuple(row + ("",) * (width - len(row)) for row in rows)
    title = f"latency of {_count(report.request.count, 'request')} with {_count(report.items, noun)}"
    return Table(title, header, padded, "<" + ">" * (width - 1), _latency_notes(report, noun))


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


def _columns(summary: LatencySummary, *, several: bool) -> tuple[str, ...]:
    if not several:
        return (_ms(summary.mean_ns),)
    if summary.count == 1:
        return ("", _ms(summary.mean_ns))
    percentiles = (_ms(p.ns) + (" " if p.supported else "*") for p in summary.percentiles)
    return (_ms(summary.min_ns), _ms(summary.mean_ns), *percentiles, _ms(summary.max_ns))


def _part(name: str) -> str:
    words = name.replace("_", " ")
    return f"  {words}" if name == _REST else f"  server {words}"


def _ms(ns: float) -> str:
    return f"{ns / 1e6:.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _latency_notes(report: LatencyReport, noun: str) -> tuple[str, ...]:
    notes = []
    if report.request.count > 1:
        notes.append(f"{report.items_per_second:.1f} {noun}s/s, one request at a time")
    weak = [p for p in report.request.percentiles if not p.supported]
    if weak and report.request.count > 1:
        needed = ", ".join(f"{p.name} takes {samples_needed(p.quantile)}" for p in weak)
        notes.append(f"* too few requests to claim with 99% confidence: {needed}")
    if report.server is None:
        notes.append("the server gives no statistics")
    elif report.others:
        notes.append(
            f"server times are means over {report.server.requests} requests, "
            f"of which this run sent {report.request.count}"
        )
    return tuple(notes)


def _datatype(model: ModelMetadata, name: str) -> str:
    return next((output.datatype for output in model.outputs if output.name == name), "?")


def _value(value: object) -> str:
    if isinstance(value, bytes):
        text = value.decode(errors="backslashreplace")
        return printable(repr(text if len(text) <= 40 else text[:37] + "..."))
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
        console.print(Text(table.title, style="bold"))
    grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, align in zip(table.header, table.align, strict=True):
        grid.add_column(name, justify="right" if align == ">" else "left", overflow="fold")
    for index, row in enumerate(table.rows):
        best = index == 0 and "score" in table.header
        grid.add_row(*(Text(cell) for cell in row), style="green" if best else "")
    console.print(grid)
    for note in table.notes:
        console.print(Text(note, style="dim"))
    console.print()
