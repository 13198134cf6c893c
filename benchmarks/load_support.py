"""What the benchmarks of the load generator share: facts of the machine, perf_analyzer, results."""

from __future__ import annotations

import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
CPUS = len(os.sched_getaffinity(0))
FOREIGN_SHARE = 0.05
TICKS = os.sysconf("SC_CLK_TCK")
T = TypeVar("T")


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }


def save(name: str, results: Any) -> None:
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


def busy_seconds() -> float:
    """CPU seconds that all processes have used since boot; those that a hypervisor took count."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(ticks[:3]) + sum(ticks[5:8])) / TICKS


def own_seconds(session: int | None) -> float:
    """CPU seconds of this process, of its children that have ended and of a session's processes (a server's)."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat") if session else ():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return sum(entry.ru_utime + entry.ru_stime for entry in usage) + ticks / TICKS


def undisturbed(work: Callable[[], T], attempts: int, session: int | None = None) -> tuple[T, float, float]:
    """The result of ``work`` in the least disturbed of some attempts, and how busy the CPUs were then.

    Two shares of all CPUs' time: that of other processes, and that of all.  The first attempt with hardly any other
    process on the CPUs is the last; ``session`` are processes that belong to the work without being its children.
    """
    found: list[tuple[T, float, float]] = []
    for attempt in range(attempts):
        if attempt:
            time.sleep(1)
        began, busy, own = time.perf_counter(), busy_seconds(), own_seconds(session)
        result = work()
        all_of_them = (time.perf_counter() - began) * CPUS
        used = busy_seconds() - busy
        foreign = max(0.0, used - (own_seconds(session) - own)) / all_of_them
        found.append((result, foreign, used / all_of_them))
        if foreign <= FOREIGN_SHARE:
            break
    return min(found, key=lambda attempt: attempt[1])


def bench(model: str, url: str, *arguments: object) -> dict[str, Any]:
    """The document of one run of ``python -m client.bench``."""
    line = [sys.executable, "-m", "client.bench", model, "--url", url, "--json", "--quiet", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def windows(seconds: float) -> tuple[object, ...]:
    """Options of perf_analyzer for three windows, ``seconds`` in all, stable or not: it reports no fewer."""
    return "--measurement-interval", round(seconds / 3 * 1000), "-s", 1_000_000, "-r", 3


def perf_analyzer(
    program: str, model: str, url: str, *arguments: object, timeout_s: float | None = None
) -> dict[str, str]:
    """The CSV row of a run of perf_analyzer; RuntimeError with its last words if it ends without one.

    TimeoutError if it doesn't end in ``timeout_s``.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.csv"
        line = [program, "-m", model, "-u", url.removeprefix("http://"), "-f", str(file), *map(str, arguments)]
        try:
            done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"perf_analyzer did not end within {timeout_s:g} s") from None
        if not file.exists():
            raise RuntimeError(f"perf_analyzer: {done.stdout[-500:]}{done.stderr[-500:]}")
        with file.open() as rows:
            return next(csv.DictReader(rows))
