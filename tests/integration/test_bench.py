"""Load on the real tritonserver: its own counters must tell the same story as the generator's records."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import repo_builder
from client import Client, LoadData, UnknownModel, UsageError, run_load
from client.load.result import Level
from repo_builder import BuildOptions, ServingOptions, add_model
from repo_builder.config.image import image_preset
from repo_builder.samples import SampleOptions
from repo_builder.servers.local import LocalServer
from tests import models
from tests.support import steady_port

IN_THE_TABLE = SampleOptions(ranges={"ids": (0, 0)})  # all but one index are out of its range


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    made: dict[str, tuple[onnx.ModelProto, dict[str, Any]]] = {
        "linear": (models.linear(), {}),
        "patient": (models.linear(), {"serving": ServingOptions(max_queue_delay_us=50_000)}),
        "alone": (models.linear(batch=1), {"serving": ServingOptions(max_batch_size=0)}),
        "picture": (models.picture(16, 16), {"serving": ServingOptions(image=image_preset("unit"))}),
        "lookup": (models.lookup(), {"build": BuildOptions(samples=IN_THE_TABLE)}),
    }
    for name, (proto, options) in made.items():
        source = models.save(proto, folder / f"{name}.onnx")
        add_model(source, repository=folder / "models", **options)
    return folder / "models"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[LocalServer]:
    with repo_builder.serve(repository) as running:
        yield running


def level(server: LocalServer, model: str, **options: object) -> Level:
    result = run_load(model, url=server.url, warmup_s=0, floor=False, **options)  # type: ignore[arg-type]
    (found,) = result.levels
    return found


def test_the_server_counts_what_was_sent(server: LocalServer) -> None:
    found = level(server, "linear", concurrency=8, requests=600, batch=2)
    assert found.server is not None
    assert (found.statistics.errors, found.generator.wrong_answers) == (0, 0)
    assert (found.server.requests, found.server.inferences) == (600, 1200)
    assert sum(batch.size * batch.executions for batch in found.server.batches) == 1200
    assert sum(batch.executions for batch in found.server.batches) == found.server.executions


def test_batching_works_under_load_and_has_nothing_to_do_without(server: LocalServer) -> None:
    busy = level(server, "patient", concurrency=16, requests=800)
    assert busy.server is not None
    assert busy.server.mean_batch > 1.5
    assert busy.batching is not None
    assert busy.batching.startswith("Dynamic batching works: 800 requests")
    idle = level(server, "linear", concurrency=1, requests=100)
    assert idle.batching is not None
    assert "the load is too low, with one request in flight" in idle.batching
    sparse = level(server, "linear", rate=20, requests=8)
    assert sparse.batching is not None
    assert re.search(r"requests come [\d,]+ us apart .* with a queue delay of more than", sparse.batching)
    never = level(server, "alone", concurrency=4, requests=100)
    assert never.batching is not None
    assert "no batch axis" in never.batching


def test_the_parts_of_a_request_sum_to_the_whole(server: LocalServer) -> None:
    found = level(server, "linear", concurrency=1, requests=200)
    assert found.statistics.response is not None
    parts = {part.name: part.ms for part in found.split}
    assert sum(parts.values()) == pytest.approx(found.statistics.response.mean_ms.value)
    assert all(ms >= 0 for ms in parts.values())
    assert parts["server compute infer"] > 0


def test_somebody_else_on_the_model_is_noticed(server: LocalServer) -> None:
    with Client(server.url) as other:
        stop = threading.Event()

        def disturb() -> None:
            while not stop.is_set():
                other.infer("linear", {"x": np.zeros((1, 4), np.float32)})

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            found = level(server, "linear", concurrency=1, requests=200)
        finally:
            stop.set()
            thread.join()
    assert found.split == ()
    assert "somebody else uses the model" in found.notes[0]
    assert found.batching is not None
    assert found.batching.startswith("What dynamic batching did for this run can't be told")


def test_a_model_that_refuses_some_inputs(server: LocalServer) -> None:
    found = level(server, "lookup", concurrency=2, requests=60)
    assert found.statistics.errors > 0
    assert any("out of data bounds" in kind.message for kind in found.statistics.kinds)
    data = LoadData(ranges={"ids": "0:0"})
    assert level(server, "lookup", concurrency=2, requests=60, data=data).statistics.errors == 0


def test_pictures_and_arrays(server: LocalServer, tmp_path: Path) -> None:
    for name in ("one.png", "two.png", "three.png"):
        Image.new("RGB", (20, 20), "red").save(tmp_path / name)
    data = LoadData(pictures=(tmp_path,))
    found = level(server, "picture", concurrency=2, requests=40, batch=2, data=data)
    assert found.server is not None
    assert (found.statistics.errors, found.server.inferences) == (0, 80)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((8, 4), np.float32))
    data = LoadData(inputs={"x": str(tmp_path / "x.npy")})
    whole = level(server, "linear", requests=30, data=data)
    parts = level(server, "linear", requests=30, batch=2, data=data)
    assert whole.server is not None
    assert parts.server is not None
    assert (whole.server.inferences, parts.server.inferences) == (240, 60)


def test_what_the_server_used_and_served(server: LocalServer, repository: Path) -> None:
    """The tritonserver and its models' processes are found, and so are the model's files."""
    result = run_load("linear", url=server.url, requests=400, warmup_s=0, floor=False, metrics_url=server.metrics_url)
    used = result.levels[0].usage
    assert used.process is not None
    assert used.process.name == "tritonserver"
    assert used.process.processes > 1
    assert used.process.cpu_s > 0.01
    assert used.process.memory_peak_bytes > 50e6
    assert used.gpus == ()  # the real metrics, of a server without a GPU
    digest = hashlib.sha256((repository / "linear" / "1" / "model.onnx").read_bytes()).hexdigest()
    assert result.model.files_sha256 is not None
    assert result.model.files_sha256["model.onnx"] == digest
    assert result.environment.server_unseen == ""


def test_misuse(server: LocalServer, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="it has alone, linear, lookup, patient, picture"):
        level(server, "none", requests=1)
    with pytest.raises(UsageError, match="doesn't say how pictures are prepared"):
        level(server, "linear", requests=1, data=LoadData(pictures=(tmp_path,)))
    with pytest.raises(UsageError, match="serves several models"):
        run_load(url=server.url)


def test_two_runs_at_once(server: LocalServer) -> None:
    line = [sys.executable, "-m", "client.bench", "linear", "--url", server.url, "--requests", "300", "--json"]
    runs = [subprocess.Popen([*line, "--no-floor", "-q"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    documents = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    for document in documents:
        assert (document["levels"][0]["requests"], document["levels"][0]["errors"]) == (300, 0)


def test_a_server_that_dies_and_comes_back(repository: Path, tmp_path: Path) -> None:
    """The run goes on, and the time without a server is in the result."""
    file = tmp_path / "run.json"
    began = time.monotonic()
    first = repo_builder.serve(repository, models=["linear"], http_port=steady_port())
    seconds = round(4 + 3 * (time.monotonic() - began))  # it has to come back before the end, on a busy machine, too
    line = [sys.executable, "-m", "client.bench", "linear", "--url", first.url, "--rate", "100"]
    with first:
        run = subprocess.Popen(
            [*line, "--duration", f"{seconds}s", "--warmup", "0", "--no-floor", "--output", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert run.stderr is not None
        assert any("requests/s  p50" in line for line in run.stderr)
    stopped = time.monotonic()
    with repo_builder.serve(repository, models=["linear"], http_port=first.http_port):
        away = time.monotonic() - stopped
        out, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "Traceback" not in err
    assert re.search(r"INVALID: [\d,]+ of [\d,]+ requests failed", out), out
    (found,) = json.loads(file.read_text())["levels"]
    assert found["requests"] + found["generator"]["unsent"] == 100 * seconds
    assert found["error_windows"][0]["start_s"] > 0.5
    gone = found["error_windows"][-1]["end_s"] - found["error_windows"][0]["start_s"]
    assert 0.5 * away < gone < away + 3
    assert found["timeline"][-1]["requests"] > 0
