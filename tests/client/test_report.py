from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from client.exchange import LatencyReport
from client.latency import LatencySummary, ServerStatistics
from client.metadata import ModelMetadata, TensorMetadata
from client.report import (
    Table,
    classes_json,
    classes_table,
    latency_json,
    latency_tables,
    server_parts,
    show,
    tensors_json,
    tensors_table,
    view,
)
from client.text import printable
from client.topk import Classification

CLASSES = [Classification(281, 0.91234, "tabby, tabby cat"), Classification(3, 0.05, "a\x1b[31mred")]
MODEL = ModelMetadata("net", "1", 8, (), (TensorMetadata("y", "FP32", (3,)), TensorMetadata("s", "BYTES", (2,))))


def report(requests: int, server_requests: int | None) -> LatencyReport:
    ms = [index * 1_000_000 for index in range(1, requests + 1)]
    server = None
    if server_requests is not None:
        server = ServerStatistics(
            server_requests, 1, 1, *(ns * server_requests for ns in (100_000, 50_000, 500_000, 0))
        )
    return LatencyReport(
        requests * 2, LatencySummary.of([5_000_000]), LatencySummary.of(ms), LatencySummary.of([9_000]), server
    )


def lines(capsys: pytest.CaptureFixture[str], *tables: Table) -> list[str]:
    for table in tables:
        show(table)
    return capsys.readouterr().out.splitlines()


def test_classes_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, classes_table("cat.jpg", CLASSES)) == [
        "cat.jpg",
        "   score  class  label",
        "  0.9123    281  tabby, tabby cat",
        "  0.0500      3  a\\x1b[31mred",
        "",
    ]


def test_classes_without_labels(capsys: pytest.CaptureFixture[str]) -> None:
    bare = [Classification(7, 12.5), Classification(1, -3.0)]
    assert lines(capsys, classes_table("x", bare))[1:4] == ["    score  class", "  12.5000      7", "  -3.0000      1"]


@pytest.mark.parametrize("no_color", [False, True])
def test_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    text = "\n".join(lines(capsys, classes_table("cat.jpg", CLASSES)))
    assert "tabby, tabby cat" in text
    assert "a\\x1b[31mred" in text
    assert ("\x1b[32m" in text) is not no_color
    assert "\x1b[31m" not in text


def test_label_is_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    text = "\n".join(lines(capsys, classes_table("[bold]x", [Classification(0, 1.0, "[red]y[/]")])))
    assert "[bold]x" in text
    assert "[red]y[/]" in text


def test_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {
        "y": np.array([[1.0, 2.5, np.nan, 1e-9, 123456.0, -1.0, 7.0, 8.0]], np.float32),
        "s": np.array([b"ok", b"\xff\x1b[0m" + b"x" * 99], object),
    }
    assert lines(capsys, tensors_table("", MODEL, outputs, {})) == [
        "  output  datatype  shape   values",
        "  y       FP32      [1, 8]  1, 2.5, nan, 1e-09, 1.235e+05, -1, ... 2 more",
        "  s       BYTES     [2]     'ok', '\\\\xff\\x1b[0mxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'",
        "",
    ]


def test_view_of_scalars_and_nothing() -> None:
    assert view(np.array(3, np.int64)) == "3"
    assert view(np.array([True, False])) == "True, False"
    assert view(np.zeros((0, 4))) == ""
    assert view(np.array([0.5, 1.5], ml_dtypes.bfloat16)) == "0.5, 1.5"
    assert view(np.array(0.25, np.float16)) == "0.25"


def test_latency_of_one_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, *latency_tables(report(1, 1), "picture")) == [
        "latency of 1 request with 2 pictures",
        "                             ms",
        "  preprocess               5.00",
        "  request                  1.00",
        "    server queue           0.10",
        "    server compute input   0.05",
        "    server compute infer   0.50",
        "    server compute output  0.00",
        "    network and rest       0.35",
        "  postprocess              0.01",
        "",
    ]


def test_latency_of_many_requests(capsys: pytest.CaptureFixture[str]) -> None:
    text = lines(capsys, *latency_tables(report(100, 100), "picture"))
    assert text[0] == "latency of 100 requests with 200 pictures"
    assert text[1:12] == [
        "                           mean ms",
        "  preprocess                  5.00",
        "  request                    50.50",
        "    server queue              0.10",
        "    server compute input      0.05",
        "    server compute infer      0.50",
        "    server compute output     0.00",
        "    network and rest         49.85",
        "  postprocess                 0.01",
        "",
        "request in ms",
    ]
    assert text[12].split() == ["min", "p50", "p90", "p95", "p99", "max"]
    assert text[13].split() == ["1.00", "50.00", "90.00", "95.00", "99.00*", "100.00"]
    assert text[14].strip() == "39.6 pictures/s, one request at a time"
    assert text[15].strip() == "* too few requests to claim with 99% confidence: p99 takes 459"


def test_latency_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    minutes = LatencySummary.of([150_000_000_000] * 3)
    text = lines(capsys, *latency_tables(replace(report(3, 3), request=minutes), "picture"))
    assert "  server compute output       0.00" in text
    text = lines(capsys, *latency_tables(report(300, 300), "picture"))
    assert ["1.00", "150.00", "270.00", "285.00", "297.00*", "300.00"] in [line.split() for line in text]


def test_path_stays_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    path = Path("/folder") / ("long " * 20).strip()
    text = lines(capsys, tensors_table(path, MODEL, {"y": np.zeros(3, np.float32)}, {"y": path}))
    assert text[0].endswith(f"{path}\x1b[0m")
    assert f"saved as {path}\x1b[0m" in text[-2]


def test_numbers_stay_whole_on_a_terminal_that_is_too_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    row = ("concurrency 1", "throughput, requests/s", "12,345.6", "12,345.7", "+100.0%")
    header = ("load", "", "before", "a-long-name-of-a-run.json", "change")
    text = "\n".join(lines(capsys, Table("", header, (row,), "<<>>>")))
    assert {"concurrency", "throughput,", *row[2:]} <= set(text.split())


def test_other_clients_requests_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    busy = report(10, 15)
    assert "network_and_rest" not in server_parts(busy)
    text = "\n".join(lines(capsys, *latency_tables(busy, "item")))
    assert "server times are means over 15 requests, of which this run sent 10" in text
    assert latency_json(busy)["server_requests_of_other_clients"] == 5


def test_server_without_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(lines(capsys, *latency_tables(report(2, None), "item")))
    assert "the server gives no statistics" in text
    assert latency_json(report(2, None))["server_mean_ms"] is None


def test_json_is_strict() -> None:
    document = {
        "classes": classes_json([Classification(0, float("nan")), Classification(1, float("inf"), "x")]),
        "outputs": tensors_json(MODEL, {"y": np.array([np.nan, 1.5, -np.inf]), "s": np.array([b"\xff"], object)}, {}),
        "latency": latency_json(report(3, 3)),
    }
    read = json.loads(json.dumps(document, allow_nan=False))
    assert [entry["score"] for entry in read["classes"]] == [None, None]
    assert read["outputs"][0]["first_values"] == [None, 1.5, None]
    assert read["outputs"][1]["first_values"] == ["\\xff"]
    assert read["latency"]["request_ms"]["unsupported"] == ["p50", "p90", "p95", "p99"]
    assert read["latency"]["request_ms"]["mean"] == 2.0


def test_printable() -> None:
    assert printable("café 猫") == "café 猫"
    assert printable("a\tb\x9b\udcff\u202e") == "a\\tb\\x9b\\udcff\\u202e"
