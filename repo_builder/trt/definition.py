"""Networks that a Python function defines by TensorRT's own calls, in place of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from repo_builder.errors import CompileError, UsageError
from repo_builder.trt.build import is_strongly_typed
from repo_builder.trt.library import Library
from repo_builder.trt.options import TensorRTOptions

Definition = Callable[[Any, Any], None]
"""Fills an ``INetworkDefinition``, its first argument, by the calls of the module that is its second: ``tensorrt`` or
``tensorrt_rtx``."""


def describe_definition(definition: Definition) -> str:
    """Module and name of the function that defines a network."""
    return f"{definition.__module__}:{getattr(definition, '__qualname__', type(definition).__qualname__)}"


def refuse_network(network: Any) -> None:
    """Raise CompileError for outputs that can't be served, or none."""
    if not network.num_outputs:
        raise CompileError("the network definition has no output", "network.mark_output(layer.get_output(0))")
    for output in _outputs(network):
        if output.is_shape_tensor:
            raise CompileError(
                f"output {output.name!r} is marked by mark_output_for_shapes, and sizes on the host can't be served",
                "network.mark_output(tensor) in its place makes an output like any other",
            )


def has_batch_axis(network: Any) -> bool:
    """Whether the first axis of everything that goes in and out is free."""
    inputs, outputs = [network.get_input(index) for index in range(network.num_inputs)], _outputs(network)
    return bool(inputs) and all(tuple(tensor.shape)[:1] == (-1,) for tensor in (*inputs, *outputs))


def _outputs(network: Any) -> list[Any]:
    return [network.get_output(index) for index in range(network.num_outputs)]


def refuse_conversion(library: Library, options: TensorRTOptions) -> None:
    """Raise UsageError for a precision that only a converted graph would bring: a definition is taken as it is."""
    asked = options.half_inputs or options.half_outputs or (options.half and is_strongly_typed(library, options))
    if asked:
        raise UsageError(
            f"{library.name} {library.version} takes the precision from the network definition: "
            "fp16, bf16, half_inputs and half_outputs can't change it",
            "define it in that precision: weights of numpy.float16, network.add_cast(tensor, trt.DataType.HALF)",
        )
