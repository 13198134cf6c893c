"""``python -m client.bench`` and ``python -m client.compare`` as commands, against fakes that answer by a script."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import client
from client.transport import Url
from tests.client.command import Done, command
from tests.client.load.fake_server import MODEL, Script, fake_server
from tests.support import wait_for

SCHEMA = json.loads((Path(client.__file__).parent / "load" / "run.schema.json").read_text())
QUICK = ("--warmup", "0", "--no-floor", "--quiet")
PERF_ANALYZER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency"
)


def bench(script: Script, *arguments: object) -> Done:
    with fake_server(script) as url:
        return command("bench", MODEL, "--url", url, *QUICK, *arguments)


def saved(path: Path, *arguments: object, script: Script | None = None) -> dict[str, Any]:
    """The document of a run of 500 requests, unless ``arguments`` say otherwise."""
    done = bench(script or Script(delays_s=(0.002,)), *(arguments or ("--requests", 500)), "--output", path)
    assert not done.stderr
    document: dict[str, Any] = json.loads(path.read_text())
    return document


class TestOutput:
    def test_document_keeps_its_schema(self, tmp_path: Path) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        validator = jsonschema.Draft202012Validator(SCHEMA)
        validator.validate(saved(tmp_path / "a.json", "--concurrency", "1,3", "--requests", 60))
        validator.validate(saved(tmp_path / "b.json", "--rate", 200, "--poisson", "--duration", "300ms"))
        broken = saved(tmp_path / "c.json", "--requests", 30, script=Script(refuse_every=1))
        assert broken["levels"][0]["response_time"] is None
        validator.validate(broken)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**broken, "more": 1})

    def test_scenario(self, tmp_path: Path) -> None:
        script = Script(delays_s=(0.001,))
        document = saved(tmp_path / "a.json", "--scenario", "single-stream", "--requests", 100, script=script)
        jsonschema.validate(document, SCHEMA)
        assert document["scenario"]["shortfalls"] == [f"{document['levels'][0]['window_s']:.1f} s of at least 600 s"]
        assert 1.0 < document["scenario"]["value"] < 100
        rates = ("--scenario", "server", "--rate", "500,600", "--target-latency", "1us", "--requests", 30)
        done = bench(script, *rates, "--html", tmp_path / "a.html")
        assert done.returncode == 1
        assert "scenario server: highest Poisson rate with p99 within 0.001 ms: none, no rate kept it" in done.stdout
        assert "scenario server: highest Poisson rate" in (tmp_path / "a.html").read_text()

    def test_what_the_server_used(self, tmp_path: Path) -> None:
        done = bench(Script(delays_s=(0.001,)), "--requests", 50, "--html", tmp_path / "a.html")
        assert re.search(r"CPU of python\S* +\d+\.\d\d s, \d", done.stdout)
        assert "CPU of python" in (tmp_path / "a.html").read_text()

    def test_json_on_stdout_is_the_same_document(self) -> None:
        done = bench(Script(), "--requests", 50, "--json")
        jsonschema.validate(json.loads(done.stdout), SCHEMA)

    def test_csv_has_perf_analyzers_columns(self, tmp_path: Path) -> None:
        file = tmp_path / "run.csv"
        bench(Script(delays_s=(0.003,)), "--concurrency", "1,2", "--requests", 100, "-f", file)
        header, *rows = file.read_text().splitlines()
        assert header == PERF_ANALYZER
        first, second = csv.DictReader([header, *rows])
        assert (first["Concurrency"], second["Concurrency"]) == ("1", "2")
        assert (first["Server Queue"], first["Server Compute Infer"]) == ("100", "200")
        assert 2900 <= int(first["p50 latency"]) < 100_000
        assert int(first["Network+Server Send/Recv"]) > 2000

    def test_csv_has_numbers_where_requests_failed(self, tmp_path: Path) -> None:
        file = tmp_path / "run.csv"
        script = Script(delays_s=(0.003,), refuse_every=10, refused_succeed=True)
        bench(script, "--concurrency", 2, "--requests", 100, "-f", file)
        (row,) = csv.DictReader(file.read_text().splitlines())
        del row["Inferences/Second"]
        assert all(int(value) >= 0 for value in row.values())
        assert int(row["Network+Server Send/Recv"]) > 2000
        assert row["Server Queue"] == "100"

    def test_csv_without_a_server_that_counts(self, tmp_path: Path) -> None:
        file = tmp_path / "run.csv"
        bench(Script(dies_at=0.1), "--duration", "200ms", "-f", file)
        names = ["Concurrency", "Inferences/Second", "Client Send", "Client Recv"]
        (row,) = csv.DictReader(file.read_text().splitlines())
        assert list(row)[:5] == [*names, "p50 latency"]
        assert all(float(value) >= 0 for value in row.values())

    def test_csv_of_a_trace_has_its_mean_rate(self, tmp_path: Path) -> None:
        file, trace = tmp_path / "run.csv", tmp_path / "trace"
        trace.write_text("0.05\n0.06\n0.25\n")
        bench(Script(), "--trace", trace, "-f", file)
        (row,) = csv.DictReader(file.read_text().splitlines())
        assert row["Request Rate"] == "10"

    def test_csv_of_rates_names_them(self, tmp_path: Path) -> None:
        file = tmp_path / "run.csv"
        bench(Script(), "--rate", "100,200", "--duration", "200ms", "-f", file)
        assert file.read_text().startswith("Request Rate,Inferences/Second,")
        assert [row.split(",")[0] for row in file.read_text().splitlines()[1:]] == ["100", "200"]

    def test_table_and_sentences(self) -> None:
        done = bench(Script(delays_s=(0.002,), batches=(2,)), "--concurrency", 2, "--requests", 600)
        assert re.search(r"p99 +\d", done.stdout)
        assert "600 requests, 0 failed" in done.stdout
        assert "Dynamic batching works: 600 requests ran in 300 executions" in done.stdout
        assert "p99.9*" in done.stdout
        assert "p99.9 takes 4,603" in done.stdout
        assert "mean response time" in done.stdout

    def test_several_loads_tell_errors_and_where_the_rest_is(self, tmp_path: Path) -> None:
        levels = ("--concurrency", "1,2", "--requests", 40)
        done = bench(Script(refuse_every=10), *levels)
        assert done.stdout.count("HTTP 400: refused by the script") == 2
        assert re.search(r"errors of concurrency 2\s.*\s+refused +4 .*\s.*from \d.* s: 4 errors", done.stdout)
        assert done.stdout.endswith(" are what --html FILE.html and --output FILE.json save\n")
        done = bench(Script(), *levels, "--html", tmp_path / "a.html", "--output", tmp_path / "a.json")
        assert done.stdout.endswith(f" are in {tmp_path}/a.html and {tmp_path}/a.json\n")
        assert "--output" not in bench(Script(), "--requests", 40).stdout

    def test_progress_is_plain_lines_on_stderr(self) -> None:
        with fake_server(Script(delays_s=(0.005,))) as url:
            done = command("bench", MODEL, "-u", url, "--warmup", "0", "--no-floor", "--duration", "2.5s")
        lines = [
            line for line in done.stderr.splitlines() if re.match(r" +\d+\.\d s +\S+ requests/s  p50 \S+ ms", line)
        ]
        assert len(lines) >= 2
        assert "\x1b" not in done.stderr + done.stdout

    @pytest.mark.parametrize("load", [("--rate", 100), ("--concurrency", 2)])
    @pytest.mark.parametrize("end", [("--requests", 20), ("--duration", "300ms")])
    def test_what_is_waited_for_is_told(self, load: tuple[str, int], end: tuple[str, object]) -> None:
        with fake_server(Script(silent_every=10)) as url:
            options = ("--workers", 2, "--warmup", 0, "--no-floor", "--timeout", 2.5)
            done = command("bench", MODEL, "-u", url, *options, *load, *end)
        lines = re.findall(r"^ +\d+\.\d s  waiting for the last \d answers?$", done.stderr, re.MULTILINE)
        assert 1 <= len(lines) <= 5

    def test_what_is_sent_is_told(self, tmp_path: Path) -> None:
        for variants, told in (
            (1, "one request of {} bytes again and again, which a cache"),
            (3, "3 different requests"),
        ):
            file = tmp_path / "a.html"
            with fake_server() as url:
                options = ("--no-floor", "--warmup", 0, "--requests", 10, "--variants", variants, "--html", file)
                done = command("bench", MODEL, "-u", url, *options)
            (size,) = re.findall(r"requests? of (\d+) bytes", done.stderr)
            assert told.format(size) in done.stderr
            assert told.format(size) in file.read_text()
            assert "each load: 10 requests; warm-up: none" in file.read_text()
            assert "sent over HTTP by 1 process" in file.read_text()

    def test_floor_and_more_connections_than_a_shell_lets_files_be_open(self) -> None:
        with fake_server(Script(delays_s=(0.002,))) as url:
            line = f"ulimit -S -n 64; exec {sys.executable} -m client.bench {MODEL} -u {url} --warmup 0 --json --quiet"
            done = subprocess.run(["bash", "-c", f"{line} --concurrency 99 -n 300"], capture_output=True, timeout=60)
        document = json.loads(done.stdout)
        assert (document["levels"][0]["errors"], done.stderr) == (0, b"")
        floor = document["floor"]
        assert floor["concurrency"] == 99
        assert 0 < floor["p50_ms"] <= floor["p99_ms"]
        assert floor["p50_ms"] < 50
        assert floor["throughput"] > 50


class TestReport:
    def test_page_is_whole_and_needs_nothing_else(self, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        bench(Script(delays_s=(0.002,), batches=(1, 2)), "--concurrency", "1,2", "--requests", 100, "--html", file)
        page = file.read_text()
        assert balanced(page)
        # The name of a load has a line of its own: a phone is narrow.
        assert re.search(r'<tr><th colspan="7">concurrency 2 <span[^\n]*</th></tr><tr><td>\d', page)
        titles = ("Latency against throughput", "Response time by percentile", "Response time over time", "Where the")
        assert all(title in page for title in titles)
        assert not re.search(r"(src|href)=|https?://(?!127)|<script", page)
        assert re.search(r"<p>\d\S* requests/s \(95%: \d\S* to \d\S*\); 100 requests, 0 failed</p>", page)
        assert re.search(r"<td>min</td><td>\d+\.\d+</td>", page)
        assert re.search(r"<td>p50</td><td>\d+\.\d+ \(\d+\.\d+ to \d+\.\d+\)", page)
        assert "NaN" not in page
        assert "nan" not in re.findall(r'points="([^"]*)"', page)

    def test_text_of_strangers_is_escaped(self, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        script = Script(refuse_every=2, config={"platform": "<script>alert(1)</script>"})
        bench(script, "--requests", 40, "--html", file)
        assert "<script" not in file.read_text()
        assert "&lt;script&gt;" in file.read_text()

    def test_notes_are_apart_from_reasons(self, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        script = Script(refuse_every=2, refused_succeed=True)
        bench(script, "--requests", 40, "--fail-if", "errors>0", "--html", file)
        page = file.read_text()
        findings = re.findall(r'<li><span class="invalid">(\w+)</span>: (.*?)</li>', page)
        assert [kind for kind, _ in findings] == ["INVALID", "INVALID", "threshold"]
        assert not any("where the time goes" in text for _, text in findings)
        assert re.search(
            r'<p class="soft">note: [^<]*, so where the time goes can&#x27;t be told</p>', file.read_text()
        )

    def test_a_run_without_answers_has_a_page(self, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        bench(Script(fail_every=1), "--requests", 20, "--html", file)
        assert balanced(file.read_text())
        assert "failed by the script" in file.read_text()


@pytest.fixture(scope="module")
def idle() -> Iterator[str]:
    """The URL of a fake for what ends before the first inference."""
    with fake_server() as url:
        yield url


class TestExitCodes:
    def test_valid(self) -> None:
        done = bench(Script(delays_s=(0.003,)), "--requests", 900, "--concurrency", 4)
        reasons = [line for line in done.stdout.splitlines() if "INVALID" in line]
        assert (done.returncode, reasons) == (0, []) or all("not stable" in line for line in reasons)

    def test_invalid(self) -> None:
        done = bench(Script(), "--requests", 10)
        assert done.returncode == 1
        assert "INVALID: 10 requests can't carry p99, which takes 459" in done.stdout

    def test_thresholds(self) -> None:
        script = Script(delays_s=(0.005,))
        done = bench(script, "--requests", 100, "--fail-if", "p50>4ms", "--fail-if", "errors>0")
        assert done.returncode == 99
        assert re.search(r"threshold: p50>4ms: \d", done.stdout)
        assert "errors>0" not in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--rate", "5", "--concurrency", "2"), "can't go together"),
            (("--poisson",), "--poisson needs a rate"),
            (("--fail-if", "p99"), "is no condition"),
            (("--concurrency", "0"), "is no list of levels"),
            (("--percentile", "98"), "--percentile 98 is not measured"),
            (("--scenario", "mlperf"), "--scenario takes single-stream, multi-stream, server, offline"),
            (("--scenario", "server"), "needs the rates to try and the bound on latency"),
            (("--scenario", "single-stream", "--batch", "2"), "sends 1 sample a query"),
            (("--target-latency", "5ms"), "is for --scenario server"),
            (("--metrics-url", "https://127.0.0.1"), "plain HTTP"),
            (("--output", "/none/here.json"), "its folder does not exist"),
            (("--csv", f"{'x' * 300}.csv"), "File name too long"),
            (("--html", "/proc/run.html"), "it can't be written to"),
            (("--output", "same", "--html", "./same"), "--output and --html are both same"),
            (("--input-range", "x=5:1"), "is not a range"),
            (("--input-range", "y=0:1"), "has no input 'y'"),
            (("--input-range", "x=0:1e39"), "more than FP32 can hold"),
            (("--variants", "0"), "--variants takes 1 to 10,000"),
            (("--input", "x"), "such as --input NAME=FILE.npy"),
            (("--batch", "100"), "batches up to 8"),
            (("cat.jpg", "--input-range", "x=0:1"), "pictures can't go together with --input-range"),
        ],
    )
    def test_misuse(self, idle: str, arguments: tuple[str, ...], message: str) -> None:
        done = command("bench", MODEL, "--url", idle, *QUICK, "--requests", 10, *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "\nhint: " in done.stderr
        assert "Traceback" not in done.stderr

    def test_no_server(self) -> None:
        done = command("bench", MODEL, "--url", "127.0.0.1:9")
        assert done.returncode == 1
        assert done.stderr.startswith("error: no server answers at http://127.0.0.1:9")
        assert "hint:" in done.stderr


@pytest.mark.parametrize("module", ["bench", "infer"])
def test_commands_share_short_flags(idle: str, module: str) -> None:
    rest = ("--random",) if module == "infer" else (*QUICK[:-1], "--requests", 10)
    done = command(module, "-m", MODEL, "-x", "1", "-u", idle, "-b", 2, *rest)
    assert f"model {MODEL}, version 1, at {Url.parse(idle)}" in done.stderr
    assert "error:" not in done.stderr


def minds_signals(pid: int) -> bool:
    """Whether a process blocks or catches SIGTERM, which Python itself doesn't: a Ctrl-C in its start is its own."""
    masks = re.findall(r"Sig(?:Blk|Cgt):\t(\w+)", Path(f"/proc/{pid}/status").read_text())
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


class TestInterruption:
    @pytest.mark.parametrize("again_s", [None, 0.03])
    def test_what_was_measured_is_shown_and_saved(self, tmp_path: Path, again_s: float | None) -> None:
        file = tmp_path / "run.json"
        line = [sys.executable, "-m", "client.bench", MODEL, *QUICK[:-1], "--duration", "60s", "--output", str(file)]
        with fake_server(Script(delays_s=(0.002,))) as url:
            process = subprocess.Popen(
                [*line, "--url", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            assert process.stderr is not None
            assert any("requests/s" in line for line in process.stderr)
            os.killpg(process.pid, signal.SIGINT)  # as the terminal does: the workers get it, too
            while again_s and process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(again_s)
            out, err = process.communicate(timeout=20)  # of the 60 s
        assert process.returncode == 1
        assert "INVALID: interrupted before its end" in out
        assert "Traceback" not in err
        document = json.loads(file.read_text())
        assert document["levels"][0]["requests"] > 0
        assert document["levels"][0]["errors"] == 0
        jsonschema.validate(document, SCHEMA)

    def test_sigterm_is_the_same(self, tmp_path: Path) -> None:
        file = tmp_path / "run.json"
        options = (*QUICK[:-1], "--workers", "2", "--duration", "60s", "--shared-memory", "system")
        line = [sys.executable, "-m", "client.bench", MODEL, *options, "--output", str(file)]
        with fake_server(Script(delays_s=(0.002,))) as url:
            process = subprocess.Popen(
                [*line, "--url", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            assert process.stderr is not None
            assert any("requests/s" in line for line in process.stderr)
            os.killpg(process.pid, signal.SIGTERM)  # as ``timeout`` does
            out, err = process.communicate(timeout=20)
        assert process.returncode == 128 + signal.SIGTERM
        assert "INVALID: interrupted before its end" in out
        assert "leaked" not in err
        assert "Traceback" not in err
        assert json.loads(file.read_text())["levels"][0]["requests"] > 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 0.9])
    def test_before_anything_is_measured(self, idle: str, number: signal.Signals, after_s: float) -> None:
        """In imports, while workers start or in the warm-up, whatever the machine is at by then."""
        line = [sys.executable, "-m", "client.bench", MODEL, "--url", idle, "--quiet", "--workers", "2"]
        process = subprocess.Popen(
            [*line, "--warmup", "60s"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: minds_signals(process.pid))
        time.sleep(after_s)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (128 + number, "", "interrupted, nothing measured\n")

    @pytest.mark.parametrize("module", ["client.infer", "client.compare"])
    def test_in_imports(self, tmp_path: Path, module: str) -> None:
        (tmp_path / "typer.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
        path = os.pathsep.join([str(tmp_path), str(Path(client.__file__).parents[1])])
        done = subprocess.run(
            [sys.executable, "-m", module], env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")

    def test_the_second_time_answers_are_not_waited_for(self, tmp_path: Path) -> None:
        """A server that has stopped answering doesn't keep what was measured before."""
        file = tmp_path / "run.json"
        options = ("--warmup", "0", "--no-floor", "--duration", "60s", "--output", str(file))
        with fake_server(Script(silent_every=100)) as url:
            line = [sys.executable, "-m", "client.bench", MODEL, *options, "--url", url]
            process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            with client.Client(url) as asking:
                wait_for(lambda: asking.statistics(MODEL, "1").requests == 99)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)  # two signals at once would be one
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "INVALID: interrupted before its end" in out
        assert json.loads(file.read_text())["levels"][0]["requests"] == 99

    def test_what_a_closed_pipe_does_not_take_is_saved(self, tmp_path: Path) -> None:
        with fake_server() as url:
            line = f"{sys.executable} -m client.bench {MODEL} --url {url} {' '.join(QUICK)} --requests 50"
            subprocess.run(["bash", "-c", f"{line} --output {tmp_path}/run.json | true"], check=True, timeout=60)
        assert json.loads((tmp_path / "run.json").read_text())["levels"][0]["requests"] == 50

    def test_what_cannot_be_put_in_its_place_is_kept_elsewhere(self) -> None:
        number = "/proc/self/oom_score_adj"  # refuses what is none
        done = bench(Script(), "--requests", 50, "--output", "/dev/full", "--html", number)
        assert done.returncode == 1
        assert f"/dev/full can't be written: No space left on device; {number} can't be written: " in done.stderr
        ((document, page),) = re.findall(r"hint: kept in (\S+), (\S+)", done.stderr)
        jsonschema.validate(json.loads(Path(document).read_text()), SCHEMA)
        assert balanced(Path(page).read_text())
        Path(document).unlink()
        Path(page).unlink()

    def test_a_full_disk_loses_neither_the_table_nor_the_other_file(self, tmp_path: Path) -> None:
        with fake_server() as url:
            limit = f"ulimit -f 8; exec {sys.executable} -m client.bench {MODEL} --url {url} {' '.join(QUICK)}"
            line = f"{limit} --requests 600 --csv {tmp_path}/run.csv --output {tmp_path}/run.json"
            # 8 KiB a file: enough for the CSV, not for the document.  Python ignores SIGXFSZ: the write fails.
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "run.json can't be written: File too large" in done.stderr
        assert "600 requests" in done.stdout
        assert (tmp_path / "run.csv").read_text().count("\n") == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run.csv"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and one against a server that takes three times as long."""
    folder = tmp_path_factory.mktemp("runs")
    for name, delay in (("fast", 0.002), ("slow", 0.006)):
        file = folder / f"{name}.json"
        document = saved(file, "--requests", 500, "--concurrency", 4, script=Script(delays_s=(delay,)))
        document["levels"][0]["reasons"] = []  # such as that it isn't stable, on a busy machine
        file.write_text(json.dumps(document))
    return folder / "fast.json", folder / "slow.json"


class TestCompare:
    def test_a_slower_run_is_found(self, runs: tuple[Path, Path]) -> None:
        done = command("compare", *runs, "--fail-if-slower", "5%")
        assert done.returncode == 99
        assert re.search(r"p50, ms +[2-5]\.\d+ +\d+\.\d+ +\+\d+\.\d% .* worse", done.stdout)
        assert re.search(r"slower: concurrency 4: p50 \+\d+\.\d%, by at least \d+\.\d%\n", done.stderr)
        assert "That between runs isn't in them" in done.stdout

    def test_the_other_way_round_is_better(self, runs: tuple[Path, Path]) -> None:
        done = command("compare", *reversed(runs), "--fail-if-slower", "5%")
        assert done.returncode == 0
        assert "better" in done.stdout

    def test_a_run_against_itself_is_noise(self, runs: tuple[Path, Path]) -> None:
        done = command("compare", runs[0], runs[0], "--json")
        (comparison,) = json.loads(done.stdout)["comparisons"]
        changes = comparison["levels"][0]["changes"]
        assert {change["metric"] for change in changes} == {"throughput", "mean", "p50", "p90", "p99"}
        assert all(change["noise"] and change["relative"] == 0 for change in changes)

    def test_an_invalid_run_is_not_called_slower(self, runs: tuple[Path, Path], tmp_path: Path) -> None:
        document = json.loads(runs[1].read_text())
        document["levels"][0]["reasons"] = ["not stable"]
        (tmp_path / "slow.json").write_text(json.dumps(document))
        done = command("compare", runs[0], tmp_path / "slow.json", "--fail-if-slower", "5%")
        assert done.returncode == 1
        assert "can't tell of concurrency 4: INVALID: slow.json: not stable" in done.stderr
        assert "slower: " not in done.stderr
        both = command("compare", runs[0], tmp_path / "slow.json", runs[1], "--fail-if-slower", "5%")
        assert both.returncode == 99

    def test_files_of_one_name_are_told_apart(self, runs: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "fast.json").write_bytes(runs[0].read_bytes())
        folders = [runs[0].parent.name, tmp_path.name]
        done = command("compare", runs[0], tmp_path / "fast.json")
        assert done.stdout.startswith(f"{folders[1]}/fast.json against {folders[0]}/fast.json\n")
        done = command("compare", runs[0], runs[0])
        assert done.stdout.startswith(f"{folders[0]}/fast.json (2) against {folders[0]}/fast.json (1)\n")

    def test_models_of_other_names_are_named(self, runs: tuple[Path, Path], tmp_path: Path) -> None:
        document = json.loads(runs[0].read_text())
        document["model"]["name"] = "other"
        document["levels"][0]["reasons"] = ["\x1b[31mred"]
        (tmp_path / "other.json").write_text(json.dumps(document))
        note = f"the models differ: {MODEL}, version 1, and other, version 1"
        done = command("compare", runs[0], tmp_path / "other.json", "--html", tmp_path / "page.html")
        assert f"note: {note}\n" in done.stdout
        assert "INVALID: other.json: \\x1b[31mred\n" in done.stdout
        assert note in (tmp_path / "page.html").read_text()
        (entry,) = json.loads(command("compare", runs[0], tmp_path / "other.json", "--json").stdout)["comparisons"]
        assert note in entry["differences"]

    def test_another_model_is_told_of(self, runs: tuple[Path, Path], tmp_path: Path) -> None:
        documents = [json.loads(runs[0].read_text()) for _ in range(2)]
        for document, digest in zip(documents, ("aa", "bb"), strict=True):
            document["model"]["files_sha256"] = {"model.onnx": digest, "labels.txt": "cc"}
        documents[1]["model"]["config_sha256"] = "other"
        for name, document in zip("ab", documents, strict=True):
            (tmp_path / name).write_text(json.dumps(document))
        done = command("compare", tmp_path / "a", tmp_path / "b")
        assert "note: the model's files differ: model.onnx\n" in done.stdout
        assert "note: the model's configurations differ\n" in done.stdout
        assert "differ" not in command("compare", runs[0], runs[0]).stdout

    @pytest.mark.parametrize("damage", [{"model": {}}, {"settings": []}, {"levels": [3]}])
    def test_a_damaged_result(self, runs: tuple[Path, Path], tmp_path: Path, damage: dict[str, Any]) -> None:
        file = tmp_path / "damaged.json"
        file.write_text(json.dumps({**json.loads(runs[0].read_text()), **damage}))
        done = command("compare", runs[0], file)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.match(rf"error: {runs[0]} or {file} (lacks 'name'|is damaged: .+)\n\nhint: ", done.stderr)

    def test_a_page_in_the_place_of_a_result(self, runs: tuple[Path, Path]) -> None:
        before = runs[0].read_bytes()
        done = command("compare", *runs, "--html", runs[0])
        assert (done.returncode, done.stdout) == (2, "")
        assert "is one of the results" in done.stderr
        assert runs[0].read_bytes() == before

    def test_page(self, runs: tuple[Path, Path], tmp_path: Path) -> None:
        command("compare", *runs, "--html", tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert balanced(page)
        assert f"{runs[1].name} against {runs[0].name}</h2>" in page
        assert page.count(runs[0].name) == 1  # a column as wide as a file's name would push others off a phone

    @pytest.mark.parametrize(
        ("redirection", "code", "error"),
        [
            ("| true; exit ${PIPESTATUS[0]}", 141, ""),
            (">&-", 0, ""),
            (">/dev/full", 1, "error: the output can't be written: No space left on device\n"),
        ],
    )
    def test_a_stdout_that_takes_nothing(
        self, runs: tuple[Path, Path], redirection: str, code: int, error: str
    ) -> None:
        line = f"{sys.executable} -m client.compare {runs[0]} {runs[0]} {redirection}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (code, error)

    def test_another_way_of_sending_is_told(self, runs: tuple[Path, Path], tmp_path: Path) -> None:
        saved(tmp_path / "other.json", "--compression", "gzip", "--requests", 50, "--concurrency", 4)
        done = command("compare", runs[0], tmp_path / "other.json")
        assert "the ways of sending differ" in done.stdout + done.stderr
        assert "the requests differ" not in done.stdout + done.stderr

    @pytest.mark.parametrize("text", ["{}", "no json", '{"format": "client.bench/9"}', "[]"])
    def test_what_is_no_result(self, runs: tuple[Path, Path], tmp_path: Path, text: str) -> None:
        (tmp_path / "other.json").write_text(text)
        done = command("compare", runs[0], tmp_path / "other.json")
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


class _Tags(HTMLParser):
    VOID = frozenset({"meta", "line", "rect", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sound = True

    def handle_starttag(self, tag: str, _: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _: object) -> None:
        self.sound &= tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            self.sound &= bool(self.open) and self.open.pop() == tag


def balanced(page: str) -> bool:
    """Whether every element is closed, in the order in which they were opened."""
    tags = _Tags()
    tags.feed(page)
    return tags.sound and not tags.open and page.startswith("<!doctype html>")
