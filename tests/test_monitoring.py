"""What Grafana would draw: the dashboard's queries, answered by a real Prometheus that scrapes a real server."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import repo_builder
from client import Client, ClientError
from tests.servers.repositories import ONE_INSTANCE, VECTOR_CONFIG, write_identity

MONITORING = Path(__file__).parents[1] / "monitoring"
PANELS = json.loads((MONITORING / "grafana/dashboards/triton.json").read_text(encoding="utf-8"))["panels"]
QUERIES = {
    f"{panel['title']}, {panel['type']}, {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel.get("targets", ())
}
ROWS = 4  # of each request
Ask = Callable[[str], list[float]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Evaluate a query of the dashboard while two models answer requests, and a third one fails."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus (Debian's package of that name)")
    folder = tmp_path_factory.mktemp("monitoring")
    for name in ("one", "two"):
        write_identity(folder / "models", name)
    # Of a Python-based backend Triton counts only those requests as failed that an exception ends.
    failing = write_identity(folder / "models", "failing")
    (failing / "1/model.py").write_text(
        "class TritonPythonModel:\n    def execute(self, requests):\n        raise ValueError"
    )
    (failing / "config.pbtxt").write_text('backend: "python"\n' + VECTOR_CONFIG + ONE_INSTANCE)
    with repo_builder.serve(folder / "models") as server, traffic(server.url):
        target = urllib.parse.urlsplit(server.metrics_url).netloc
        with prometheus(program, folder, target) as url:
            deadline = time.monotonic() + 30
            while not evaluate(url, QUERIES["Mean batch, stat, A"]) and time.monotonic() < deadline:
                time.sleep(0.3)
            time.sleep(3)  # a few scrapes more, so that every rate rests on several
            yield lambda expression: evaluate(url, expression)


class traffic:  # noqa: N801  (a context manager)
    """Requests of four rows, every fifth one to the model that fails."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.send)

    def send(self) -> None:
        x = np.zeros((ROWS, 4), np.float32)
        with Client(self.url) as client:
            for count in itertools.count():
                if self.over.wait(0.01):
                    return
                if count % 5:
                    client.infer(("one", "two")[count % 2], {"x": x})
                else:
                    with pytest.raises(ClientError):
                        client.infer("failing", {"x": x})

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


class prometheus:  # noqa: N801
    """The project's prometheus.yml, but a scrape a second, of ``target``."""

    def __init__(self, program: str, folder: Path, target: str) -> None:
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"]["scrape_interval"] = config["global"]["scrape_timeout"] = "1s"
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        self.log = folder / "prometheus.log"
        self.command = [
            *(program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
            f"--web.listen-address={address}",
        ]

    def __enter__(self) -> str:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        return self.url

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)


def evaluate(url: str, expression: str) -> list[float]:
    """The values now, with Grafana's variables as it would set them for all models."""
    expression = expression.replace("$__rate_interval", "4s").replace("$model", "one|two|failing")
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:  # it listens, and reads its storage still
            return []
        pytest.fail(f"{expression}: {error.read().decode()}")
    except OSError:  # it doesn't listen yet
        return []
    return [float(series["value"][1]) for series in found["data"]["result"]]


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_has_an_answer(ask: Ask, query: str) -> None:
    values = ask(QUERIES[query])
    if "nv_gpu_" in QUERIES[query]:
        return  # it is valid; the series are there where a GPU is
    assert values
    assert all(value >= 0 for value in values), "Grafana prints a NaN, and draws nothing beside one"


def test_only_failures_that_occur_are_drawn(ask: Ask) -> None:
    assert len(ask(QUERIES["Failures, timeseries, A"])) == 1


def test_batches_are_as_large_as_they_were_sent(ask: Ask) -> None:
    assert sorted(ask(QUERIES["Mean batch, timeseries, A"]))[-2:] == [pytest.approx(ROWS)] * 2


def test_a_fifth_of_the_requests_fails(ask: Ask) -> None:
    [share] = ask(QUERIES["Failed, stat, A"])
    assert share == pytest.approx(0.2, abs=0.1)


def test_requests_and_rows_are_told_apart(ask: Ask) -> None:
    requests, rows = (ask(f"sum({QUERIES[f'{panel}, timeseries, A']})") for panel in ("Requests", "Inferences"))
    assert rows[0] == pytest.approx(ROWS * requests[0], rel=0.3)


def test_the_parts_of_a_request_are_its_latency(ask: Ask) -> None:
    parts = [ask(QUERIES[f"Where a request's time goes, timeseries, {part}"])[0] for part in "ABCD"]
    [latency] = ask(QUERIES["Mean latency, stat, A"])
    assert 0.3 * latency < sum(parts) < 1.3 * latency
