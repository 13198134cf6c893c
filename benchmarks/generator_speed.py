"""The load generator beside perf_analyzer: the same tritonserver, the same model, turn by turn.

    python benchmarks/generator_speed.py --perf-analyzer PROGRAM [--repeats 5] [--seconds 3] [--quick]
                                         [--protocol grpc] [--shared-memory system]

Over gRPC perf_analyzer lets six requests in flight share a connection, as is its default; here each has its own.

Two models that do next to nothing, so that the generator counts: four floats in, and a 602 KB image in.  Server and
generator share the machine.  The two tools take turns, each ratio is of neighbours, and the median is reported.  A turn
during which other processes took more than 5% of the CPUs is made again, up to five times; the least disturbed one
counts.  Targets: 0.9 of perf_analyzer's throughput; where server and generator leave a tenth of the CPUs idle, p50 and
p99 within 5% of its.  The exit code is 1 when one is missed.

CPU is that of the whole tool, its start and its report too, by the requests that the server counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from load_support import CPUS, ROOT, bench, perf_analyzer, save, undisturbed

sys.path.insert(0, str(ROOT))
import repo_builder
from client import Client
from repo_builder.servers.base import Server
from tests import models

CONCURRENCIES = (1, 4, 16, 64)
ATTEMPTS = 5
SATURATED = 0.9
Figures = dict[str, float]


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def with_cpu(client: Client, model: str, run: Callable[[], Figures]) -> Figures:
    """``run``, and the CPU time of its processes by request."""
    before, cpu = client.statistics(model, "1").requests, children_cpu_s()
    figures = run()
    sent = client.statistics(model, "1").requests - before
    return {**figures, "cpu_us": (children_cpu_s() - cpu) / sent * 1e6}


def ours(given: argparse.Namespace, model: str, server: Server, concurrency: int) -> Figures:
    options = ("--concurrency", concurrency, "--duration", f"{given.seconds}s", "--warmup", "1s", "--no-floor")
    way = ["--protocol", given.protocol, "--shared-memory", given.shared_memory]
    way += ["--grpc-url", server.grpc_url] if given.protocol == "grpc" else []
    (level,) = bench(model, server.url, *options, *way)["levels"]
    found = {p["name"]: p["ms"]["value"] for p in level["service_time"]["percentiles"]}
    rate = level["throughput_requests_per_s"]["value"]
    generator = level["generator"]
    cores = level["server_process"]["cores"] + generator["cpu_us_per_request"] * rate / 1e6
    figures = {"rate": rate, "p50": found["p50"], "p99": found["p99"], "worker_cpu_us": generator["cpu_us_per_request"]}
    return {**figures, "busy": cores / CPUS, "invalid": float(not level["valid"])}


def theirs(given: argparse.Namespace, model: str, server: Server, concurrency: int) -> Figures:
    url = server.grpc_url if given.protocol == "grpc" else server.url
    options = ("--concurrency-range", concurrency, "--percentile", 99)
    way = ("-i", given.protocol, "--shared-memory", given.shared_memory)
    row = perf_analyzer(given.perf_analyzer, model, url, given.seconds, *options, *way)
    times = {name: int(row[f"{name} latency"]) / 1e3 for name in ("p50", "p99")}
    return {"rate": float(row["Inferences/Second"]), **times}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--perf-analyzer", metavar="PROGRAM", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--quick", action="store_true", help="one turn of one second, nothing written")
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    parser.add_argument("--shared-memory", choices=("none", "system"), default="none")
    given = parser.parse_args()
    if given.quick:
        given.repeats, given.seconds = 1, 1.0
    attempts = 1 if given.quick else ATTEMPTS
    ways = [given.protocol] * (given.protocol != "http") + ["shared_memory"] * (given.shared_memory != "none")
    name_of_results = "_".join(["generator_speed", *ways])
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, proto in (("small", models.linear()), ("image", models.picture(224, 224))):
            source = models.save(proto, Path(folder) / f"{name}.onnx")
            repo_builder.add_model(source, repository=Path(folder) / "models")
        with repo_builder.serve(Path(folder) / "models") as server, Client(server.url) as client:
            for model in ("small", "image"):
                for concurrency in CONCURRENCIES:
                    results.append(row := compare(given, client, server, model, concurrency, attempts))
                    print(sentence(row), flush=True)
                    if not given.quick:
                        save(name_of_results, results)  # so that a run that is cut short leaves what it has
    return 1 if any(row["missed"] for row in results) else 0


def sentence(row: dict[str, Any]) -> str:
    one, other, ratio = row["ours"], row["theirs"], row["ratio"]
    rates = f"{one['rate']:.0f} requests/s against {other['rate']:.0f}"
    ratios = f"throughput {ratio['rate']:.2f}, p50 {ratio['p50']:.2f}, p99 {ratio['p99']:.2f}"
    cpu = f"{one['cpu_us']:.0f} us ({one['worker_cpu_us']:.0f} us without start and report)"
    busy = f"CPUs {one['busy']:.0%} busy, others' share at most {max(row['foreign_cpu_shares']):.0%}"
    return (
        f"{row['model']}, concurrency {row['concurrency']:2}: {rates}; ratios: {ratios}; "
        f"CPU a request: {cpu} against {other['cpu_us']:.0f} us; {busy}: "
        f"{'missed: ' + ', '.join(row['missed']) if row['missed'] else 'as it should be'}"
    )


def missed(ratio: Figures, busy: float) -> list[str]:
    """The targets that the ratios don't keep."""
    found = ["throughput"] if ratio["rate"] < 0.9 else []
    if busy < SATURATED:
        found += [name for name in ("p50", "p99") if abs(ratio[name] - 1) > 0.05]
    return found


def compare(
    given: argparse.Namespace, client: Client, server: Server, model: str, concurrency: int, attempts: int
) -> dict[str, Any]:
    pairs, shares = [], []
    for turn in range(given.repeats):
        tools: list[Callable[[], Figures]] = [
            lambda: ours(given, model, server, concurrency),
            lambda: theirs(given, model, server, concurrency),
        ]
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        found = {}
        for index in order:
            work = partial(with_cpu, client, model, tools[index])
            found[index], foreign, _ = undisturbed(work, attempts, os.getsid(server.pid))
            shares.append(round(foreign, 3))
        pairs.append((found[0], found[1]))
    middle = [{key: statistics.median(pair[tool][key] for pair in pairs) for key in pairs[0][tool]} for tool in (0, 1)]
    ratio = {key: statistics.median(one[key] / other[key] for one, other in pairs) for key in pairs[0][1]}
    return {
        "model": model,
        "concurrency": concurrency,
        "ours": middle[0],
        "theirs": middle[1],
        "ratio": ratio,
        "ratios": [{key: round(one[key] / other[key], 3) for key in ratio} for one, other in pairs],
        "foreign_cpu_shares": shares,
        "missed": missed(ratio, middle[0]["busy"]),
    }


if __name__ == "__main__":
    sys.exit(main())
