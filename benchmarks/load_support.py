"""What the benchmarks of the load generator share: facts of the machine, perf_analyzer, results."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


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


def bench(model: str, url: str, *arguments: object) -> dict[str, Any]:
    """The document of one run of ``python -m client.bench``."""
    line = [sys.executable, "-m", "client.bench", model, "--url", url, "--json", "--quiet", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def perf_analyzer(program: str, model: str, url: str, seconds: float, *arguments: object) -> dict[str, str]:
    """The CSV row of perf_analyzer's first three windows, ``seconds`` in all, stable or not: it reports no fewer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.csv"
        window = ["--measurement-interval", str(round(seconds / 3 * 1000)), "-s", "1000000", "-r", "3"]
        line = [program, "-m", model, "-u", url.removeprefix("http://"), "-f", str(file), *window]
        done = subprocess.run([*line, *map(str, arguments)], capture_output=True, text=True, check=False)
        if not file.exists():
            raise SystemExit(f"perf_analyzer: {done.stdout[-500:]}{done.stderr[-500:]}")
        with file.open() as rows:
            return next(csv.DictReader(rows))
