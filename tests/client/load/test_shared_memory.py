"""``--shared-memory cuda`` where there is no GPU: every refusal, and with a fake of CUDA all but CUDA itself.

The server is the real one.  As it can't open the fake's memory, a proxy in front of it registers the files that stand
for it as system shared memory.  The real thing is tested on a GPU (``tests/gpu``).
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import repo_builder
from client import Client, ClientError, LoadData, UsageError, run_load
from client.load.bodies import make_inputs
from client.load.check import read_answer
from client.load.delivery import Delivery, Protocol, SharedMemory
from client.load.prepare import prepare
from client.load.schedule import Load, Window
from client.load.workers import Workers
from client.protocol import Request
from repo_builder.model import DataType
from repo_builder.servers.local import LocalServer
from tests import models
from tests.client.command import command
from tests.client.load import fake_cuda
from tests.support import assert_all_are

CUDA = Delivery(shared_memory=SharedMemory.CUDA)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("cuda")
    for name, proto in {"linear": models.linear(), "text": models.identity(DataType.STRING)}.items():
        repo_builder.add_model(models.save(proto, folder / f"{name}.onnx"), repository=folder / "models")
    with repo_builder.serve(folder / "models") as running:
        yield running


@pytest.fixture(scope="module")
def seen() -> list[tuple[str, Any]]:
    """Paths and bodies of what was registered, one after the other."""
    return []


@pytest.fixture(scope="module")
def proxy(server: LocalServer, seen: list[tuple[str, Any]]) -> Iterator[str]:
    """The URL of the server with a fake GPU."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.startswith("/v2/cudasharedmemory") and self.path.endswith("/register"):
                given = json.loads(body)
                seen.append((self.path, given))
                key = fake_cuda.file_of(base64.b64decode(given["raw_handle"]["b64"], validate=True))
                body = json.dumps({"key": f"/{key}", "offset": 0, "byte_size": given["byte_size"]}).encode()
            path = self.path.replace("/cudasharedmemory", "/systemsharedmemory")
            kept = {"content-type", "inference-header-content-length"}
            with contextlib.closing(http.client.HTTPConnection(server.url.removeprefix("http://"))) as there:
                there.request(self.command, path, body, {k: v for k, v in self.headers.items() if k.lower() in kept})
                answer = there.getresponse()
                data = answer.read()
            self.send_response_only(answer.status)
            for key, value in answer.getheaders():
                if key.lower() in kept:
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.fixture
def fake_gpu(tmp_path: Path) -> Iterator[None]:
    with fake_cuda.installed(tmp_path / "fake"):
        yield


def regions(url: str, kind: str = "cuda") -> Any:
    with Client(url) as asking:
        return json.loads(asking.send(Request("GET", f"/v2/{kind}sharedmemory/status")).body)


@pytest.mark.parametrize("model", ["linear", "text"])
@pytest.mark.parametrize("protocol", Protocol)
def test_answers_are_those_of_an_ordinary_client(
    server: LocalServer, proxy: str, seen: list[tuple[str, Any]], fake_gpu: None, protocol: Protocol, model: str
) -> None:
    grpc_url = server.grpc_url if protocol is Protocol.GRPC else None
    delivery = Delivery(protocol, SharedMemory.CUDA, grpc_url=grpc_url)
    del seen[:]
    with Client(proxy) as asking:
        metadata = asking.metadata(model)
        inputs = make_inputs(metadata, LoadData(variants=1), 2, 7)
        expected = asking.infer(model, {tensor.name: tensor.array for tensor in inputs.requests[0]})
        with (
            prepare(asking, metadata, inputs, delivery, 10.0, 3) as prepared,
            Workers(prepared.setup, 2) as workers,
        ):
            assert len(regions(proxy)) == 1 + 3
            phase = workers.run(Load(concurrency=3).phases(2, Window(requests=60), 0))
        answers = [read_answer(s, grpc=prepared.setup.grpc, places=prepared.places) for s in phase.samples]
    assert regions(proxy) == []
    assert not phase.store.status.any()
    assert_all_are(expected, answers)
    assert max(len(request) for request in prepared.setup.requests) < 1000
    assert len(seen) == 4
    for path, body in seen:
        assert path.startswith("/v2/cudasharedmemory/region/client-bench-")
        assert set(body) == {"raw_handle", "device_id", "byte_size"}
        assert body["device_id"] == 0
        assert len(base64.b64decode(body["raw_handle"]["b64"])) == fake_cuda.CUDA_IPC_HANDLE_SIZE


def test_a_whole_run(proxy: str, fake_gpu: None) -> None:
    done = command(
        "bench", "linear", "-u", proxy, "--shared-memory", "cuda", "--concurrency", "2,5", "-n", 200, "-b", 2,
        "--warmup", 0, "--workers", 2, "-q", "--json",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["settings"]["shared_memory"] == "cuda"
    assert document["floor"]["p50_ms"] > 0
    for level in document["levels"]:
        assert (level["requests"], level["errors"], level["generator"]["wrong_answers"]) == (200, 0, 0)
        assert (level["server"]["requests"], level["server"]["inferences"]) == (200, 400)
    assert regions(proxy) == []


def test_ctrl_c_leaves_nothing(proxy: str, fake_gpu: None) -> None:
    line = [sys.executable, "-m", "client.bench", "linear", "-u", proxy, "--duration", "60s", "--warmup", "0"]
    process = subprocess.Popen(
        [*line, "--no-floor", "--shared-memory", "cuda", "--concurrency", "3"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("requests/s" in line for line in process.stderr)
    assert len(fake_cuda.files()) == len(regions(proxy)) == 8 + 3
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert regions(proxy) == []


def test_a_gpu_that_breaks_during_the_run(proxy: str, fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_READS", "1")
    result = run_load("linear", url=proxy, delivery=CUDA, concurrency=1, duration_s=0.5, warmup_s=0, floor=False)
    (level,) = result.levels
    assert (level.statistics.errors, level.generator.lost_workers) == (0, 0)
    assert level.generator.wrong_answers > 0
    reason = "its outputs can't be read from shared memory (cudaMemcpy: cudaErrorIllegalAddress)"
    assert any(text.endswith(reason) for text in level.verdict.reasons)
    assert regions(proxy) == []


def test_too_little_memory_on_the_gpu(proxy: str, fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cuda, "MEMORY", 23 << 20)  # eight inputs and three outputs
    with pytest.raises(ClientError, match=r"MiB of the GPU's memory can't be had.*cudaErrorMemoryAllocation") as caught:
        run_load("linear", url=proxy, delivery=CUDA, concurrency=8)
    assert "--concurrency" in str(caught.value.hint)
    assert regions(proxy) == []


def test_a_server_without_a_gpu_refuses(server: LocalServer, fake_gpu: None) -> None:
    done = command("bench", "linear", "-u", server.url, "--shared-memory", "cuda", "-n", 10)
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = filter(None, done.stderr.splitlines())
    refusal = "failed to register shared memory region: invalid args"
    assert error.endswith(f"can't use the memory of this machine's GPU: {refusal}")
    assert "has no GPU" in hint
    assert "--pid=host" in hint
    assert regions(server.url) == []


def test_a_machine_without_a_gpu(server: LocalServer) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0].value == 0:
        pytest.skip("there is a GPU")
    done = command("bench", "linear", "-u", server.url, "--shared-memory", "cuda", "-n", 10)
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = filter(None, done.stderr.splitlines())
    assert "--shared-memory cuda needs an NVIDIA GPU, and CUDA finds none here (cudaGetDeviceCount: cudaError" in error
    assert "--shared-memory system" in hint


def test_without_cuda_python(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(cuInit=lambda _: 0))
    with pytest.raises(UsageError, match="needs the package cuda-python") as caught:
        run_load("linear", url=server.url, delivery=CUDA)
    assert caught.value.hint == "pip install 'repo-builder[cuda]'"


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        ("libnothing.so.1", "cannot open shared object file"),
        (SimpleNamespace(cuInit=lambda _: 100), "cuInit: error 100"),
    ],
)
def test_without_cuda_python_and_a_gpu(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, driver: str | SimpleNamespace, reason: str
) -> None:
    load = ctypes.CDLL
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: load(driver) if isinstance(driver, str) else driver)
    with pytest.raises(ClientError, match=f"needs an NVIDIA GPU, and CUDA finds none here .*{reason}"):
        run_load("linear", url=server.url, delivery=CUDA)
