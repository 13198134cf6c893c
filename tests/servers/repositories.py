"""Model repositories written by hand, so that the server is tested without `add`, and a client that isn't ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tritonclient.http as triton
from onnx import TensorProto, helper

Array = npt.NDArray[Any]
Tensor = tuple[str, int, list[int | str]]

VECTOR: list[Tensor] = [("x", TensorProto.FLOAT, ["N", 4])]
VECTOR_CONFIG = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
"""
ONE_INSTANCE = "instance_group [{ count: 1 kind: KIND_CPU }]\n"


def write_model(
    repository: Path,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    config: str,
    initializers: Sequence[onnx.TensorProto] = (),
    platform: str = "onnxruntime_onnx",
) -> Path:
    """Write version 1 of a model and its config.pbtxt; return the model's folder."""
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1/model.onnx").write_bytes(model.SerializeToString())
    (folder / "config.pbtxt").write_text(f'name: "{name}"\nplatform: "{platform}"\n{config}', encoding="utf-8")
    return folder


def write_identity(repository: Path, name: str, config: str = VECTOR_CONFIG + ONE_INSTANCE) -> Path:
    """Write a model that returns four floats a sample as they are."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return write_model(repository, name, nodes, VECTOR, [("y", TensorProto.FLOAT, ["N", 4])], config)


def infer(url: str, model: str, arrays: dict[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
    """Send one request with NVIDIA's client and return the outputs asked for, all without any."""
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        inputs = []
        for name, array in arrays.items():
            tensor = triton.InferInput(name, list(array.shape), datatype(array))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        wanted = [triton.InferRequestedOutput(name) for name in outputs] or None
        result = client.infer(model, inputs, outputs=wanted)
        return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def datatype(array: Array) -> str:
    if array.dtype.name == "bfloat16":
        return "BF16"
    return str(triton.np_to_triton_dtype(array.dtype))


def execution_counts(url: str, model: str) -> tuple[int, int]:
    """Return how many requests the model has answered and in how many executions."""
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        statistics = client.get_inference_statistics(model)["model_stats"][0]
    return statistics["inference_count"], statistics["execution_count"]


def constant(name: str, array: Array) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(array), name)
