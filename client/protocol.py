"""Inference requests and answers as HTTP bodies; no sockets here.

The format is the KServe v2 protocol with Triton's binary tensor data and classification extensions.  A body
is a JSON header followed by the raw tensors, so it can be built once and sent any number of times.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from client.errors import BadResponse
from client.tensors import Array, from_wire, to_wire

HEADER_LENGTH: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Request:
    """One HTTP request, ready to be sent."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """One complete HTTP answer; the names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Tensor:
    """An input: an array that already has the dtype of its Triton datatype."""

    name: str
    datatype: str
    array: Array


@dataclass(frozen=True)
class RequestedOutput:
    """An output to be sent back; with ``classes`` as that many strings ``value:index[:label]`` an item."""

    name: str
    classes: int = 0


def model_path(model: str, version: str = "") -> str:
    """Path of a model's resources, as ``/v2/models/NAME[/versions/VERSION]``."""
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def inference_request(
    model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[RequestedOutput] = ()
) -> Request:
    """Build the request of one inference; without ``outputs`` the server sends all of them."""
    parts = [to_wire(tensor.array, tensor.datatype) for tensor in inputs]
    header: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": tensor.array.shape,
                "parameters": {"binary_data_size": len(part)},
            }
            for tensor, part in zip(inputs, parts, strict=True)
        ]
    }
    if outputs:
        header["outputs"] = [{"name": out.name, "parameters": _output_parameters(out)} for out in outputs]
    else:
        header["parameters"] = {"binary_data_output": True}
    text = json.dumps(header, separators=(",", ":")).encode()
    return Request(
        "POST",
        f"{model_path(model, version)}/infer",
        b"".join([text, *parts]),
        {HEADER_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"},
    )


def _output_parameters(output: RequestedOutput) -> dict[str, object]:
    parameters: dict[str, object] = {"binary_data": True}
    if output.classes:
        parameters["classification"] = output.classes
    return parameters


def inference_outputs(response: Response) -> dict[str, Array]:
    """Take the output tensors out of an answer, in its order; :class:`BadResponse` when it isn't sound."""
    try:
        length = int(response.headers.get(HEADER_LENGTH.lower(), len(response.body)))
        outputs = json.loads(response.body[:length])["outputs"]
        rest = memoryview(response.body)[length:]
        arrays = {}
        for output in outputs:
            shape = tuple(int(axis) for axis in output["shape"])
            size = int(output["parameters"]["binary_data_size"])
            if size > len(rest) or min(shape, default=0) < 0:
                raise BadResponse(f"the answer ends before its output {output['name']!r}")
            arrays[output["name"]] = from_wire(rest[:size], output["datatype"], shape)
            rest = rest[size:]
    except (ValueError, KeyError, TypeError) as error:
        raise BadResponse(f"the server's answer can't be read: {error!r}") from None
    return arrays
