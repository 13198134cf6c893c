"""Memory of the load generator: a worker while it sends, and the parent with ten million records.

    python benchmarks/memory.py [--requests 300000]

The worker is real: it sends to a server that does nothing, and its resident memory is read when a tenth and when all
of the requests are answered.  Ten million real requests would take a quarter of an hour, so the parent's records are
made up; they take the way of real ones, from a worker's messages to the finished document.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import subprocess
import sys

import numpy as np
from load_support import ROOT, save

sys.path.insert(0, str(ROOT))
from client.load.floor import serve_floor
from client.load.histogram import encode
from client.load.records import Records, Setup
from client.load.schedule import Load, Window
from client.load.statistics import summarise
from client.load.workers import Store, Workers

RECORDS = 10_000_000
MESSAGE = 1000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd"


def resident_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:  # noqa: PTH123
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmRSS"))


def worker(requests: int) -> list[float]:
    """Resident MB after a tenth of the requests, and after all of them."""
    with serve_floor(ANSWER) as port:
        setup = Setup(socket.AF_INET, ("127.0.0.1", port), (REQUEST,), 5_000_000_000)
        with Workers(setup, 1) as pool:
            found = []
            for count in (requests // 10, requests - requests // 10):
                pool.run(Load(concurrency=16).phases(1, Window(requests=count), 0))
                found.append(resident_mb(pool.pids[0]))
    return found


def parent() -> float:
    """Peak resident MB of a process that takes ten million records and makes a document of them."""
    code = "import sys; sys.path.insert(0, 'benchmarks'); import memory; memory.fill()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stdout)


def fill() -> None:
    generator = np.random.default_rng(0)
    store = Store()
    for at in range(0, RECORDS, MESSAGE):
        done = (at + np.arange(MESSAGE)) * 100_000
        response = generator.lognormal(14, 0.5, MESSAGE).astype(np.int64)
        store.add(Records(done.tobytes(), response.tobytes(), (response - 700).tobytes(), bytes(MESSAGE)))
    statistics = summarise(store, 0, RECORDS * 100_000, {}, open_loop=True)
    json.dumps([encode(statistics.response_counts), encode(statistics.service_counts)])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=300_000)
    requests = parser.parse_args().requests
    early, late = worker(requests)
    print(f"a worker: {early:.1f} MB after {requests // 10:,} requests, {late:.1f} MB after {requests:,}")
    peak = parent()
    print(f"the parent: at most {peak:.0f} MB with {RECORDS:,} records (25 bytes each are 250 MB)")
    save("memory", {"worker_mb": [early, late], "requests": requests, "parent_peak_mb": peak, "records": RECORDS})


if __name__ == "__main__":
    main()
