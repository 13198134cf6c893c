"""Percentiles against a server whose service times are known, and batches against its counters.

    python benchmarks/truth.py [--repeats 5]

The server is tests/client/load/fake_server.py with 1,000 scripted times, log-normal about 8 ms.  The truth is the time
from request read to answer sent on the server's own clock, which on a busy machine is later than its script says.  A
percentile is right within 2% or 50 us of it, network and both processes' wake-ups included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import urllib.request

import numpy as np
from load_support import ROOT, bench, save

sys.path.insert(0, str(ROOT))
from tests.client.load.fake_server import MODEL, Script, fake_server

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
COUNT = 1000
BATCHES = (1, 4, 2, 8, 8)


def measure(delays: tuple[float, ...], *arguments: object) -> tuple[dict[str, tuple[float, float]], bool]:
    """True percentiles and errors of the reported ones in ms, and whether the histogram of batches is exact."""
    with fake_server(Script(delays_s=delays, batches=BATCHES)) as url:
        options = ("--requests", COUNT, "--warmup", 0, "--no-floor")
        (level,) = bench(MODEL, url, *options, *arguments)["levels"]
        with urllib.request.urlopen(f"http://{url}/took") as answer:
            ordered = np.sort(json.load(answer)) / 1e6
    found = {p["name"]: p["ms"]["value"] for p in level["response_time"]["percentiles"]}
    true = {name: float(ordered[int(np.ceil(q * COUNT)) - 1]) for name, q in QUANTILES.items()}
    errors = {name: (true[name], found[name] - true[name]) for name in QUANTILES}
    left, turn = COUNT, 0
    truth: dict[int, int] = {}
    while left > 0:
        size = BATCHES[turn % len(BATCHES)]
        truth[size] = truth.get(size, 0) + 1
        left, turn = left - size, turn + 1
    made = {entry["size"]: entry["executions"] for entry in level["server"]["batches"]}
    return errors, made == truth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    delays = tuple(np.random.default_rng(0).lognormal(np.log(0.008), 0.6, COUNT).tolist())
    results = {}
    for load in (("--concurrency", 1), ("--concurrency", 4), ("--rate", 100)):
        runs = [measure(delays, *load) for _ in range(repeats)]
        name = f"{load[0].removeprefix('--')} {load[1]}"
        print(f"{name}: batches exact in {sum(exact for _, exact in runs)} of {repeats} runs")
        rows = {}
        for percentile in QUANTILES:
            found = [errors[percentile] for errors, _ in runs]
            truth, middle = (statistics.median(values) for values in zip(*found, strict=True))
            right = sum(abs(error) <= max(0.02 * true, 0.05) for true, error in found)
            error = f"median error {middle * 1e3:+.0f} us"
            print(f"  {percentile:6} true {truth:7.3f} ms, {error}, {right} of {repeats} right")
            rows[percentile] = {"true_and_error_ms": found, "within_2_percent_or_50_us": right}
        results[name] = {"batches_exact": [exact for _, exact in runs], "percentiles": rows}
    save("truth", results)


if __name__ == "__main__":
    main()
