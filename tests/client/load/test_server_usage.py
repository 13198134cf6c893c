"""What the server uses: real processes read through /proc, and metrics as Triton writes them."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from client import ClientError, UsageError
from client.load.server_metrics import GpuMeter, metrics_url, read_gpus
from client.load.server_process import MemoryKind, ServerProcess, find_server, is_local
from client.load.server_usage import ServerUsage, Watch, Whereabouts, found_anew, locate, model_files
from client.transport import Url
from tests.support import wait_for

# The lines of a server with two GPUs; the second one's driver tells no power.
METRICS = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="resnet50",version="1"} 4071
# HELP nv_inference_compute_infer_duration_us Cumulative compute inference duration in microseconds
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{gpu_uuid="GPU-1c2d3e4f",model="resnet50",version="1"} 903311.000000
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-1c2d3e4f"} 0.620000
nv_gpu_utilization{gpu_uuid="GPU-5a6b7c8d"} 0.000000
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-1c2d3e4f"} 85899345920.000000
nv_gpu_memory_total_bytes{gpu_uuid="GPU-5a6b7c8d"} 8.589934592e+10
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1c2d3e4f"} 1325400064.000000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-5a6b7c8d"} 1048576.000000
# HELP nv_gpu_power_usage GPU power usage in watts
# TYPE nv_gpu_power_usage gauge
nv_gpu_power_usage{gpu_uuid="GPU-1c2d3e4f"} 310.250000
nv_gpu_power_usage{gpu_uuid="GPU-5a6b7c8d"} nan
# HELP nv_energy_consumption GPU energy consumption in joules since the Triton Server started
# TYPE nv_energy_consumption counter
nv_energy_consumption{gpu_uuid="GPU-1c2d3e4f"} 1000.500000
nv_cpu_utilization 0.25
"""

LISTENER = """
import os, socket, time
listener = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    while True: pass
print(listener.getsockname()[1], flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def metrics_server(pages: Sequence[str]) -> Iterator[str]:
    """The URL of a server that gives one page after the other, and the last one from then on."""
    left = list(pages)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (left.pop(0) if len(left) > 1 else left[0]).encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class TestMetrics:
    def test_gpus_are_read_and_nothing_else(self) -> None:
        found = read_gpus(METRICS)
        assert sorted(found) == ["GPU-1c2d3e4f", "GPU-5a6b7c8d"]
        assert found["GPU-1c2d3e4f"] == {
            "nv_gpu_utilization": 0.62,
            "nv_gpu_memory_total_bytes": 85899345920,
            "nv_gpu_memory_used_bytes": 1325400064,
            "nv_gpu_power_usage": 310.25,
            "nv_energy_consumption": 1000.5,
        }
        assert "nv_gpu_power_usage" not in found["GPU-5a6b7c8d"]
        assert read_gpus("nv_gpu_utilization{gpu_uuid=") == {}

    def test_a_window(self) -> None:
        later = METRICS.replace("0.620000", "0.820000").replace("1000.5", "1750.5").replace("1325400064", "2000000000")
        with metrics_server([METRICS, later]) as url:
            meter = GpuMeter(metrics_url(url))
            meter.read()
            meter.read()
            meter.close()
        first, second = meter.usage()
        assert (first.readings, first.utilization_peak) == (2, 0.82)
        assert first.utilization_mean == pytest.approx(0.72)
        assert (first.memory_peak_bytes, first.energy_j, first.power_mean_w) == (2_000_000_000, 750.0, 310.25)
        assert (second.power_mean_w, second.energy_j, second.utilization_mean) == (None, None, 0.0)

    def test_a_server_started_anew_has_no_energy(self) -> None:
        with metrics_server([METRICS, METRICS.replace("1000.5", "3.0")]) as url:
            meter = GpuMeter(metrics_url(url))
            meter.read()
            meter.read()
            meter.close()
        assert meter.usage()[0].energy_j is None

    def test_without_a_gpu_there_are_none(self) -> None:
        with metrics_server(["nv_cpu_utilization 0.1\n"]) as url:
            assert locate(Url.parse("10.9.8.7:9000"), socket.AF_INET, "203.0.113.1", 9000, url).metrics is None

    def test_a_given_url_must_be_one(self) -> None:
        with metrics_server(["<html>hello</html>"]) as url, pytest.raises(ClientError, match="no metrics of Triton"):
            locate(Url.parse("10.9.8.7:9000"), socket.AF_INET, "203.0.113.1", 9000, url)
        with pytest.raises(ClientError, match="Connection refused"):
            locate(Url.parse("10.9.8.7:9000"), socket.AF_INET, "203.0.113.1", 9000, "127.0.0.1:9")
        with pytest.raises(UsageError):
            metrics_url("https://example.com")


@pytest.fixture
def listener() -> Iterator[tuple[int, int]]:
    """Process id and port of a process that listens, and whose child works all the time."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    return float(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class TestProcess:
    def test_it_is_found_by_its_port(self, listener: tuple[int, int]) -> None:
        pid, port = listener
        found = find_server(socket.AF_INET, "127.0.0.1", port)
        assert found is not None
        assert (found.pid, found.arguments[1]) == (pid, "-c")
        assert find_server(socket.AF_INET6, "::1", port) is None

    def test_listening_on_every_address_counts(self) -> None:
        for family, every, host in ((socket.AF_INET, "0.0.0.0", "127.0.0.1"), (socket.AF_INET6, "::", "::1")):
            try:
                listening = socket.create_server((every, 0), family=family)
            except OSError:
                continue  # no IPv6 here
            with listening:
                found = find_server(family, host, listening.getsockname()[1])
            assert found is not None

    def test_its_children_count(self, listener: tuple[int, int]) -> None:
        pid, port = listener
        where = locate(Url.parse(f"127.0.0.1:{port}"), socket.AF_INET, "127.0.0.1", port)
        (child,) = children(pid)
        begin, before_s = time.monotonic(), cpu_s(child)
        with Watch(where) as watch:
            wait_for(lambda: cpu_s(child) > before_s + 0.4)
        used = watch.usage.process
        assert used is not None
        assert (used.pid, used.processes) == (pid, 2)
        assert 0.3 < used.cpu_s < cpu_s(child) - before_s + 0.1
        assert used.cpu_s / (time.monotonic() - begin) <= used.cores < 1.2
        # The fork shares nearly all of its parent's pages.
        rss = sum(resident(process) for process in (pid, *children(pid)))
        assert used.memory_kind is MemoryKind.PROPORTIONAL
        assert 1e6 < used.memory_mean_bytes <= used.memory_peak_bytes < 0.8 * rss

    def test_memory_where_shares_of_pages_cannot_be_read(
        self, listener: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = Path.read_text

        def refused(path: Path, *arguments: Any, **options: Any) -> str:
            if path.name == "smaps_rollup":
                raise PermissionError
            return read(path, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", refused)
        with Watch(Whereabouts(ServerProcess(listener[0], "python", ()), "", None)) as watch:
            pass
        used = watch.usage.process
        assert used is not None
        assert used.memory_kind is MemoryKind.RESIDENT
        rss = sum(resident(process) for process in (listener[0], *children(listener[0])))
        assert used.memory_peak_bytes == pytest.approx(rss, rel=0.3)

    def test_a_server_elsewhere_is_said_to_be(self) -> None:
        found = locate(Url.parse("203.0.113.1:9000"), socket.AF_INET, "203.0.113.1", 9000)
        assert found.process is None
        assert "not on this machine" in found.unseen
        assert is_local(socket.AF_INET, "127.0.0.1")
        with Watch(found) as watch:
            pass
        assert watch.usage == ServerUsage()

    def test_what_python_compiled_is_no_file_of_a_model(self, tmp_path: Path) -> None:
        for name in ("model.py", "parts/a.py", "__pycache__/model.pyc", "parts/__pycache__/a.pyc"):
            (tmp_path / "net" / "1" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "net" / "1" / name).write_text(name)
        process = ServerProcess(os.getpid(), "tritonserver", (f"--model-repository={tmp_path}",))
        assert sorted(model_files(process, "net", "1") or ()) == ["model.py", "parts/a.py"]

    def test_a_process_that_ends_is_told(self) -> None:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        with Watch(Whereabouts(ServerProcess(process.pid, "python", ()), "", None)) as watch:
            process.kill()
            process.wait()
        assert watch.server_ended
        with Watch(Whereabouts(ServerProcess(os.getpid(), "python", ()), "", None)) as watch:
            pass
        assert not watch.server_ended

    def test_a_server_that_was_started_anew_is_found_anew(self, listener: tuple[int, int]) -> None:
        pid, port = listener
        gone = Whereabouts(ServerProcess(1 << 22, "python", ()), "", None)
        found = found_anew(gone, socket.AF_INET, "127.0.0.1", port)
        assert found.process is not None
        assert found.process.pid == pid
        elsewhere = Whereabouts(None, "not on this machine", None)
        assert found_anew(elsewhere, socket.AF_INET, "127.0.0.1", port) == elsewhere

    def test_flags_of_its_command_line(self) -> None:
        server = ServerProcess(1, "tritonserver", ("tritonserver", "--model-repository=/a", "--model-repository", "/b"))
        assert server.flags("model-repository") == ["/a", "/b"]
        assert server.flags("metrics-port") == []
