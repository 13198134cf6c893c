"""Inference requests and answers as HTTP bodies, built and read by tritonclient; no sockets here.

The format is the KServe v2 protocol with Triton's binary tensor data and classification extensions.  A body
is a JSON header followed by the raw tensors, so it can be built once and sent any number of times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from client.errors import BadResponse
from client.tensors import Array

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


def http_head(request: Request, host: str, prefix: str = "") -> bytes:
    """The HTTP/1.1 head of ``request``; ``prefix`` is put in front of its path."""
    fields = {"Host": host, "Content-Length": str(len(request.body)), **request.headers}
    lines = [f"{request.method} {prefix}{request.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def model_path(model: str, version: str = "") -> str:
    """Path of a model's resources, as ``/v2/models/NAME[/versions/VERSION]``."""
    # What was typed may be no UTF-8, or not be known as such (LANG=C): its bytes are what is asked for.
    name, number = (quote(text, safe="", errors="surrogateescape") for text in (model, version))
    return f"/v2/models/{name}/versions/{number}" if version else f"/v2/models/{name}"


def inference_request(
    model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[RequestedOutput] = ()
) -> Request:
    """Build the request of one inference; without ``outputs`` the server sends all of them."""
    sent = [InferInput(tensor.name, list(tensor.array.shape), tensor.datatype) for tensor in inputs]
    for entry, tensor in zip(sent, inputs, strict=True):
        entry.set_data_from_numpy(tensor.array)
    wanted = [InferRequestedOutput(output.name, class_count=output.classes) for output in outputs]
    body, length = InferenceServerClient.generate_request_body(sent, outputs=wanted or None)
    return Request(
        "POST",
        f"{model_path(model, version)}/infer",
        body,
        {HEADER_LENGTH: str(len(body) if length is None else length), "Content-Type": "application/octet-stream"},
    )


def inference_outputs(response: Response) -> dict[str, Array]:
    """Take the output tensors out of an answer, in its order; :class:`BadResponse` when it isn't sound."""
    try:
        length = int(response.headers.get(HEADER_LENGTH.lower(), len(response.body)))
        result = InferenceServerClient.parse_response_body(response.body, header_length=length)
        shapes = {output["name"]: tuple(output["shape"]) for output in result.get_response()["outputs"]}
        arrays = {name: result.as_numpy(name).copy() for name in shapes}
    except Exception as error:  # tritonclient checks nothing: a broken answer raises whatever it breaks
        raise BadResponse(f"the server's answer can't be read: {error!r}") from None
    wrong = next((name for name, array in arrays.items() if array.shape != shapes[name]), None)
    if wrong is not None:
        raise BadResponse(f"the server's answer has the impossible shape {list(shapes[wrong])} for {wrong!r}")
    return arrays
