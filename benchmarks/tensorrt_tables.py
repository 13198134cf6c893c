"""The tables of docs/tensorrt.md, from results/tensorrt.json and from the gate's own tolerances.

    python benchmarks/tensorrt_tables.py

writes them into the file; tests/test_docs.py holds the file to them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from repo_builder.compilers.tensorrt import TOLERANCES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tensorrt.md"
RESULTS = ROOT / "benchmarks" / "results" / "tensorrt.json"
ROUNDOFF = {"FP32": -24, "TF32": -11, "FP16": -11, "BF16": -8, "INT8": -8}
"""log2 of the unit roundoff: half the distance of 1 to the next number (TF32 has FP16's 10 bits of fraction).

Of INT8 the same of the largest value, 127 steps."""

BATCHES = (1, 8, 16, 32, 64, 128)
WAYS = ("single", "http", "shared_memory")
"""Of sending pictures: one at a time over HTTP; in requests of 8, 32 in flight, over HTTP; the same through memory."""

Rows = Iterable[Iterable[object]]


def markdown(header: Iterable[str], rows: Rows) -> str:
    head = list(header)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tolerances() -> str:
    rows = (
        (
            name,
            f"2^{ROUNDOFF[name]}",
            f"{limit.rtol:g}",
            f"{limit.scale:g}",
            f"{limit.scale / 2 ** ROUNDOFF[name]:.0f}",
            f"{limit.flips:.1%}",
        )
        for name, limit in TOLERANCES.items()
    )
    return markdown(
        ("precision", "unit roundoff u", "of the value", "of the largest value", "that is, in u", "of integers"), rows
    )


def published(results: Mapping[str, Any]) -> str:
    rows = []
    for model, found in results["publish"].items():
        outputs, served = found["verification"]["outputs"], found["served"]
        cached = " (timing cache)" if found["engine"]["timing_cache_hit"] else ""
        rows.append(
            (
                model,
                f"{found['engine']['build_seconds']:.0f}{cached}",
                f"{max(output['cosine_error'] for output in outputs):.1e}",
                f"{served['max_error_of_largest']:.1e}",
                f"{served['top1_agreement']:.1%}",
                f"{served['median_request_ms']:.2f}",
            )
        )
    header = ("model, FP16", "build, s", "gate: cosine error", "served: error", "same top-1", "request, ms")
    return markdown(header, rows)


def speed(results: Mapping[str, Any]) -> str:
    """GPU time by batch of every precision; PyTorch's beneath, which has no plan."""
    pytorch = results["pytorch"]["networks"]
    rows = []
    for model, by_precision in results["table"].items():
        for precision, found in by_precision.items():
            rows.append(
                (
                    model,
                    precision.upper(),
                    f"{found['build_seconds_cold']:.0f} / {found['build_seconds_with_timing_cache']:.0f}",
                    f"{found['plan_bytes'] / 1e6:.0f}",
                    f"{found['error_of_largest']:.1e}",
                    *(f"{found['gpu_ms'][str(batch)]:.2f}" for batch in BATCHES),
                    f"{found['images_per_second']['128']}",
                )
            )
        for mode, times in pytorch.get(model, {}).items():
            how = mode.replace("_", " ").replace("fp", "FP")
            ms = (f"{times[str(batch)]:.2f}" for batch in BATCHES)
            rows.append((model, f"PyTorch {how}", "", "", "", *ms, f"{128 / times['128'] * 1e3:.0f}"))
    batches = (f"batch {batch}, ms" for batch in BATCHES)
    return markdown(("model", "", "build, s", "plan, MB", "error", *batches, "images/s at 128"), rows)


def loads(results: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], Mapping[str, Any]]]:
    """Every load that was put on a server, after its model, its number of instances and its way of sending."""
    for model, found in results["serve"].items():
        for key, by_way in found.items():
            if key.startswith("instances_"):
                for way in WAYS:
                    yield (model, key.removeprefix("instances_"), way.replace("_", " ")), by_way[way]


def stages(results: Mapping[str, Any]) -> str:
    """Where a request's time goes, in milliseconds, by what perf_analyzer and the server's statistics tell."""
    columns = {
        "client": ("Client Send", "Client Recv"),
        "network, front end": ("Network+Server Send/Recv",),
        "queue": ("Server Queue",),
        "into shared memory": ("Server Compute Input",),
        "GPU, backend, process to process": ("Server Compute Infer",),
        "out": ("Server Compute Output",),
    }
    rows = []
    for how, load in loads(results):
        spent = load["microseconds"]
        rows.append((*how, *(f"{sum(spent[name] for name in names) / 1e3:.2f}" for names in columns.values())))
    return markdown(("model, FP16", "instances", "pictures by", *columns), rows)


def beside_polygraphy(results: Mapping[str, Any]) -> str:
    rows = [
        (model, batch, f"{own:.3f}", f"{found['gpu_ms']['polygraphy'][batch]:.3f}", f"{found['ratio'][batch]:.3f}")
        for model, found in results["polygraphy"].items()
        for batch, own in found["gpu_ms"]["own"].items()
    ]
    return markdown(("model, FP16", "batch", "ours, ms", "Polygraphy's, ms", "ratio"), rows)


def served(results: Mapping[str, Any]) -> str:
    rows = []
    for how, load in loads(results):
        p50 = f"{load['microseconds']['p50 latency'] / 1e3:.2f}"
        rows.append((*how, f"{load['images_per_second']:.0f}", load["share_of_engine"], p50))
    return markdown(("model, FP16", "instances", "pictures by", "images/s", "of the engine alone", "p50, ms"), rows)


def one_at_a_time(results: Mapping[str, Any]) -> str:
    """One request in flight, by queue delay, launch, sleep of the CPUs and way of sending; milliseconds."""
    columns = {
        "client, network, front end": ("Client Send", "Network+Server Send/Recv", "Client Recv"),
        "queue": ("Server Queue",),
        "in and out of shared memory": ("Server Compute Input", "Server Compute Output"),
    }
    rows = []
    for model, found in results["single"].items():
        for delay, launch, awake, way in product((200, 0), ("launches", "graphs"), ("", "awake_"), WAYS[1:]):
            load = found[f"delay_{delay}_{launch}_{awake}{way}"]
            spent, backend = load["microseconds"], load["backend_microseconds"]
            gpu = backend["enqueue"] + backend["wait for the GPU"]
            own = backend["read and copy in"] + backend["respond"]
            parts = [sum(spent[name] for name in names) for names in columns.values()]
            parts += [spent["Server Compute Infer"] - gpu - own, own, gpu]
            above = spent["p50 latency"] / 1e3 - found["engine_gpu_ms"]
            how = (delay, "graph" if launch == "graphs" else "layers", "no" if awake else "yes", way.replace("_", " "))
            p50 = f"{spent['p50 latency'] / 1e3:.2f}"
            rows.append((model, *how, p50, f"{above:.2f}", *(f"{part / 1e3:.2f}" for part in parts)))
    settings = ("model, FP16", "delay, us", "launched as", "CPUs sleep", "pictures by", "p50, ms", "above the engine")
    return markdown((*settings, *columns, "process to process", "backend's Python", "GPU"), rows)


def in_cuda_memory(results: Mapping[str, Any]) -> str:
    rows = []
    for model, by_inputs in results["cuda_memory"].items():
        for inputs, by_load in by_inputs.items():
            for load, found in by_load.items():
                _, batch, _, concurrency = load.split("_")
                rate, p50 = f"{found['images_per_second']:.0f}", f"{found['p50_ms']:.2f}"
                rows.append((model, inputs, batch, concurrency, rate, p50))
    return markdown(("model, FP16", "pictures are", "a request", "requests in flight", "images/s", "p50, ms"), rows)


def machine(results: Mapping[str, Any]) -> str:
    gpu = results["machine"]["gpu"]
    return f"{gpu['name']}, driver {gpu['driver']}, TensorRT {results['machine']['tensorrt']}."


def tables() -> dict[str, str]:
    """Every table by the name that its markers in the page have."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {
        "tolerances": tolerances(),
        "machine": machine(results),
        "published": published(results),
        "speed": speed(results),
        "polygraphy": beside_polygraphy(results),
        "served": served(results),
        "stages": stages(results),
        "single": one_at_a_time(results),
        "cuda_memory": in_cuda_memory(results),
    }


def filled(page: str) -> str:
    """``page`` with what stands between ``<!-- NAME -->`` and ``<!-- end -->`` replaced by the table of that name."""
    for name, table in tables().items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        page, count = re.subn(pattern, lambda match, table=table: match[1] + table + match[2], page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name!r}")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit()
