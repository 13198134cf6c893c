"""Triton backend ``onnxruntime``: serves ``platform: "onnxruntime_onnx"`` models.

It reads the same repositories, ``config.pbtxt`` fields and parameters as NVIDIA's C++ backend of that name
(https://github.com/triton-inference-server/onnxruntime_backend, README) and refuses what that one refuses,
so that a repository which loads here loads there.  The requests that Triton's scheduler hands over together
are joined along the batch axis into one ONNX Runtime call.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .batches import BatchModel, Pending, RequestError
from .dlpack import Array, address_in, array_at
from .loading import refuse_unsupported
from .onnxruntime_loading import (
    ModelPort,
    checked_inputs,
    checked_outputs,
    execution_providers,
    model_file,
    run_options,
    session_options,
)

BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class TritonPythonModel(BatchModel):
    """One model instance: its own ONNX Runtime session."""

    outputs: dict[str, ModelPort]

    def initialize(self, args: dict[str, str]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise pb_utils.TritonModelException(f"onnxruntime can't be imported: {error}") from error

        config = json.loads(args["model_config"])
        refuse_unsupported(config, "onnxruntime")
        self.batching = config["max_batch_size"] > 0
        path = model_file(args, config)
        options = session_options(config)
        providers = execution_providers(args, onnxruntime)
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:
            raise pb_utils.TritonModelException(f"unable to load {path}: {error}") from error

        self.inputs = checked_inputs(config, self.session)
        self.outputs = checked_outputs(config, self.session)
        self.required = {node.name for node in self.session.get_inputs()}
        datatypes = {port.datatype for port in (*self.inputs.values(), *self.outputs.values())}
        if datatypes >= {"TYPE_BF16", "TYPE_STRING"}:
            raise pb_utils.TritonModelException("a model with both BF16 and STRING tensors is not supported")
        self.through_ort_values = "TYPE_BF16" in datatypes  # NumPy has no bfloat16
        self.run_options = run_options(config, onnxruntime)
        self.ort_value = onnxruntime.OrtValue

    def finalize(self) -> None:
        self.session = None

    def read(self, place: int, request: Any) -> Pending:
        inputs = {tensor.name(): self.to_array(tensor) for tensor in request.inputs()}
        batch = len(next(iter(inputs.values()))) if self.batching else 1
        return Pending(place, inputs, frozenset(request.requested_output_names()), batch)

    def to_array(self, tensor: Any) -> Array:
        port = self.inputs[tensor.name()]
        if port.datatype == "TYPE_BF16":
            array = bfloat16_bits(tensor)
        elif port.datatype == "TYPE_STRING":
            array = decoded(tensor.as_numpy(), port.name)
        else:
            array = tensor.as_numpy()
        return array.reshape(()) if port.scalar else array

    def key_of(self, pending: Pending) -> Hashable:
        return tuple(sorted((name, array.shape[1:]) for name, array in pending.inputs.items()))

    def run(self, group: list[Pending], names: list[str]) -> dict[str, Array]:
        feed = group[0].inputs
        if len(group) > 1:
            feed = {name: np.concatenate([pending.inputs[name] for pending in group]) for name in feed}
        if missing := self.required - feed.keys():
            raise RequestError(f"input {min(missing)!r} is missing and the ONNX model has no default for it")
        if self.through_ort_values:
            return self.run_on_ort_values(feed, names)
        return dict(zip(names, self.session.run(names, feed, self.run_options), strict=True))

    def run_on_ort_values(self, feed: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
        values = {
            name: self.ort_value.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
            if self.inputs[name].datatype == "TYPE_BF16"
            else self.ort_value.ortvalue_from_numpy(np.asarray(array, order="C"))
            for name, array in feed.items()
        }
        results = self.session.run_with_ort_values(names, values, self.run_options)
        return {
            name: copy_of_bits(value) if self.outputs[name].datatype == "TYPE_BF16" else value.numpy()
            for name, value in zip(names, results, strict=True)
        }


def decoded(array: Array, name: str) -> Array:
    """Return strings as text, which ONNX Runtime's Python interface takes; Triton hands over bytes."""
    flat = array.reshape(-1)
    text = np.empty(flat.shape, dtype=object)
    try:
        text[:] = [element.decode() for element in flat]
    except UnicodeDecodeError as error:
        raise RequestError(f"input {name!r} has a string that is not UTF-8: {error}") from error
    return text.reshape(array.shape)


def bfloat16_bits(tensor: Any) -> Array:
    return array_at(address_in(tensor.to_dlpack()), np.uint16, tensor.shape())


def copy_of_bits(value: Any) -> Array:
    return array_at(value.data_ptr(), np.uint16, value.shape()).copy()
