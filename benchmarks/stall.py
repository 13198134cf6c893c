"""A server that stalls for one second in ten, at a fixed rate: who tells of it.

    python benchmarks/stall.py [--perf-analyzer PROGRAM]

The server is tests/client/load/fake_server.py: 2 ms an answer, and from its 4th to its 5th second it does nothing.
A tenth of all requests is due in the stall, so the true p99 is about 0.9 s.  With one connection all but one of these
requests wait at the client, where service time doesn't see them; with as many as are needed they wait at the server.
"""

from __future__ import annotations

import argparse
import sys

from load_support import ROOT, bench, perf_analyzer, save, windows

sys.path.insert(0, str(ROOT))
from tests.client.load.fake_server import MODEL, Script, fake_server

RATE = 100
SECONDS = 10
SCRIPT = Script(delays_s=(0.002,), stall=(4.0, 5.0))


def ours(*arguments: object) -> dict[str, float]:
    with fake_server(SCRIPT) as url:
        options = ("--rate", RATE, "--duration", f"{SECONDS}s", "--warmup", 0, "--no-floor")
        (level,) = bench(MODEL, url, *options, *arguments)["levels"]
    found = {}
    for kind in ("response", "service"):
        latency = level[f"{kind}_time"]
        found |= {f"{kind} {p['name']}": p["ms"]["value"] for p in latency["percentiles"]}
        found[f"{kind} max"] = latency["max_ms"]
    return found


def theirs(program: str, *arguments: object) -> dict[str, float]:
    with fake_server(SCRIPT) as url:
        row = perf_analyzer(program, MODEL, url, *windows(SECONDS), *arguments, "--percentile", 99)
    return {f"service {name}": int(row[f"{name} latency"]) / 1e3 for name in ("p50", "p90", "p95", "p99")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--perf-analyzer", metavar="PROGRAM")
    program = parser.parse_args().perf_analyzer
    results = {
        "client.bench, one connection": ours("--connections", 1),
        "client.bench, connections as needed": ours(),
    }
    if program:
        results["perf_analyzer, one request in flight"] = theirs(program, "--concurrency-range", 1)
        results["perf_analyzer, request rate 100"] = theirs(program, "--request-rate-range", RATE)
    for name, values in results.items():
        print(name)
        for kind in ("response", "service"):
            shown = [f"{key.split()[1]} {value:.1f} ms" for key, value in values.items() if key.startswith(kind)]
            if shown:
                print(f"  {kind} time: {', '.join(shown)}")
    save("stall", results)


if __name__ == "__main__":
    main()
