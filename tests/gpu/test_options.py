"""What else one may ask of TensorRT's builder, and tensors of every kind: built, verified, served, measured."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import repo_builder
from client import Client
from repo_builder import verify_model
from repo_builder.add import BuildOptions, add_model
from repo_builder.compilers.base import Target
from repo_builder.config.build import ServingOptions
from repo_builder.errors import UsageError
from repo_builder.model import DataType
from repo_builder.plans import benchmark_plan
from repo_builder.runtime import open_session
from repo_builder.samples import SampleOptions
from repo_builder.trt.library import load_library
from repo_builder.trt.options import Profile
from tests.gpu.test_tensorrt import add, network, options
from tests.models import FP32, INT64, Tensors, beginning, model, node, places, quantised, save
from tests.passes.test_quantised import quantised as quantised_with_biases

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("tensorrt_on_a_gpu", "own_folders")]

KINDS = {"number": FP32, "half": DataType.FP16, "whole": INT64, "byte": DataType.UINT8, "flag": DataType.BOOL}


def every_kind() -> onnx.ModelProto:
    """One input of each of ``KINDS``, and one output of each: the sum of all of them."""
    nodes = [node("Cast", [name], [f"{name}_fp32"], to=FP32.onnx) for name in KINDS]
    nodes.append(node("Sum", [f"{name}_fp32" for name in KINDS], ["sum"]))
    nodes.append(node("Clip", ["sum", "least", "most"], ["clipped"]))  # what a byte holds
    nodes += [node("Cast", ["clipped"], [f"{name}_out"], to=dtype.onnx) for name, dtype in KINDS.items()]
    inputs: Tensors = {name: (dtype, ["batch", 4]) for name, dtype in KINDS.items()}
    limits = {"least": np.array(0, np.float32), "most": np.array(100, np.float32)}
    return model(nodes, inputs, {f"{name}_out": spec for name, spec in inputs.items()}, limits)


def assert_served_answers_agree(tmp_path: Path) -> None:
    """The server computes of what :func:`add` published what ONNX Runtime does of its source."""
    with repo_builder.serve(tmp_path / "models") as server:
        served = verify_model("net", repository=tmp_path / "models", source=tmp_path / "net.onnx", served=server.url)
    assert served.verification.outputs[0].mismatched == 0


@pytest.mark.parametrize(
    "given",
    [
        {"refit": True},
        {"sparsity": True},
        {"version_compatible": True},
        {"hardware_compatibility": "ampere_plus"},
        {"builder_optimization_level": 0},
        {"memory_pools": {"workspace": 64}},
        {"fp16": True, "half_inputs": True, "half_outputs": True},
    ],
    ids=lambda given: next(name for name in reversed(given)),
)
def test_an_option_of_the_builder(given: dict[str, Any], tmp_path: Path) -> None:
    if "version_compatible" in given:
        major = load_library(Target.TENSORRT).version.partition(".")[0]
        try:
            ctypes.CDLL(f"libnvinfer_lean.so.{major}")  # which such a plan brings along
        except OSError:
            pytest.skip("needs TensorRT's lean runtime")
    published = add(tmp_path, network(), **given)
    assert published.manifest["engine"]["verified_by_running"]
    assert_served_answers_agree(tmp_path)
    plan = published.folder / "1" / "model.plan"
    assert benchmark_plan(plan, version_compatible="version_compatible" in given).compute.median > 0


def test_an_option_that_this_library_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--strip-weights"):
        add(tmp_path, network(), strip_weights=True)
    assert not (tmp_path / "models" / "net").exists()


def test_a_quantised_model(tmp_path: Path) -> None:
    published = add(tmp_path, quantised(tmp_path / "quantised.onnx", opset=17))
    assert published.manifest["engine"]["layers_by_precision"].get("INT8", 0) >= 2
    assert_served_answers_agree(tmp_path)


@pytest.mark.parametrize("given", [{}, {"fp16": True}, {"fp16": True, "strict": True}], ids=["plain", "fp16", "strict"])
def test_biases_that_were_quantised(given: dict[str, Any], tmp_path: Path) -> None:
    """The rest of such a model may be asked for in FP16; what is quantised stays in INT8."""
    published = add(tmp_path, onnx.load(quantised_with_biases(tmp_path)), **given)
    assert published.manifest["engine"]["layers_by_precision"].get("INT8", 0) >= 2
    assert_served_answers_agree(tmp_path)


def test_tensors_of_every_kind(tmp_path: Path) -> None:
    published = add(tmp_path, every_kind())
    types = {tensor["name"]: tensor["datatype"] for tensor in published.manifest["inputs"]}
    assert types == {"number": "FP32", "half": "FP16", "whole": types["whole"], "byte": "UINT8", "flag": "BOOL"}
    session = open_session(tmp_path / "net.onnx")
    with repo_builder.serve(tmp_path / "models") as server, Client(server.url) as client:
        for batch in (1, 3, 8):
            rows = np.random.default_rng(batch).integers(0, 2, (len(KINDS), batch, 4))
            arrays = {name: row.astype(KINDS[name].numpy_dtype()) for name, row in zip(KINDS, rows, strict=True)}
            sent = {**arrays, "whole": arrays["whole"].astype(types["whole"].lower())}  # INT32 before TensorRT 10
            answers = client.infer("net", sent)
            for name, expected in session.run(arrays).items():
                np.testing.assert_array_equal(answers[name].astype(np.float64), expected.astype(np.float64))


def test_an_output_whose_size_depends_on_the_data(tmp_path: Path) -> None:
    add(tmp_path, places(rows=3))
    with repo_builder.serve(tmp_path / "models") as server, Client(server.url) as client:
        for count in (5, 12, 0, 1):
            x = np.zeros(12, np.float32)
            x[:count] = 1
            answer = client.infer("net", {"x": x.reshape(3, 4)})["places"]
            np.testing.assert_array_equal(answer, np.array(np.nonzero(x.reshape(3, 4))))


def test_an_input_that_is_a_size(tmp_path: Path) -> None:
    profile = Profile({"end": (1,)}, {"end": (3,)}, {"end": (6,)})
    build = BuildOptions(
        target=Target.TENSORRT,
        tensorrt=options(profiles=(profile,)),
        samples=SampleOptions(ranges={"end": (1, 6)}),
    )
    source = save(beginning(), tmp_path / "net.onnx")
    published = add_model(source, repository=tmp_path / "models", build=build, serving=ServingOptions(max_batch_size=0))
    (dtype,) = (tensor["datatype"].lower() for tensor in published.manifest["inputs"] if tensor["name"] == "end")
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    with repo_builder.serve(tmp_path / "models") as server, Client(server.url) as client:
        for end in (1, 6, 2):
            answer = client.infer("net", {"x": x, "end": np.array([end], dtype)})["y"]
            np.testing.assert_array_equal(answer, -x[:, :end])
    assert benchmark_plan(published.folder / "1" / "model.plan").compute.median > 0
