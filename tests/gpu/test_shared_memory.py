"""``client.bench --shared-memory``: the real server, a real plan, and tensors in the memory of a real GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repo_builder
from client import Client, LoadData, run_load
from client.load.bodies import make_inputs
from client.load.check import read_answer
from client.load.delivery import Delivery, Protocol, SharedMemory
from client.load.prepare import prepare
from client.load.schedule import Load, Window
from client.load.workers import Workers
from client.protocol import Request
from repo_builder.build import BuildOptions
from repo_builder.compilers.base import Target
from repo_builder.config.build import INPUTS_TO_HOST, ServingOptions
from repo_builder.servers.local import LocalServer
from repo_builder.trt.cuda import call, runtime
from tests import models
from tests.client.command import command
from tests.gpu.test_tensorrt import add, network

pytestmark = pytest.mark.gpu

OPEN = """
import ctypes, sys
from cuda.bindings import runtime
handle = runtime.cudaIpcMemHandle_t()
ctypes.memmove(handle.getPtr(), bytes.fromhex(sys.argv[1]), runtime.CUDA_IPC_HANDLE_SIZE)
error, _ = runtime.cudaIpcOpenMemHandle(handle, runtime.cudaIpcMemLazyEnablePeerAccess)
sys.exit(error.name if error.value else 0)
"""
SHARED = (SharedMemory.SYSTEM, SharedMemory.CUDA)
CUDA = ("--shared-memory", "cuda")


@pytest.fixture(scope="module")
def gpu(tensorrt_on_a_gpu: None) -> None:
    """Skip where no process may open another's memory of a GPU, as in some containers."""
    address = call("cudaMalloc", 1)
    handle = call("cudaIpcGetMemHandle", address)
    data = ctypes.string_at(handle.getPtr(), runtime().CUDA_IPC_HANDLE_SIZE)
    done = subprocess.run([sys.executable, "-c", OPEN, data.hex()], capture_output=True, text=True, timeout=120)
    call("cudaFree", address)
    if done.returncode:
        pytest.skip(f"CUDA IPC does not work on this machine: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def server(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        add(folder, network(), tf32=False)
    with repo_builder.serve(folder / "models") as running:
        yield running


@pytest.fixture(params=[(protocol, shared) for protocol in Protocol for shared in SHARED], ids="-".join)
def delivery(request: pytest.FixtureRequest, server: LocalServer) -> Delivery:
    protocol, shared = request.param
    if protocol is Protocol.GRPC and importlib.util.find_spec("hpack") is None:
        pytest.skip("needs hpack, of the extra grpc")
    return Delivery(protocol, shared, grpc_url=server.grpc_url if protocol is Protocol.GRPC else None)


def regions(url: str) -> list[Any]:
    """What the server knows of shared memory, of either kind."""
    with Client(url) as asking:
        paths = [f"/v2/{kind.value}sharedmemory/status" for kind in SHARED]
        return [region for path in paths for region in json.loads(asking.send(Request("GET", path)).body)]


def check_answers(server: LocalServer, delivery: Delivery, seed: int) -> None:
    """Compare answers with those that an ordinary client gets."""
    with Client(server.url) as asking:
        metadata = asking.metadata("net")
        inputs = make_inputs(metadata, LoadData(variants=1), 2, seed)
        expected = asking.infer("net", {tensor.name: tensor.array for tensor in inputs.requests[0]})["y"]
        with (
            prepare(asking, metadata, inputs, delivery, 10.0, 3) as prepared,
            Workers(prepared.setup, 2) as workers,
        ):
            assert len(regions(server.url)) == 1 + 3
            phase = workers.run(Load(concurrency=3).phases(2, Window(0.5), 0))
        answers = [read_answer(s, grpc=prepared.setup.grpc, places=prepared.places)["y"] for s in phase.samples]
    assert regions(server.url) == []
    assert len(phase.store) > 0
    assert not phase.store.status.any(), phase.messages
    assert len(answers) >= 2
    for answer in answers:
        np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("seed", [1, 2])
def test_answers_are_those_of_an_ordinary_client(server: LocalServer, delivery: Delivery, seed: int) -> None:
    check_answers(server, delivery, seed)


def test_inputs_that_triton_brings_to_the_host(gpu: None, own_folders: None, tmp_path: Path) -> None:
    extra = tmp_path / "extra.pbtxt"
    extra.write_text(f'parameters {{ key: "{INPUTS_TO_HOST}" value {{ string_value: "yes" }} }}')
    add(tmp_path, network(), ServingOptions(config=extra), tf32=False)
    with repo_builder.serve(tmp_path / "models") as running:
        for seed in (1, 2):
            check_answers(running, Delivery(shared_memory=SharedMemory.CUDA), seed)


def test_the_server_counts_what_was_sent(server: LocalServer, delivery: Delivery) -> None:
    result = run_load("net", url=server.url, delivery=delivery, concurrency=8, requests=2000, batch=4, workers=2)
    (found,) = result.levels
    assert (found.statistics.requests, found.statistics.errors, found.generator.wrong_answers) == (2000, 0, 0)
    assert found.generator.lost_workers == 0
    assert found.server is not None
    assert (found.server.requests, found.server.inferences) == (2000, 8000)
    assert result.floor is not None
    assert regions(server.url) == []


def test_an_open_loop(server: LocalServer) -> None:
    delivery = Delivery(shared_memory=SharedMemory.CUDA)
    (found,) = run_load("net", url=server.url, delivery=delivery, rate=300, duration_s=1, floor=False).levels
    assert (found.statistics.requests, found.statistics.errors, found.generator.wrong_answers) == (300, 0, 0)
    assert regions(server.url) == []


def test_ctrl_c_leaves_nothing(server: LocalServer) -> None:
    line = [sys.executable, "-m", "client.bench", "net", "-u", server.url, "--duration", "60s", "--warmup", "0"]
    process = subprocess.Popen(
        [*line, "--no-floor", *CUDA, "--concurrency", "3"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("requests/s" in line for line in process.stderr)
    assert len(regions(server.url)) == 8 + 3
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert "Traceback" not in said
    assert regions(server.url) == []


def test_a_client_that_sees_no_gpu(server: LocalServer) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client.bench", "net", "-u", server.url, *CUDA],
        capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "needs an NVIDIA GPU, and CUDA finds none here (cudaGetDeviceCount: cudaErrorNoDevice)" in done.stderr


def test_a_server_that_sees_no_gpu(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.save(models.linear(), tmp_path / "linear.onnx")
    repo_builder.add_model(source, repository=tmp_path / "models", build=BuildOptions(target=Target.ONNXRUNTIME))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with repo_builder.serve(tmp_path / "models") as blind:
        monkeypatch.undo()
        done = command("bench", "linear", "-u", blind.url, *CUDA, "-n", 10)
        assert (done.returncode, done.stdout) == (1, "")
        assert "can't use the memory of this machine's GPU" in done.stderr
        assert "CUDA IPC" in Path(blind.log_file).read_text()
        assert regions(blind.url) == []
