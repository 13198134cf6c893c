"""The messages of gRPC's ModelInfer, in the classes that tritonclient ships."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from client.errors import BadResponse, UsageError
from client.load.descriptions import MESSAGE_PREFIX
from client.load.raw_tensors import tensor_bytes
from client.load.shared_memory import Place
from client.protocol import Tensor


def require_grpc() -> None:
    """UsageError unless the packages that gRPC needs are installed."""
    try:
        import hpack  # noqa: F401
        import tritonclient.grpc  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--protocol grpc needs the package {error.name}, which is not installed",
            "pip install 'repo-builder[grpc]'",
        ) from None


def grpc_request(
    model: str,
    version: str,
    inputs: Sequence[Tensor],
    placed: Mapping[str, Place] | None = None,
    outputs: Mapping[str, Place] | None = None,
) -> bytes:
    """A ModelInferRequest behind the length that gRPC puts in front of it.

    Inputs that are ``placed`` are in shared memory, and so will be ``outputs``.
    """
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for tensor in inputs:
        entry = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        if placed is None:
            request.raw_input_contents.append(tensor_bytes(tensor.datatype, tensor.array))
        else:
            _place(entry, placed[tensor.name])
    for name, place in (outputs or {}).items():
        _place(request.outputs.add(name=name), place)
    message: bytes = request.SerializeToString(deterministic=True)
    return MESSAGE_PREFIX.pack(0, len(message)) + message


def _place(entry: Any, place: Place) -> None:
    entry.parameters["shared_memory_region"].string_param = place.region
    entry.parameters["shared_memory_offset"].int64_param = place.offset
    entry.parameters["shared_memory_byte_size"].int64_param = place.size


def read_grpc_answer(body: bytes) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Name, datatype, shape and contents of each output of a ModelInferResponse; BadResponse if it is none.

    There are no contents of outputs in shared memory.
    """
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2

    try:
        answer = service_pb2.ModelInferResponse.FromString(body)
    except DecodeError as error:
        raise BadResponse(f"the server's answer can't be read: {error}") from None
    contents = itertools.chain(answer.raw_output_contents, itertools.repeat(b""))
    outputs = zip(answer.outputs, contents, strict=False)
    return [(output.name, output.datatype, tuple(output.shape), data) for output, data in outputs]
