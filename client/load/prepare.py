"""From tensors to what worker processes are given: requests as bytes, and where to send them."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from client.client import Client
from client.load.bodies import Bodies, Inputs
from client.load.delivery import Compression, Delivery, Protocol, SharedMemory
from client.load.grpc_messages import grpc_request
from client.load.records import Setup
from client.load.shared_memory import Place, Regions, share
from client.load.target import find_target
from client.metadata import ModelMetadata
from client.protocol import Request, Tensor, http_head, inference_request, model_path
from client.transport import Url


@dataclass(frozen=True)
class Prepared:
    """Requests as bytes, what workers need to send them, and where outputs are that come in shared memory."""

    bodies: Bodies
    setup: Setup
    places: Mapping[str, Place] = field(default_factory=dict)


@contextlib.contextmanager
def prepare(
    client: Client, model: ModelMetadata, inputs: Inputs, delivery: Delivery, timeout_s: float, in_flight: int
) -> Iterator[Prepared]:
    """Build the requests; shared memory, if any, for at most ``in_flight`` at a time, lasts as long as the block."""
    there = find_target(client.address, delivery)
    with contextlib.ExitStack() as held:
        regions: Regions | None = None
        if delivery.shared_memory is not SharedMemory.NONE:
            regions = held.enter_context(share(client, model, inputs.requests, in_flight, delivery.shared_memory))
        requests = tuple(_encode(model, inputs, there.url, delivery, regions))
        setup = Setup(
            family=there.family,
            address=there.address,
            requests=requests,
            timeout_ns=round(timeout_s * 1e9),
            grpc=delivery.protocol is Protocol.GRPC,
            streams=there.streams,
            authority=there.url.netloc,
            host=there.url.host,
            tls=delivery.tls if there.url.scheme == "https" else None,
            slots=regions.slots if regions else None,
        )
        bodies = Bodies(requests, inputs.batch, inputs.source, inputs.sha256)
        yield Prepared(bodies, setup, regions.outputs if regions else {})


def _encode(
    model: ModelMetadata, inputs: Inputs, url: Url, delivery: Delivery, regions: Regions | None
) -> Iterator[bytes]:
    for number, tensors in enumerate(inputs.requests):
        placed = regions.inputs[number] if regions else None
        outputs = regions.outputs if regions else {}
        if delivery.protocol is Protocol.GRPC:
            yield grpc_request(model.name, model.version, tensors, placed, outputs)
            continue
        if placed is None:
            request = compressed(inference_request(model.name, model.version, tensors), delivery.compression)
        else:
            request = shared_request(model, tensors, placed, outputs)
        yield http_head(request, url.netloc, url.prefix) + request.body


def compressed(request: Request, compression: Compression) -> Request:
    """The request with a compressed body that asks for a compressed answer."""
    if compression is Compression.NONE:
        return request
    # "deflate" is zlib's format: RFC 9110, section 8.4.1.2.  No time of day in it: the same input, the same bytes.
    pack = gzip.compress(request.body, mtime=0) if compression is Compression.GZIP else zlib.compress(request.body)
    coding = {"Content-Encoding": compression.value, "Accept-Encoding": compression.value}
    return replace(request, body=pack, headers={**request.headers, **coding})


def shared_request(
    model: ModelMetadata, tensors: Sequence[Tensor], inputs: Mapping[str, Place], outputs: Mapping[str, Place]
) -> Request:
    """The HTTP request whose tensors are in shared memory: its body is JSON alone."""
    sent = [InferInput(tensor.name, list(tensor.array.shape), tensor.datatype) for tensor in tensors]
    for entry in sent:
        place = inputs[entry.name()]
        entry.set_shared_memory(place.region, place.size, place.offset)
    wanted = [InferRequestedOutput(name) for name in outputs]
    for entry in wanted:
        place = outputs[entry.name()]
        entry.set_shared_memory(place.region, place.size, place.offset)
    body, _ = InferenceServerClient.generate_request_body(sent, outputs=wanted)
    return Request("POST", f"{model_path(model.name, model.version)}/infer", body, {"Content-Type": "application/json"})
