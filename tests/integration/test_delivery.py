"""Every way of sending to the real tritonserver: what comes back is what an ordinary client gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import client
import repo_builder
from client import Client, ClientError, LoadData, run_load
from client.load.bodies import make_inputs
from client.load.check import read_answer
from client.load.delivery import Compression, Delivery, Protocol, SharedMemory
from client.load.html import report_page
from client.load.prepare import prepare
from client.load.schedule import Load, Window
from client.load.workers import Workers
from client.protocol import Request
from repo_builder.build import BuildOptions
from repo_builder.model import DataType
from repo_builder.samples import SampleOptions
from repo_builder.servers.local import LocalServer
from tests import models
from tests.client.command import command
from tests.support import assert_all_are, wait_for

SCHEMA = json.loads((Path(client.__file__).parent / "load" / "run.schema.json").read_text())
WAYS: dict[str, dict[str, Any]] = {
    "http": {},
    "grpc": {"protocol": Protocol.GRPC},
    "shared": {"shared_memory": SharedMemory.SYSTEM},
    "grpc shared": {"protocol": Protocol.GRPC, "shared_memory": SharedMemory.SYSTEM},
    "gzip": {"compression": Compression.GZIP},
    "deflate": {"compression": Compression.DEFLATE},
}
MODELS = ("linear", "text", "wide")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("delivery")
    made = {
        "linear": models.linear(),
        "text": models.identity(DataType.STRING),
        "wide": models.identity(DataType.FP16, ("batch", 200_000), ("batch", 200_000)),
        "lookup": models.lookup(),
    }
    known = {"lookup": SampleOptions(ranges={"ids": (0, 0)})}  # all but one index are out of the table's range
    for name, proto in made.items():
        build = BuildOptions(samples=known.get(name, SampleOptions()))
        repo_builder.add_model(models.save(proto, folder / f"{name}.onnx"), repository=folder / "models", build=build)
    with repo_builder.serve(folder / "models") as running:
        yield running


def delivery(server: LocalServer, way: str) -> Delivery:
    options = WAYS[way]
    grpc_url = server.grpc_url if options.get("protocol") else None
    return Delivery(grpc_url=grpc_url, **options)


def regions(server: LocalServer) -> object:
    with Client(server.url) as asking:
        return json.loads(asking.send(Request("GET", "/v2/systemsharedmemory/status")).body)


def files(process: int | None = None) -> list[Path]:
    """What a process, this one if none is named, has in shared memory."""
    return list(Path("/dev/shm").glob(f"client-bench-{process or os.getpid()}-*"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_of_an_ordinary_client(server: LocalServer, way: str, model: str) -> None:
    requests = 20 if model == "wide" else 60
    with Client(server.url) as asking:
        metadata = asking.metadata(model)
        inputs = make_inputs(metadata, LoadData(variants=1), 2, 7)
        expected = asking.infer(model, {tensor.name: tensor.array for tensor in inputs.requests[0]})
        with (
            prepare(asking, metadata, inputs, delivery(server, way), 10.0, 3) as prepared,
            Workers(prepared.setup, 2) as workers,
        ):
            phase = workers.run(Load(concurrency=3).phases(2, Window(requests=requests), 0))
        grpc = prepared.setup.grpc
        answers = [read_answer(sample, grpc=grpc, places=prepared.places) for sample in phase.samples]
    assert len(phase.store) == requests
    assert not phase.store.status.any()
    assert_all_are(expected, answers)
    if way in {"gzip", "deflate"}:
        assert {sample.encoding for sample in phase.samples} == {way}
    if "shared" in way:
        assert max(len(sample.body) for sample in phase.samples) < 1000


@pytest.mark.parametrize("way", WAYS)
def test_the_server_counts_what_was_sent(server: LocalServer, way: str) -> None:
    floor = way in {"grpc shared", "gzip"}
    result = run_load(
        "linear", url=server.url, delivery=delivery(server, way), concurrency=5, requests=300, batch=2, warmup_s=0,
        workers=2, floor=floor,
    )  # fmt: skip
    (found,) = result.levels
    assert (found.statistics.errors, found.generator.wrong_answers) == (0, 0)
    assert found.server is not None
    assert (found.server.requests, found.server.inferences) == (300, 600)
    assert (result.floor is not None) is floor
    assert regions(server) == []
    assert files() == []


def test_an_open_loop_through_shared_memory(server: LocalServer) -> None:
    shared = delivery(server, "shared")
    (found,) = run_load("linear", url=server.url, delivery=shared, rate=200, duration_s=0.5, floor=False).levels
    assert found.statistics.requests + found.generator.unsent == 100
    assert (found.statistics.errors, found.generator.wrong_answers) == (0, 0)


@pytest.mark.parametrize("way", ["grpc", "grpc shared"])
def test_what_the_model_refuses(server: LocalServer, way: str) -> None:
    data = LoadData(ranges={"ids": "0:1"}, variants=32)
    (found,) = run_load(
        "lookup", url=server.url, delivery=delivery(server, way), data=data, requests=60, warmup_s=0, floor=False
    ).levels
    assert 0 < found.statistics.errors < 60
    assert all(kind.message.startswith("gRPC ") for kind in found.statistics.kinds)
    assert any("out of data bounds" in kind.message for kind in found.statistics.kinds)


def test_a_model_that_refuses_everything_has_no_place_for_outputs(server: LocalServer) -> None:
    data = LoadData(ranges={"ids": "100:200"})
    with pytest.raises(ClientError, match="out of data bounds"):
        run_load("lookup", url=server.url, delivery=delivery(server, "shared"), data=data)
    assert files() == []


def test_the_way_is_in_the_result(server: LocalServer) -> None:
    documents = []
    for way in ((), ("-i", "grpc", "--shared-memory", "system")):  # the port is read from the server's command line
        done = command("bench", "linear", "-u", server.url, "-n", 30, "--warmup", 0, "--no-floor", "-q", "--json", *way)
        documents.append(json.loads(done.stdout))
        jsonschema.validate(documents[-1], SCHEMA)
    plain, other = (document["settings"] for document in documents)
    assert (plain["protocol"], plain["shared_memory"], plain["compression"]) == ("http", "none", "none")
    assert (other["protocol"], other["shared_memory"], other["compression"]) == ("grpc", "system", "none")
    assert other["target"] == f"http://{server.grpc_url}"
    assert plain["requests_sha256"] == other["requests_sha256"]  # the same tensors, however they are sent
    assert other["request_bytes"] < 1000
    page = report_page(documents[1])
    assert f"sent over gRPC to http://{server.grpc_url}, tensors in shared memory (system), by 1 process" in page


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_before_the_end_leaves_no_memory(server: LocalServer, number: int) -> None:
    line = [sys.executable, "-m", "client.bench", "linear", "-u", server.url, "--duration", "60s", "--warmup", "0"]
    process = subprocess.Popen(
        [*line, "--no-floor", "--shared-memory", "system", "--concurrency", "3"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("requests/s" in line for line in process.stderr)
    assert len(files(process.pid)) == 8 + 3
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as the terminal does: to the workers and the tracker of memory, too
        process.communicate(timeout=20)
        assert regions(server) == []
    else:
        process.kill()
        process.communicate(timeout=20)
        wait_for(lambda: not files(process.pid))
    assert files(process.pid) == []
