"""TensorRT on a real GPU: publish and serve, a table of speed and error, the same from Polygraphy, load on the server.

    python benchmarks/tensorrt_h100.py publish    --networks /tmp/networks resnet18 resnet50
    python benchmarks/tensorrt_h100.py table      --networks /tmp/networks resnet50 --precisions fp16
    python benchmarks/tensorrt_h100.py polygraphy --networks /tmp/networks resnet50
    python benchmarks/tensorrt_h100.py serve      --networks /tmp/networks resnet50 --perf-analyzer perf_analyzer
    python benchmarks/tensorrt_h100.py single     --networks /tmp/networks resnet50 --perf-analyzer perf_analyzer
    python benchmarks/tensorrt_h100.py cuda_memory --networks /tmp/networks resnet50

The networks come from export_networks.py.  Every stage prints what it does and merges its figures into --results, so
that stages can run one by one.  Latency is the median GPU compute time between CUDA events (trtexec's "GPU Compute
Time"), images a second are batch size over it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorrt_load import cuda_memory, serve, single
from tensorrt_support import BATCHES, LENGTH, options_for, say, scratch, shapes_at, steps, timing_cache

import repo_builder
from client import Client
from repo_builder.add import BuildOptions, add_model
from repo_builder.compilers.base import Target
from repo_builder.onnx_model import read_model
from repo_builder.plans import compile_plan, load_plan
from repo_builder.runtime import open_session
from repo_builder.samples import SampleOptions, Sampler, index_ranges
from repo_builder.trt.benchmark import measure
from repo_builder.trt.cuda import find_gpu, require_gpu
from repo_builder.trt.library import load_library
from repo_builder.trt.runner import EngineRunner

PRECISIONS = {"fp32": {"tf32": False}, "tf32": {}, "fp16": {"fp16": True}}
POLYGRAPHY_LIMIT = 1.03
"""Our median GPU time over Polygraphy's, at most."""


def publish(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """``add --target tensorrt --fp16``, then ``serve``, then the served answers against ONNX Runtime."""
    build = BuildOptions(
        target=Target.TENSORRT,
        tensorrt=dataclasses.replace(options_for(model, arguments, fp16=True), profiles=()),
    )
    if any(
        axis is None or isinstance(axis, str) for t in read_model(model).spec.inputs for axis in (t.shape or ())[1:]
    ):
        build = dataclasses.replace(build, tensorrt=options_for(model, arguments, fp16=True))
    with scratch() as folder:
        published = add_model(model, repository=folder / "models", build=build, progress=steps())
        manifest = published.manifest
        say(f"engine: {json.dumps(manifest['engine']['layers_by_precision'])}, {manifest['engine']['build_seconds']} s")
        say(f"verification: {json.dumps(manifest['verification'])}")
        with repo_builder.serve(folder / "models") as server, Client(server.url) as client:
            say(f"served by tritonserver {server.version}: {[status.state.value for status in server.models]}")
            served = compare_served(client, published.name, model, manifest)
        say(f"served answers: {json.dumps(served)}")
        engine = dict(manifest["engine"])
        engine.pop("log")
        return {"engine": engine, "verification": manifest["verification"], "served": served}


def compare_served(client: Client, name: str, model: Path, manifest: Any) -> dict[str, Any]:
    """Error and top-1 agreement of what the server answers, and the latency of single requests, over HTTP."""
    spec = read_model(model)
    session = open_session(model)
    types = {tensor["name"]: tensor["datatype"] for tensor in manifest["inputs"]}
    sampler = Sampler(spec.spec.inputs, SampleOptions(), index_ranges(spec.proto))
    worst, agree, times = 0.0, [], []
    for row in range(16):
        arrays = sampler.sample(row, (224, LENGTH), batch_axis=True)
        sent = {key: array.astype(np.int32) if types[key] == "INT32" else array for key, array in arrays.items()}
        client.infer(name, sent)
        began = time.perf_counter()
        answers = client.infer(name, sent)
        times.append((time.perf_counter() - began) * 1e3)
        for output, expected in session.run(arrays).items():
            error = np.abs(np.asarray(answers[output], np.float64) - expected).max() / np.abs(expected).max()
            worst = max(worst, float(error))
            agree.append(bool(np.argmax(answers[output]) == np.argmax(expected)))
    return {
        "max_error_of_largest": worst,
        "top1_agreement": float(np.mean(agree)),
        "median_request_ms": float(np.median(times)),
    }


def table(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Build time cold and with timing cache, plan size, error, and speed at every batch size, for each precision."""
    rows = {}
    for precision in arguments.precisions:
        with scratch() as folder:
            cache = timing_cache(model, precision)
            cache.unlink(missing_ok=True)
            options = dataclasses.replace(options_for(model, arguments, **PRECISIONS[precision]), timing_cache=cache)
            plan = folder / "model.plan"
            cold = compile_plan(model, plan, target=Target.TENSORRT, options=options)
            warm = compile_plan(model, plan, target=Target.TENSORRT, options=options)
            loaded = load_plan(plan)
            opt = loaded.info.profiles[0].opt
            row: dict[str, Any] = {
                "build_seconds_cold": cold.engine["build_seconds"],
                "build_seconds_with_timing_cache": warm.engine["build_seconds"],
                "plan_bytes": warm.bytes,
                "layers_by_precision": warm.engine["layers_by_precision"],
                "error_of_largest": error_of(loaded, model),
                "gpu_ms": {},
                "images_per_second": {},
            }
            for batch in BATCHES:
                result = measure(loaded.engine, loaded.info, shapes_at(batch, opt), duration_s=arguments.seconds)
                row["gpu_ms"][str(batch)] = round(result.compute.median, 4)
                row["images_per_second"][str(batch)] = round(batch / result.compute.median * 1e3)
            say(f"{model.stem} {precision}: {json.dumps(row)}")
            note(arguments.results, "table", model.stem, {precision: row})
            rows[precision] = row
    return rows


def error_of(loaded: Any, model: Path) -> float:
    """The largest error of a batch of 8 against ONNX Runtime, over the largest output."""
    spec = read_model(model)
    sampler = Sampler(spec.spec.inputs, SampleOptions(), index_ranges(spec.proto))
    rows = [sampler.sample(row, (224, LENGTH), batch_axis=True) for row in range(8)]
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    runner = EngineRunner(load_library(Target.TENSORRT), loaded.engine, loaded.info, [])
    worst = 0.0
    actual = runner.run(arrays)
    for name, expected in open_session(model).run(arrays).items():
        gap = np.abs(actual[name].astype(np.float64) - expected).max() / np.abs(expected).max()
        worst = max(worst, float(gap))
    return worst


def polygraphy(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Our plan and Polygraphy's of the same model with the same options, measured in turns."""
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath
    from polygraphy.backend.trt import Profile as TheirProfile

    options = options_for(model, arguments, fp16=True)
    corners = options.profiles[0]
    theirs = TheirProfile()
    for name in corners.opt:
        theirs.add(name, min=corners.min[name], opt=corners.opt[name], max=corners.max[name])
    sources = [trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS]
    config = CreateConfig(fp16=True, profiles=[theirs], tactic_sources=sources if arguments.tactic_sources else None)
    with scratch() as folder:
        own, other = folder / "own.plan", folder / "polygraphy.plan"
        options = dataclasses.replace(options, timing_cache=folder / "timing.cache")
        compile_plan(model, own, target=Target.TENSORRT, options=options)
        other.write_bytes(bytes(EngineBytesFromNetwork(NetworkFromOnnxPath(str(model)), config=config)()))
        plans = {"own": load_plan(own), "polygraphy": load_plan(other)}
        times: dict[str, dict[str, list[float]]] = {name: {str(b): [] for b in BATCHES} for name in plans}
        for _ in range(3):
            for batch in BATCHES:
                for name, loaded in plans.items():
                    result = measure(loaded.engine, loaded.info, shapes_at(batch, corners.opt), duration_s=1.0)
                    times[name][str(batch)].append(result.compute.median)
    medians = {name: {batch: float(np.median(runs)) for batch, runs in rows.items()} for name, rows in times.items()}
    ratios = {batch: round(medians["own"][batch] / medians["polygraphy"][batch], 4) for batch in medians["own"]}
    verdict = "holds" if float(np.median(list(ratios.values()))) <= POLYGRAPHY_LIMIT else "DOES NOT HOLD"
    say(f"{model.stem}: our GPU time over Polygraphy's by batch {ratios}: at most {POLYGRAPHY_LIMIT}: {verdict}")
    return {"gpu_ms": medians, "ratio": ratios, "limit": POLYGRAPHY_LIMIT, "verdict": verdict}


STAGES = {
    "publish": publish,
    "table": table,
    "polygraphy": polygraphy,
    "serve": serve,
    "single": single,
    "cuda_memory": cuda_memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("models", nargs="+", help="names of files in --networks, without .onnx")
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "tensorrt.json")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--tactic-sources", default="", help="as repo-builder add takes them, such as=-CUBLAS,-CUDNN")
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement in the table")
    parser.add_argument("--perf-analyzer", default="perf_analyzer")
    arguments = parser.parse_args()
    gpu = require_gpu("this benchmark")
    say(f"{gpu.name}, driver {gpu.driver}, CUDA {gpu.cuda}, TensorRT {load_library(Target.TENSORRT).version}")
    failed = []
    for name in arguments.models:
        model = arguments.networks / f"{name}.onnx"
        try:
            figures = STAGES[arguments.stage](model, arguments)
        except repo_builder.RepoBuilderError as error:
            say(f"{arguments.stage} {name} FAILED: {error.message} ({error.hint})")
            failed.append(name)
            continue
        note(arguments.results, arguments.stage, name, figures)
    return 1 if failed else 0


def note(path: Path, stage: str, name: str, figures: dict[str, Any]) -> None:
    """Merge one model's figures into the results file."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    gpu = find_gpu()
    results["machine"] = {
        "gpu": dataclasses.asdict(gpu) if gpu else None,
        "tensorrt": load_library(Target.TENSORRT).version,
        "python": sys.version.split()[0],
    }
    old = results.setdefault(stage, {}).get(name, {})
    results[stage][name] = {**old, **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
