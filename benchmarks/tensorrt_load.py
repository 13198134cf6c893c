"""Load on a plan that the local server serves: stages ``serve``, ``single`` and ``cuda_memory`` of tensorrt_h100.py."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import load_support
from tensorrt_support import BATCHES, options_for, say, scratch, shapes_at, steps, timing_cache

import repo_builder
from client import run_load
from client.load.delivery import Delivery, SharedMemory
from repo_builder.add import BuildOptions, add_model
from repo_builder.compilers.base import Target
from repo_builder.config.build import ServingOptions
from repo_builder.plans import load_plan
from repo_builder.servers import installation
from repo_builder.trt.benchmark import measure


def fp16_build(model: Path, arguments: argparse.Namespace) -> BuildOptions:
    """The FP16 engine of the table, with what that measured."""
    options = options_for(model, arguments, fp16=True)
    return BuildOptions(
        target=Target.TENSORRT, tensorrt=dataclasses.replace(options, timing_cache=timing_cache(model, "fp16"))
    )


def serve(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """perf_analyzer on the served model, by instances and transport, beside what the engine alone does."""
    rows: dict[str, Any] = {}
    build = fp16_build(model, arguments)
    serving = ServingOptions(
        max_batch_size=max(BATCHES), max_queue_delay_us=200, instance_count=1, preferred_batch_sizes=()
    )
    with scratch() as folder:
        published = add_model(model, repository=folder, build=build, serving=serving, progress=steps())
        loaded = load_plan(published.folder / "1" / "model.plan")
        for batch in (1, max(BATCHES)):
            result = measure(loaded.engine, loaded.info, shapes_at(batch, build.tensorrt.profiles[0].opt))
            rows[f"engine_gpu_ms_batch_{batch}"] = result.compute.median
        rows["engine_images_per_second"] = max(BATCHES) / rows[f"engine_gpu_ms_batch_{max(BATCHES)}"] * 1e3
        del loaded
        config = published.folder / "config.pbtxt"
        text = config.read_text(encoding="utf-8")
        for instances in arguments.instances:
            config.write_text(text.replace("count: 1", f"count: {instances}"), encoding="utf-8")
            with repo_builder.serve(folder) as server:
                rows[f"instances_{instances}"] = load(
                    server, published.name, rows["engine_images_per_second"], arguments
                )
    return rows


def load(server: Any, name: str, engine_rate: float, arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ways = {
        "single": ["-b", "1", "--concurrency-range", "1"],
        "http": ["-b", "8", "--concurrency-range", "32"],
        "shared_memory": ["-b", "8", "--concurrency-range", "32", "--shared-memory", "system"],
    }
    for label, flags in ways.items():
        found[label] = perf_analyzer(server, name, flags, arguments)
        if "images_per_second" in found[label]:
            found[label]["share_of_engine"] = round(found[label]["images_per_second"] / engine_rate, 3)
        say(f"{name} {label}: {json.dumps(found[label])}")
    return found


def single(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """perf_analyzer with one request in flight, by queue delay, launch and transport, beside the engine's GPU time."""
    rows: dict[str, Any] = {}
    build = fp16_build(model, arguments)
    serving = ServingOptions(max_queue_delay_us=200, instance_count=1, cuda_graphs=True, preferred_batch_sizes=())
    with scratch() as folder:
        published = add_model(model, repository=folder / "models", build=build, serving=serving, progress=steps())
        loaded = load_plan(published.folder / "1" / "model.plan")
        rows["engine_gpu_ms"] = measure(
            loaded.engine, loaded.info, shapes_at(1, build.tensorrt.profiles[0].opt)
        ).compute.median
        del loaded
        config = published.folder / "config.pbtxt"
        text = config.read_text(encoding="utf-8")
        for delay, graphs, awake in itertools.product((200, 0), (False, True), (False, True)):
            changed = text.replace("max_queue_delay_microseconds: 200", f"max_queue_delay_microseconds: {delay}")
            config.write_text(changed.replace("graphs: true", f"graphs: {str(graphs).lower()}"), encoding="utf-8")
            for way, flags in {"http": [], "shared_memory": ["--shared-memory", "system"]}.items():
                times = folder / "times.json"
                with (
                    no_sleep() if awake else nullcontext(),
                    timed_backend(times),
                    repo_builder.serve(config.parents[1]) as server,
                ):
                    found = perf_analyzer(server, published.name, flags, arguments, interval_ms=1000)
                label = f"delay_{delay}_{'graphs' if graphs else 'launches'}_{'awake_' if awake else ''}{way}"
                rows[label] = {**found, "backend_microseconds": json.loads(times.read_text(encoding="utf-8"))}
                say(f"{published.name} {label}: {json.dumps(rows[label])}")
    return rows


def cuda_memory(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """client.bench with pictures in CUDA shared memory, one instance: left there, and brought to the host first."""
    build = fp16_build(model, arguments)
    runs: dict[str, dict[str, list[dict[str, float]]]] = {"brought to the host": {}, "left there": {}}
    with scratch() as folder:
        published = add_model(model, repository=folder, build=build, progress=steps())
        config = published.folder / "config.pbtxt"
        text = config.read_text(encoding="utf-8")
        for _, (inputs, by_load) in itertools.product(range(2), runs.items()):
            force = "no" if inputs == "left there" else "yes"
            config.write_text(text.replace('string_value: "no"', f'string_value: "{force}"'), encoding="utf-8")
            with repo_builder.serve(folder) as server:
                for batch, concurrency in ((1, 1), (8, 1), (8, 16)):
                    found = in_cuda_memory(server.url, published.name, batch, concurrency)
                    by_load.setdefault(f"batch_{batch}_concurrency_{concurrency}", []).append(found)
                    say(f"{published.name}, {inputs}, batch {batch}, concurrency {concurrency}: {found}")
    return {inputs: {load: means(found) for load, found in by_load.items()} for inputs, by_load in runs.items()}


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.mean(row[key] for row in rows) for key in rows[0]}


def in_cuda_memory(url: str, name: str, batch: int, concurrency: int) -> dict[str, float]:
    load = run_load(
        name,
        url=url,
        delivery=Delivery(shared_memory=SharedMemory.CUDA),
        batch=batch,
        concurrency=concurrency,
        duration_s=1.2,
        warmup_s=0.3,
        floor=False,
    )
    found = load.levels[0].statistics
    if found.response is None or found.errors:
        raise SystemExit(f"{found.errors} of {found.requests} requests failed")
    return {
        "p50_ms": found.response.percentile(0.5).ms.value,
        "images_per_second": batch * found.throughput.value,
    }


TIMED = """
import json, statistics, time

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        self.marks = []

    def execute(self, requests):
        self.marks.append([time.perf_counter()])
        responses = super().execute(requests)
        self.marks[-1].append(time.perf_counter())
        if len(self.marks) % 200 == 0:
            self.note()
        return responses

    def compute(self, lane):
        self.marks[-1].append(time.perf_counter())
        super().compute(lane)

    def fetch(self, lane, names):
        self.marks[-1].append(time.perf_counter())
        return super().fetch(lane, names)

    def wait(self):
        super().wait()
        self.marks[-1].append(time.perf_counter())

    def note(self):
        parts = zip(*([1e6 * (b - a) for a, b in zip(m, m[1:])] for m in self.marks[10:] if len(m) == 5))
        names = "read and copy in", "enqueue", "wait for the GPU", "respond"
        with open({times!r}, "w") as file:
            json.dump(dict(zip(names, map(statistics.median, parts))), file)
"""


@contextmanager
def timed_backend(times: Path) -> Iterator[None]:
    """Have the servers started meanwhile write their backend's median times by stage, in microseconds."""
    untimed = installation.BACKEND_MODEL
    installation.BACKEND_MODEL = untimed + TIMED.replace("{times!r}", repr(str(times)))
    try:
        yield
    finally:
        installation.BACKEND_MODEL = untimed


@contextmanager
def no_sleep() -> Iterator[None]:
    """Keep every CPU busy with what gives way at once, so that none sleeps and has to be woken for a request."""
    spin = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", spin]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def perf_analyzer(
    server: Any, name: str, flags: list[str], arguments: argparse.Namespace, interval_ms: int = 2000
) -> dict[str, Any]:
    """Its images a second and its times in microseconds, or what it failed with."""
    options = ["-i", "http", *flags, "--measurement-interval", interval_ms, "--verbose-csv"]
    try:
        row = load_support.perf_analyzer(arguments.perf_analyzer, name, server.url, *options)
    except RuntimeError as error:
        return {"failed": str(error)}
    return {
        "images_per_second": round(float(row["Inferences/Second"])),
        "microseconds": {key: float(value) for key, value in row.items() if _is_time(key, value)},
    }


def _is_time(key: str, value: str) -> bool:
    return key not in {"Concurrency", "Inferences/Second"} and value.replace(".", "", 1).isdigit()
