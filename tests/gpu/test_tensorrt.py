"""TensorRT on a real GPU: engines that are built, verified, published and served there.

``GPU_TACTIC_SOURCES`` is for a TensorRT whose cuBLAS and cuDNN are missing (``-CUBLAS,-CUBLAS_LT,-CUDNN``).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import repo_builder
from client import Client, InferenceRejected
from repo_builder import Tolerance, verify_model
from repo_builder.add import BuildOptions, add_model
from repo_builder.compilers import choose_compiler
from repo_builder.compilers.base import Target
from repo_builder.config.build import ServingOptions
from repo_builder.config.proto import read_config
from repo_builder.errors import CompileError, RepoBuilderError, ServerError, VerificationError
from repo_builder.plans import benchmark_plan, compile_plan, inspect_plan
from repo_builder.runtime import open_session
from repo_builder.trt.cuda import find_gpu
from repo_builder.trt.engine import FUSED
from repo_builder.trt.library import load_library
from repo_builder.trt.options import Profile, TensorRTOptions
from tests.models import FP32, INT64, model, node, save, weights

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("tensorrt_on_a_gpu", "own_folders")]


def options(**given: Any) -> TensorRTOptions:
    return TensorRTOptions(**{"tactic_sources": os.environ.get("GPU_TACTIC_SOURCES", ""), **given})


def network(side: int | str = 32) -> onnx.ModelProto:
    """Convolutions wide enough that FP16 is worth it."""
    layers = []
    for n, x in enumerate(("x", "r0", "r1")):
        layers += [node("Conv", [x, f"w{n}"], [f"c{n}"], pads=[1, 1, 1, 1]), node("Relu", [f"c{n}"], [f"r{n}"])]
    return model(
        [
            *layers,
            node("GlobalAveragePool", ["r2"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("MatMul", ["f", "w3"], ["y"]),
        ],
        {"x": (FP32, ["batch", 16, side, side])},
        {"y": (FP32, ["batch", 10])},
        {
            "w0": weights(256, 16, 3, 3) / 12,
            "w1": weights(256, 256, 3, 3, seed=1) / 48,
            "w2": weights(256, 256, 3, 3, seed=2) / 48,
            "w3": weights(256, 10, seed=3),
        },
    )


def embedding() -> onnx.ModelProto:
    """Two int64 inputs of free length."""
    return model(
        [
            node("Gather", ["table", "ids"], ["e"]),
            node("Cast", ["mask"], ["m"], to=1),
            node("Unsqueeze", ["m", "last"], ["mm"]),
            node("Mul", ["e", "mm"], ["masked"]),
            node("ReduceSum", ["masked", "middle"], ["y"], keepdims=0),
        ],
        {"ids": (INT64, ["batch", "length"]), "mask": (INT64, ["batch", "length"])},
        {"y": (FP32, ["batch", 16])},
        {"table": weights(100, 16), "last": np.array([-1]), "middle": np.array([1])},
    )


def add(tmp_path: Path, proto: onnx.ModelProto, serving: ServingOptions | None = None, **given: Any) -> Any:
    source = save(proto, tmp_path / "net.onnx")
    build = BuildOptions(target=Target.TENSORRT, tensorrt=options(**given))
    return add_model(source, repository=tmp_path / "models", build=build, serving=serving)


def lengths(*sizes: int) -> Profile:
    corners = [dict.fromkeys(("ids", "mask"), (b, n)) for b, n in zip((1, 4, 8), sizes, strict=True)]
    return Profile(*corners)


def test_auto_takes_tensorrt() -> None:
    compiler, why = choose_compiler(Target.AUTO)
    assert compiler.target is Target.TENSORRT
    assert why == "TensorRT and a GPU are here"


def test_fp16_is_built_verified_published_and_served(tmp_path: Path) -> None:
    published = add(tmp_path, network(), fp16=True)
    engine = published.manifest["engine"]
    assert engine["layers_by_precision"]["FP16"] >= 2
    assert engine["verified_by_running"]
    assert published.manifest["unverified"] is None
    [output] = published.manifest["verification"]["outputs"]
    assert output["max_absolute_error"] > 0
    assert output["cosine_error"] < 1e-4
    session = open_session(tmp_path / "net.onnx")
    with repo_builder.serve(tmp_path / "models") as server, Client(server.url) as client:
        for batch in (1, 3, 8):
            x = weights(batch, 16, 32, 32, seed=batch)
            expected = session.run({"x": x})["y"]
            got = client.infer("net", {"x": x})["y"]
            np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("given", "precisions"), [({}, {"TF32", "FP32"}), ({"tf32": False}, {"FP32"})])
def test_without_a_flag_it_stays_fp32(tmp_path: Path, given: dict[str, Any], precisions: set[str]) -> None:
    layers = add(tmp_path, network(), **given).manifest["engine"]["layers_by_precision"]
    assert set(layers) & precisions
    assert not set(layers) & {"FP16", "BF16", "INT8"}


def test_strict_takes_the_precision_from_the_graph(tmp_path: Path) -> None:
    layers = add(tmp_path, network(), fp16=True, strict=True).manifest["engine"]["layers_by_precision"]
    assert layers["FP16"] >= 2
    assert layers.keys() <= {"FP16", FUSED}


def test_two_profiles_with_integers(tmp_path: Path) -> None:
    profiles = (lengths(1, 8, 16), lengths(32, 48, 64))
    published = add(tmp_path, embedding(), profiles=profiles)
    config = read_config(published.folder / "config.pbtxt")
    assert list(config.instance_group[0].profile) == ["0", "1"]
    types = {tensor["name"]: tensor["datatype"] for tensor in published.manifest["inputs"]}
    dtype = np.dtype(types["ids"].lower())  # int32 before TensorRT 10
    session = open_session(tmp_path / "net.onnx")
    with repo_builder.serve(tmp_path / "models") as server, Client(server.url) as client:
        for length in (5, 50):
            ids = np.arange(2 * length).reshape(2, length) % 100
            mask = (ids % 3 > 0).astype(np.int64)
            expected = session.run({"ids": ids, "mask": mask})["y"]
            got = client.infer("net", {"ids": ids.astype(dtype), "mask": mask.astype(dtype)})["y"]
            np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2 * float(np.abs(expected).max()))
        with pytest.raises(InferenceRejected, match="no profile of the engine takes"):
            client.infer("net", {"ids": np.ones((1, 20), dtype), "mask": np.ones((1, 20), dtype)})


def test_cuda_graphs_and_instances_answer_the_same(tmp_path: Path) -> None:
    extra = tmp_path / "extra.pbtxt"
    extra.write_text("optimization { cuda { graphs: true } }\n")
    serving = ServingOptions(max_batch_size=4, instance_count=2, preferred_batch_sizes=(2,), config=extra)
    add(tmp_path, network(), serving, fp16=True)
    session = open_session(tmp_path / "net.onnx")
    with repo_builder.serve(tmp_path / "models") as server, Client(server.url) as client:
        for seed in range(12):
            x = weights(1 + seed % 4, 16, 32, 32, seed=seed)
            expected = session.run({"x": x})["y"]
            got = client.infer("net", {"x": x})["y"]
            np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2 * float(np.abs(expected).max()))


def test_the_timing_cache_is_used_again(tmp_path: Path) -> None:
    source = save(network(), tmp_path / "net.onnx")
    plan = tmp_path / "net.plan"
    first = compile_plan(source, plan, target=Target.TENSORRT, options=options(fp16=True))
    second = compile_plan(source, plan, target=Target.TENSORRT, options=options(fp16=True))
    assert (first.engine["timing_cache_hit"], second.engine["timing_cache_hit"]) == (False, True)
    assert second.engine["build_seconds"] < first.engine["build_seconds"]


def test_inspect_reads_the_engine(tmp_path: Path) -> None:
    plan = tmp_path / "net.plan"
    compile_plan(save(network(), tmp_path / "net.onnx"), plan, target=Target.TENSORRT, options=options(fp16=True))
    facts = inspect_plan(plan)
    assert facts["source"] == "engine"
    assert load_library(Target.TENSORRT).version.startswith(".".join(facts["version"].split(".")[:3]))
    assert facts["profiles"][0]["max"] == {"x": [8, 16, 32, 32]}
    assert facts["device_memory_bytes"] > 0


def test_the_benchmark_adds_up(tmp_path: Path) -> None:
    plan = tmp_path / "net.plan"
    compile_plan(save(network(), tmp_path / "net.onnx"), plan, target=Target.TENSORRT, options=options(fp16=True))
    performance = benchmark_plan(plan)
    parts = performance.h2d.mean + performance.compute.mean + performance.d2h.mean
    assert performance.latency.mean == pytest.approx(parts)
    assert performance.inferences >= 10
    assert performance.throughput == pytest.approx(performance.inferences / performance.wall_seconds)


def test_a_plan_that_is_cut_short_or_of_another_version_is_one_clear_error(tmp_path: Path) -> None:
    published = add(tmp_path, network(), fp16=True)
    plan = published.folder / "1" / "model.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CompileError, match="refuses"):
        benchmark_plan(plan)
    with pytest.raises(ServerError) as caught:
        repo_builder.serve(tmp_path / "models")
    assert "built by TensorRT" in f"{caught.value.message} {caught.value.hint}"


def test_shapes_that_the_source_does_not_take_publish_nothing(tmp_path: Path) -> None:
    big = Profile(*[{"x": (batch, 16, 8, 8)} for batch in (1, 2, 4)])
    with pytest.raises(RepoBuilderError):
        add(tmp_path, network(32), profiles=(big,))
    assert not (tmp_path / "models" / "net").exists()


def test_a_network_definition_is_held_to_numpy_and_served(tmp_path: Path) -> None:
    path = Path(repo_builder.__file__).parents[1] / "examples" / "convnet" / "network.py"
    spec = importlib.util.spec_from_file_location("convnet_example", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    build = BuildOptions(target=Target.TENSORRT, tensorrt=options())
    published = add_model(example.convnet, reference=example.numpy_convnet, repository=tmp_path / "models", build=build)
    assert published.manifest["unverified"] is None
    [output] = published.manifest["verification"]["outputs"]
    assert output["cosine_error"] < 1e-4
    again = verify_model("convnet", repository=tmp_path / "models", reference=example.numpy_convnet)
    assert again.verification.batch_sizes == (1, 8)
    with repo_builder.serve(tmp_path / "models") as server:
        served = verify_model(
            "convnet", repository=tmp_path / "models", reference=example.numpy_convnet, served=server.url
        )
    assert served.verification.outputs[0].mismatched == 0


def test_verify_runs_the_published_plan_and_the_served_one(tmp_path: Path) -> None:
    add(tmp_path, network(), ServingOptions(max_batch_size=8, max_queue_delay_us=2000), fp16=True)
    source = tmp_path / "net.onnx"
    checked = verify_model("net", repository=tmp_path / "models", source=source)
    assert 0 < checked.verification.outputs[0].cosine_error < 1e-4
    with repo_builder.serve(tmp_path / "models") as server:
        served = verify_model("net", repository=tmp_path / "models", source=source, served=server.url)
    assert served.joined is not None
    assert served.joined > 1
    with pytest.raises(VerificationError, match="output 'y' is not what"):
        verify_model("net", repository=tmp_path / "models", source=source, tolerance=Tolerance(rtol=0, atol=0))


def test_verify_compares_at_the_ends_of_every_profile(tmp_path: Path) -> None:
    add(tmp_path, embedding(), profiles=(lengths(1, 8, 16), lengths(32, 48, 64)))
    elements = verify_model("net", repository=tmp_path / "models", source=tmp_path / "net.onnx").verification
    assert elements.outputs[0].elements == 6 * (1 + 8) * 16  # six lengths, one row and eight
    with repo_builder.serve(tmp_path / "models") as server:
        served = verify_model("net", repository=tmp_path / "models", source=tmp_path / "net.onnx", served=server.url)
    assert served.verification.outputs[0].mismatched == 0


def test_a_plan_for_this_type_of_gpu_is_found_by_its_compute_capability(tmp_path: Path) -> None:
    source = save(network(), tmp_path / "net.onnx")
    build = BuildOptions(target=Target.TENSORRT, tensorrt=options(fp16=True), cc_plan=True)
    published = add_model(source, repository=tmp_path / "models", build=build)
    gpu = find_gpu()
    assert gpu is not None
    file = f"model_cc{gpu.compute_capability.replace('.', '')}.plan"
    config = read_config(published.folder / "config.pbtxt")
    assert dict(config.cc_model_filenames) == {gpu.compute_capability: file}
    assert published.manifest["plans"][gpu.compute_capability]["engine"]["gpu"]["name"] == gpu.name
    again = add_model(source, repository=tmp_path / "models", build=build)
    assert (again.version, again.unchanged) == (1, True)
    with repo_builder.serve(tmp_path / "models") as server:
        served = verify_model("net", repository=tmp_path / "models", source=source, served=server.url)
    assert served.verification.outputs[0].cosine_error < 1e-4
