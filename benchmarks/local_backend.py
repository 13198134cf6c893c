"""EfficientNet-Lite0 through the local server's HTTP API, against ONNX Runtime in this process on the same CPUs.

    python benchmarks/local_backend.py [--repeats 7] [--seconds 3] [--quick]

The load generator, the server and ONNX Runtime share the machine, as they do on a laptop.  The reference is ONNX
Runtime at the sessions, threads and batch that are fastest here; all cases but the default get that batch as their
max_batch_size.  Reference and cases take turns in short slices; a ratio is a case's images/s by the mean of the
reference slices before and after it, and the ratio reported is the median of the repeats.  A slice during which other
processes took more than 5 % of the CPUs is measured again, up to ten times.  The CPU time of an image is given by
process, so that one sees what the server's front end, its backend and the load generator each take of the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from load_support import busy_seconds
from onnx import TensorProto, helper, numpy_helper

from repo_builder.servers.local import LocalServer, serve

HERE = Path(__file__).parent
MODEL = HERE.parent / "examples/efficientnet-lite0/model.onnx"
RESULTS = HERE / "results/local_backend.json"
CPUS = len(os.sched_getaffinity(0))
CONCURRENCY = 8
BATCHES = (1, 2, 4, 8, 16)
FOREIGN_SHARE = 0.05
ATTEMPTS = 10
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """A way to serve the model and to send pictures to it; without a batch, at the reference's best one."""

    name: str
    instances: int
    max_batch_size: int | None = None
    uint8: bool = False
    shared_memory: bool = False


CASES = (
    Case("1 instance (the default)", instances=1, max_batch_size=8),
    Case(f"{CPUS} instances", instances=CPUS),
    Case(f"{CPUS} instances, shared memory", instances=CPUS, shared_memory=True),
    Case(f"{CPUS} instances, UINT8 pictures", instances=CPUS, uint8=True),
)


# The machine: who uses its CPUs


def cpu_seconds(server: LocalServer | None) -> Counter[str]:
    """Return the CPU seconds used so far by this process ("client") and by each kind of process of ``server``."""
    used = Counter({"client": time.process_time()})
    for stat in Path("/proc").glob("[0-9]*/stat") if server else ():
        try:
            command, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        if server and int(fields[3]) == server.pid:  # the server is the leader of its session
            used["backend" if command.startswith("triton_python") else "server"] += (
                int(fields[11]) + int(fields[12])
            ) / TICKS
    return used


@dataclass(frozen=True)
class Slice:
    """What one slice of measuring gave; CPU time in seconds an image by process, latencies in seconds."""

    images_per_s: float
    cpu_s: Mapping[str, float]
    foreign: float  # share of the CPUs that other processes took
    latencies: tuple[float, ...] = ()


def measured(
    work: Callable[[float], tuple[int, float, Sequence[float]]], seconds: float, server: LocalServer | None
) -> Slice:
    """Run ``work`` for ``seconds``, again while other processes disturb it; return the least disturbed slice."""
    slices = []
    for _ in range(ATTEMPTS):
        before, all_before = cpu_seconds(server), busy_seconds()
        images, took, latencies = work(seconds)
        own = cpu_seconds(server) - before
        foreign = max(0.0, busy_seconds() - all_before - own.total()) / (took * CPUS)
        cpu = {process: used / images for process, used in own.items()}
        slices.append(Slice(images / took, cpu, foreign, tuple(latencies)))
        if foreign <= FOREIGN_SHARE:
            break
        time.sleep(1)
    return min(slices, key=lambda part: part.foreign)


# ONNX Runtime in this process


class Reference:
    """ONNX Runtime without a server: ``sessions`` of ``threads`` intra-op threads, each run in a loop on a batch."""

    def __init__(self, model: Path, sessions: int, threads: int, batch: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = [
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for _ in range(sessions)
        ]
        self.label = f"sessions {sessions}, threads {threads}, batch {batch}"
        self.feed = {"image": pictures(self.sessions[0], batch)}
        self.batch = batch

    def run(self, seconds: float) -> tuple[int, float, Sequence[float]]:
        counts = [0] * len(self.sessions)
        began = time.perf_counter()

        def loop(index: int) -> None:
            while time.perf_counter() - began < seconds:
                self.sessions[index].run(None, self.feed)
                counts[index] += self.batch

        in_threads(loop, len(self.sessions))
        return sum(counts), time.perf_counter() - began, ()


def best_reference(model: Path, seconds: float) -> tuple[Reference, dict[str, float]]:
    """Try sessions x threads x batches that fill the CPUs, and one thread alone; return the fastest and all rates."""
    settings = {(1, CPUS), (CPUS, 1), (1, 1)}
    rates = {}
    best: tuple[float, Reference] | None = None
    for sessions, threads in sorted(settings):
        for batch in BATCHES:
            reference = Reference(model, sessions, threads, batch)
            reference.run(0.2)
            rate = measured(reference.run, seconds, None).images_per_s
            rates[reference.label] = round(rate, 1)
            if best is None or rate > best[0]:
                best = (rate, reference)
    assert best is not None
    return best[1], rates


def pictures(session: onnxruntime.InferenceSession, count: int) -> np.ndarray:
    node = session.get_inputs()[0]
    shape = (count, *node.shape[1:])
    random = np.random.default_rng(count)
    if node.type == "tensor(uint8)":
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape, np.float32)


# The server and its load


def write_uint8_model(source: Path, target: Path) -> None:
    """Write ``source`` with its preprocessing in front: UINT8 pictures [N, 224, 224, 3] in place of FP32 planes."""
    model = onnx.load(source)
    graph = model.graph
    graph.node.insert(0, helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT))
    graph.node.insert(1, helper.make_node("Transpose", ["levels"], ["planes"], perm=[0, 3, 1, 2]))
    graph.node.insert(2, helper.make_node("Mul", ["planes", "scale"], ["scaled"]))
    graph.node.insert(3, helper.make_node("Sub", ["scaled", "offset"], ["normalised"]))
    graph.initializer.extend(
        numpy_helper.from_array(np.float32(number), name) for name, number in (("scale", 1 / 64), ("offset", 2.0))
    )
    for node in list(graph.node)[4:]:
        node.input[:] = ["normalised" if name == "image" else name for name in node.input]
    graph.node[0].input[0] = "image"
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 224, 224, 3])
    graph.input[0].CopyFrom(image)
    target.write_bytes(model.SerializeToString())


def write_repository(root: Path, model: Path, case: Case, max_batch_size: int) -> Path:
    (root / "model/1").mkdir(parents=True)
    (root / "model/1/model.onnx").symlink_to(model)
    image = "data_type: TYPE_UINT8 dims: [224, 224, 3]" if case.uint8 else "data_type: TYPE_FP32 dims: [3, 224, 224]"
    (root / "model/config.pbtxt").write_text(f"""\
platform: "onnxruntime_onnx"
max_batch_size: {max_batch_size}
input [{{ name: "image" {image} }}]
output [{{ name: "probabilities" data_type: TYPE_FP32 dims: [1000] }}]
instance_group [{{ count: {case.instances} kind: KIND_CPU }}]
dynamic_batching {{}}
""")
    return root


class Client:
    """One connection that sends the same picture again and again and checks what comes back."""

    def __init__(self, server: LocalServer, picture: np.ndarray, expected: np.ndarray, region: str | None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.http_port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray(1 << 16)
        self.best = int(expected.argmax())
        self.expected = float(expected[self.best])
        data = b"" if region else picture.tobytes()
        where = {"shared_memory_region": region, "shared_memory_byte_size": picture.nbytes}
        tensor = {
            "name": "image",
            "shape": list(picture.shape),
            "datatype": "UINT8" if picture.dtype == np.uint8 else "FP32",
            "parameters": where if region else {"binary_data_size": len(data)},
        }
        header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        lines = [
            "POST /v2/models/model/infer HTTP/1.1",
            "Host: localhost",
            f"Inference-Header-Content-Length: {len(header)}",
            f"Content-Length: {len(header) + len(data)}",
        ]
        self.request = "\r\n".join([*lines, "", ""]).encode() + header + data

    def infer(self) -> float:
        """Send the picture, check status and the best class's probability; return the seconds it took."""
        began = time.perf_counter()
        self.socket.sendall(self.request)
        received = self.socket.recv_into(self.buffer)
        while (head := self.buffer.find(b"\r\n\r\n", 0, received)) < 0:
            received += self.socket.recv_into(memoryview(self.buffer)[received:])
        at = self.buffer.index(b"\r\nContent-Length: ", 0, head) + 18
        end = head + 4 + int(self.buffer[at : self.buffer.index(b"\r", at)])
        while received < end:
            received += self.socket.recv_into(memoryview(self.buffer)[received:])
        took = time.perf_counter() - began
        if self.buffer[9:12] != b"200":
            raise RuntimeError(self.buffer[:received].decode(errors="replace"))
        (value,) = struct.unpack_from("<f", self.buffer, end - 4000 + 4 * self.best)
        if abs(value - self.expected) > 1e-3:
            raise RuntimeError(f"probability {value} in place of {self.expected}")
        return took


class Load:
    """Several clients, each with a picture of its own, sending at once."""

    def __init__(self, server: LocalServer, clients: Sequence[Client]) -> None:
        self.server = server
        self.clients = clients

    def run(self, seconds: float, concurrency: int = CONCURRENCY) -> tuple[int, float, Sequence[float]]:
        latencies: list[float] = []
        began = time.perf_counter()

        def loop(index: int) -> None:
            while time.perf_counter() - began < seconds:
                latencies.append(self.clients[index].infer())

        in_threads(loop, concurrency)
        return len(latencies), time.perf_counter() - began, latencies


@contextmanager
def serving(case: Case, model: Path, max_batch_size: int) -> Iterator[Load]:
    """Serve ``model`` as ``case`` says; give a load that has already warmed it up."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = pictures(session, CONCURRENCY)
    expected = [session.run(None, {"image": images[index : index + 1]})[0][0] for index in range(CONCURRENCY)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(serve(write_repository(folder, model, case, max_batch_size)))
        clients = []
        for index in range(CONCURRENCY):
            region = stack.enter_context(shared_picture(server, images[index], index)) if case.shared_memory else None
            client = Client(server, images[index : index + 1], expected[index], region)
            stack.callback(client.socket.close)
            clients.append(client)
        load = Load(server, clients)
        load.run(1.5)
        yield load


@contextmanager
def shared_picture(server: LocalServer, picture: np.ndarray, index: int) -> Iterator[str]:
    """Put ``picture`` into system shared memory and register it; give the region's name."""
    import tritonclient.http as triton

    memory = SharedMemory(create=True, size=picture.nbytes)
    try:
        memory.buf[: picture.nbytes] = picture.tobytes()
        name = f"picture_{index}"
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            client.register_system_shared_memory(name, f"/{memory.name}", picture.nbytes)
        yield name
    finally:
        memory.close()
        memory.unlink()


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run ``work(0)`` to ``work(count - 1)`` at once; raise the first error of any."""
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# Putting it together


def percentile(latencies: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile in milliseconds."""
    ordered = sorted(latencies)
    return round(1000 * ordered[max(0, int(np.ceil(share * len(ordered))) - 1)], 2)


def compare(case: Case, model: Path, reference: Reference, repeats: int, seconds: float) -> dict[str, Any]:
    """Measure ``case`` and ``reference`` in turns; return the medians, every repeat and the latencies."""
    batch = case.max_batch_size or reference.batch
    with serving(case, model, batch) as load:
        before = measured(reference.run, seconds, None)
        rows, in_process = [], [before]
        for _ in range(repeats):
            part = measured(load.run, seconds, load.server)
            after = measured(reference.run, seconds, None)
            rows.append((part, (before.images_per_s + after.images_per_s) / 2))
            before = after
            in_process.append(after)
        latencies = {}
        for concurrency in (1, 2, CONCURRENCY):
            part = measured(lambda duration, count=concurrency: load.run(duration, count), 2 * seconds, load.server)
            latencies[concurrency] = {
                "images_per_s": round(part.images_per_s, 1),
                "p50_ms": percentile(part.latencies, 0.5),
                "p99_ms": percentile(part.latencies, 0.99),
                "samples": len(part.latencies),
            }
    ratios = [part.images_per_s / rate for part, rate in rows]
    return {
        "case": {**asdict(case), "max_batch_size": batch},
        "ratio": round(statistics.median(ratios), 3),
        "images_per_s": round(statistics.median(part.images_per_s for part, _ in rows), 1),
        "reference_images_per_s": round(statistics.median(rate for _, rate in rows), 1),
        "cpu_ms_per_image": {
            process: round(1000 * statistics.median(part.cpu_s[process] for part, _ in rows), 2)
            for process in ("client", "server", "backend")
        },
        "reference_cpu_ms_per_image": round(1000 * statistics.median(part.cpu_s["client"] for part in in_process), 2),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "foreign_cpu_shares": [round(part.foreign, 3) for part, _ in rows],
        "latencies": latencies,
    }


def machine() -> dict[str, Any]:
    cpu = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": cpu,
        "cpus": CPUS,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "transparent_huge_pages": huge_pages.read_text().strip() if huge_pages.exists() else "none",
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "nvidia-pytriton": version("nvidia-pytriton"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one slice")
    parser.add_argument("--quick", action="store_true", help="one repeat of one second, nothing written")
    arguments = parser.parse_args()
    repeats, seconds = (1, 1.0) if arguments.quick else (arguments.repeats, arguments.seconds)

    with tempfile.TemporaryDirectory() as folder:
        uint8 = Path(folder, "uint8.onnx")
        write_uint8_model(MODEL, uint8)
        references = {}
        for model in (MODEL, uint8):
            references[model] = best_reference(model, min(seconds, 2.0))
            print(f"ONNX Runtime in-process, {model.name}: {references[model][0].label}", file=sys.stderr)
        cases = []
        for case in CASES:
            model = uint8 if case.uint8 else MODEL
            cases.append(compare(case, model, references[model][0], repeats, seconds))
            print(f"{case.name}: {cases[-1]['ratio']:.3f} {cases[-1]['ratios']}", file=sys.stderr)

    columns = f"{'case':34} {'images/s':>9} {'in-process':>10} {'ratio':>6}"
    print(f"\n{columns}   CPU ms: client + server + backend, in-process   p50/p99 ms at concurrency 1, 2, 8")
    for result in cases:
        latencies = "   ".join(f"{entry['p50_ms']:.1f}/{entry['p99_ms']:.1f}" for entry in result["latencies"].values())
        cpu = " + ".join(f"{used:5.2f}" for used in result["cpu_ms_per_image"].values())
        print(
            f"{result['case']['name']:34} {result['images_per_s']:9.1f} {result['reference_images_per_s']:10.1f} "
            f"{result['ratio']:6.3f}   {cpu}, {result['reference_cpu_ms_per_image']:5.2f}{latencies:>50}"
        )
    if not arguments.quick:
        document = {
            "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
            "slices": {"repeats": repeats, "seconds": seconds},
            "references": {
                "fp32": {"best": references[MODEL][0].label, "images_per_s": references[MODEL][1]},
                "uint8": {"best": references[uint8][0].label, "images_per_s": references[uint8][1]},
            },
            "cases": cases,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten to {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
