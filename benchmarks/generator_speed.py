"""The load generator beside perf_analyzer: the same tritonserver, the same model, turn by turn.

    python benchmarks/generator_speed.py --perf-analyzer PROGRAM [--rounds 5] [--seconds 3] [--limit 190]
                                         [--attempts 5] [--shared-memory system] [--quick] [CASE...]

A case is PROTOCOL/MODEL/CONCURRENCY, such as http/image/16; CASE is a pattern (default ``http/*``, all: ``*``).

Two models do next to nothing, so that the generator counts: four floats in (small), and a 602 KB image in (image).  The
other two, on the same inputs, only wait, 5 ms and 20 ms, in an instance for each request in flight (small_5ms,
image_20ms): their time doesn't depend on the load, so as long as CPUs are left both tools should tell nearly the same,
and what they tell above it is known.  Over gRPC both let six requests in flight share a connection; larger ones than
16 KB have each their own here.

Server and generator share the machine.  The two tools take turns, each ratio is of neighbours, and the median over the
rounds is reported.  A turn during which other processes took more than 5% of the CPUs is made again, up to --attempts
times; the least disturbed one counts.  After --limit seconds no other turn is begun.

perf_analyzer measures three windows of time.  With large requests on scarce CPUs it never ends the first one: all that
it sent it keeps a copy of, until memory is full.  Then it is given a number of requests instead, and because it rounds
the time that those took up to a second, its requests/s are the concurrency over its mean latency ("by count"): more
than it makes, as what it does between requests isn't in it.

Targets: 0.9 of perf_analyzer's throughput; where neither is saturated, p50 and p99 within 5% of its.  Server or
generator is saturated where a tool's p50 is over 1.25 times what the same tool has at the lowest concurrency that was
measured with the model.  The exit code is 1 when a target is missed or a case not measured.  CPU is that of the whole
tool, its start and its report too, by the requests that the server counted.  Results are merged into
results/generator_speed.json by machine and case.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from load_support import CPUS, RESULTS, ROOT, bench, machine, perf_analyzer, undisturbed, windows

sys.path.insert(0, str(ROOT))
import repo_builder
from client import Client
from repo_builder.servers.local import LocalServer
from tests import models

PROTOCOLS = ("http", "grpc")
CONCURRENCIES = (1, 4, 16, 64)
WAITS_S = {"small": 0.005, "image": 0.020}
SATURATED = 1.25
WARMUP_S = 0.5
PARTS = (
    "Client Send", "Network+Server Send/Recv", "Server Queue", "Server Compute Input", "Server Compute Infer",
    "Server Compute Output", "Client Recv",
)  # fmt: skip
"""Columns of perf_analyzer that sum to its mean latency, in us."""

RESULTS_FILE = RESULTS / "generator_speed.json"
RATIOS = ("rate", "p50", "p99", "cpu_us")
Figures: TypeAlias = dict[str, float]

WAITING_CONFIG = """\
backend: "python"
max_batch_size: 0
input [ {{ name: "{input}" data_type: TYPE_FP32 dims: {dims} }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [1] }} ]
instance_group [ {{ kind: KIND_CPU count: {count} }} ]
"""
WAITING_MODEL = """\
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep({seconds})
        answer = np.zeros(1, np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("{output}", answer)]) for _ in requests]
"""


@dataclass(frozen=True)
class Case:
    """What both tools are told."""

    protocol: str
    model: str
    concurrency: int

    @property
    def name(self) -> str:
        return f"{self.protocol}/{self.model}/{self.concurrency}"


@dataclass
class Turns:
    """What was measured of a case: pairs of neighbours, ours and perf_analyzer's."""

    pairs: list[tuple[Figures, Figures]] = field(default_factory=list)
    rate: float = 0.0  # of our last turn, in requests/s
    by_count: bool = False  # perf_analyzer doesn't end in windows
    failures: list[str] = field(default_factory=list)  # of turns that brought nothing


def sources() -> dict[str, onnx.ModelProto]:
    return {"small": models.linear(), "image": models.picture(224, 224)}


def all_cases() -> Iterator[Case]:
    names = [*sources(), *map(waiting, WAITS_S)]
    for protocol in PROTOCOLS:
        for name in names:
            yield from (Case(protocol, name, concurrency) for concurrency in CONCURRENCIES)


def waiting(name: str) -> str:
    """The name of the model that takes the same input and only waits."""
    return f"{name}_{WAITS_S[name] * 1e3:.0f}ms"


def write_models(repository: Path, wanted: list[Case]) -> None:
    """Those of our models that ``wanted`` names; one that waits has an instance for each request in flight."""
    most = {case.model: case.concurrency for case in sorted(wanted, key=lambda case: case.concurrency)}
    for name, proto in sources().items():
        if name in most:
            source = models.save(proto, repository.parent / f"{name}.onnx")
            repo_builder.add_model(source, repository=repository)
        if waiting(name) in most:
            inputs, outputs = proto.graph.input[0], proto.graph.output[0]
            dims = [axis.dim_value for axis in inputs.type.tensor_type.shape.dim[1:]]
            config = WAITING_CONFIG.format(input=inputs.name, dims=dims, output=outputs.name, count=most[waiting(name)])
            folder = repository / waiting(name)
            (folder / "1").mkdir(parents=True)
            (folder / "config.pbtxt").write_text(config)
            (folder / "1" / "model.py").write_text(WAITING_MODEL.format(seconds=WAITS_S[name], output=outputs.name))


@contextmanager
def serving(wanted: list[Case]) -> Iterator[tuple[LocalServer, Client]]:
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder) / "models", wanted)
        with repo_builder.serve(Path(folder) / "models") as server, Client(server.url) as client:
            for model in {case.model for case in wanted}:  # the first request of an instance takes some 30 ms more
                load = ("--concurrency", max(CONCURRENCIES), "--requests", 10 * max(CONCURRENCIES), "--warmup", 0)
                bench(model, server.url, *load, "--no-floor")
            yield server, client


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def with_cpu(client: Client, model: str, run: Callable[[], Figures]) -> Figures:
    """``run``, and the CPU time of its processes by request."""
    before, cpu = client.statistics(model, "1").requests, children_cpu_s()
    figures = run()
    sent = client.statistics(model, "1").requests - before
    return {**figures, "cpu_us": (children_cpu_s() - cpu) / sent * 1e6}


def ours(given: argparse.Namespace, server: LocalServer, case: Case) -> Figures:
    options = ("--concurrency", case.concurrency, "--duration", f"{given.seconds}s", "--warmup", f"{WARMUP_S}s")
    way = ["--protocol", case.protocol, "--shared-memory", given.shared_memory]
    way += ["--grpc-url", server.grpc_url] if case.protocol == "grpc" else []
    (level,) = bench(case.model, server.url, *options, *way, "--no-floor")["levels"]
    found = {p["name"]: p["ms"]["value"] for p in level["service_time"]["percentiles"]}
    rate = level["throughput_requests_per_s"]["value"]
    generator = level["generator"]
    cores = level["server_process"]["cores"] + generator["cpu_us_per_request"] * rate / 1e6
    return {
        "rate": rate,
        "p50": found["p50"],
        "p99": found["p99"],
        "worker_cpu_us": generator["cpu_us_per_request"],
        "busy": cores / CPUS,
        "invalid": float(not level["valid"]),
    }


def theirs(given: argparse.Namespace, server: LocalServer, case: Case, turns: Turns) -> Figures:
    """perf_analyzer's figures; of about as many requests as we made if it doesn't end otherwise."""
    url = server.grpc_url if case.protocol == "grpc" else server.url
    way = ("-i", case.protocol, "--shared-memory", given.shared_memory, "--concurrency-range", case.concurrency)
    run = partial(perf_analyzer, given.perf_analyzer, case.model, url, *way, "--percentile", 99)
    if not turns.by_count:
        try:
            row = run(*windows(given.seconds), timeout_s=2 * given.seconds + 10)
        except TimeoutError:
            turns.by_count = True
        else:
            return {"rate": float(row["Inferences/Second"]), **latencies(row)}
    counts = [max(case.concurrency, round(turns.rate * seconds)) for seconds in (given.seconds, WARMUP_S)]
    row = run("--request-count", counts[0], "--warmup-request-count", counts[1], timeout_s=30)
    mean_us = sum(int(row[column]) for column in PARTS)
    return {"rate": case.concurrency / mean_us * 1e6, **latencies(row)}


def latencies(row: dict[str, str]) -> Figures:
    return {name: int(row[f"{name} latency"]) / 1e3 for name in ("p50", "p99")}


def take_turns(given: argparse.Namespace, server: LocalServer, client: Client, case: Case, turns: Turns) -> None:
    """Each tool once, the other one first than the last time."""

    def measure(tool: Callable[[], Figures]) -> Figures:
        work = partial(with_cpu, client, case.model, tool)
        found, foreign, _ = undisturbed(work, given.attempts, os.getsid(server.pid))
        return {**found, "foreign": foreign}

    def measure_ours() -> Figures:
        found = measure(lambda: ours(given, server, case))
        turns.rate = found["rate"]
        return found

    def measure_theirs() -> Figures:
        return measure(lambda: theirs(given, server, case, turns))

    if len(turns.pairs) % 2:
        other = measure_theirs()
        turns.pairs.append((measure_ours(), other))
    else:
        one = measure_ours()
        turns.pairs.append((one, measure_theirs()))


def summary(given: argparse.Namespace, case: Case, turns: Turns) -> dict[str, Any]:
    told: dict[str, Any] = {
        "case": case.name,
        "shared_memory": given.shared_memory,
        "date": machine()["date"],
        "seconds": given.seconds,
        "waits_ms": next((seconds * 1e3 for name, seconds in WAITS_S.items() if waiting(name) == case.model), None),
    }
    if turns.failures:
        told["failures"] = turns.failures
    if not turns.pairs:
        return told
    middle = [
        {key: statistics.median(pair[tool][key] for pair in turns.pairs) for key in turns.pairs[0][tool]}
        for tool in (0, 1)
    ]
    ratios = [{key: one[key] / other[key] for key in RATIOS} for one, other in turns.pairs]
    return {
        **told,
        "by_count": turns.by_count,
        "ours": middle[0],
        "theirs": middle[1],
        "ratio": {key: statistics.median(entry[key] for entry in ratios) for key in RATIOS},
        "ratios": [{key: round(value, 3) for key, value in entry.items()} for entry in ratios],
    }


def judged(given: argparse.Namespace, measured: dict[Case, Turns]) -> list[dict[str, Any]]:
    """What was measured of each case, whether server or generator was saturated, and which targets are missed."""
    rows = {case: summary(given, case, turns) for case, turns in measured.items() if turns.pairs or turns.failures}
    least: dict[tuple[str, str], dict[str, Any]] = {}
    for case, row in rows.items():
        if "ratio" not in row:
            continue
        base = least.setdefault((case.protocol, case.model), row)
        row["saturated"] = any(row[tool]["p50"] > SATURATED * base[tool]["p50"] for tool in ("ours", "theirs"))
        row["missed"] = ["throughput"] if row["ratio"]["rate"] < 0.9 else []
        if not row["saturated"]:
            row["missed"] += [name for name in ("p50", "p99") if abs(row["ratio"][name] - 1) > 0.05]
    return list(rows.values())


def sentence(row: dict[str, Any]) -> str:
    if "ratio" not in row:
        return f"{row['case']}: not measured: {row['failures'][-1]}"
    one, other, ratio = row["ours"], row["theirs"], row["ratio"]
    counted = " by count" if row["by_count"] else ""
    times = [f"{name} {one[name]:.3f} against {other[name]:.3f} ms ({ratio[name]:.2f})" for name in ("p50", "p99")]
    told = (
        f"{row['case']}: {one['rate']:.0f} requests/s against {other['rate']:.0f}{counted} ({ratio['rate']:.2f}), "
        f"{', '.join(times)}; CPU a request: {one['cpu_us']:.0f} us ({one['worker_cpu_us']:.0f} us without start and "
        f"report) against {other['cpu_us']:.0f} us; CPUs {one['busy']:.0%} busy, and {one['foreign']:.0%} by others"
    )
    if "missed" in row:
        told += "; saturated" if row["saturated"] else ""
        told += f": missed: {', '.join(row['missed'])}" if row["missed"] else ": as it should be"
    return told


def keep(rows: list[dict[str, Any]]) -> None:
    """Put rows in the place of those of the same machine and case; all others stay."""
    facts = machine()
    name = f"{facts['cpu']}, {facts['cpus']} CPUs"
    held: dict[str, Any] = json.loads(RESULTS_FILE.read_text()) if RESULTS_FILE.exists() else {}
    before = held.get(name, {"results": []})["results"]
    known = {(row["case"], row["shared_memory"]): row for row in before}
    for row in rows:
        key = row["case"], row["shared_memory"]
        if "ratio" in row or key not in known:
            known[key] = row
    held[name] = {"machine": facts, "results": list(known.values())}
    RESULTS_FILE.write_text(json.dumps(held, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--perf-analyzer", metavar="PROGRAM", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--attempts", type=int, default=5)
    parser.add_argument("--shared-memory", choices=("none", "system"), default="none")
    parser.add_argument("--quick", action="store_true", help="one round of one second, nothing written")
    parser.add_argument("cases", nargs="*", metavar="CASE", default=["http/*"])
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds, given.attempts = 1, 1.0, 1
    return given


def main() -> int:
    given = arguments()
    end = time.monotonic() + given.limit
    cases = [case for case in all_cases() if any(fnmatch(case.name, pattern) for pattern in given.cases)]
    if not cases:
        raise SystemExit("no such case; those are " + ", ".join(case.name for case in all_cases()))
    measured = {case: Turns() for case in cases}
    rows: list[dict[str, Any]] = []
    with serving(cases) as (server, client):
        for _ in range(given.rounds):
            for case, turns in measured.items():
                if time.monotonic() > end:
                    break
                try:
                    take_turns(given, server, client, case, turns)
                except (RuntimeError, TimeoutError, SystemExit) as error:  # the other cases are worth having
                    turns.failures.append(str(error))
                    print(f"{case.name}: a turn failed: {error}", flush=True)
                else:
                    print(sentence(summary(given, case, turns)), flush=True)
                rows = judged(given, measured)
                if not given.quick:
                    keep(rows)  # so that a run that is cut short leaves what it has
    print("", *map(sentence, rows), sep="\n")
    return 1 if len(rows) < len(cases) or any(row.get("missed", True) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
