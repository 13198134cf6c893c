"""From tensors to what worker processes are given: bytes, and where to send them."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from client.client import Client
from client.errors import BadResponse, ConnectionFailed, UsageError
from client.load.bodies import Bodies, Inputs
from client.load.delivery import Compression, Delivery, Protocol, SharedMemory
from client.load.grpc_messages import grpc_request, require_grpc
from client.load.http2 import (
    FRAME_BYTES,
    MAX_CONCURRENT_STREAMS,
    MOST,
    PREFACE,
    SETTINGS,
    read_settings,
    settings,
)
from client.load.records import Setup
from client.load.shared_memory import Place, Regions, share
from client.load.workers import resolve
from client.metadata import ModelMetadata
from client.protocol import Request, Tensor, http_head, inference_request, model_path
from client.tls import Tls
from client.transport import HttpTransport, Url

GRPC_PORT: Final = 8001


@dataclass(frozen=True)
class Prepared:
    """Requests as bytes, what workers need to send them, and where outputs are that come in shared memory."""

    bodies: Bodies
    setup: Setup
    places: Mapping[str, Place] = field(default_factory=dict)


def open_client(url: str | None, delivery: Delivery, timeout: float = 30.0) -> Client:
    """A client for everything besides inferences, which trusts whom the inferences' connections do."""
    where = Url.from_environment() if url is None else Url.parse(url)
    # Reading the system's certificates takes a while: not without need.
    secure = where.scheme == "https" or delivery.tls.ca_file is not None
    try:
        context = delivery.tls.context() if secure else None
    except OSError as error:
        raise UsageError(
            f"--cacert {delivery.tls.ca_file}: {error.strerror or error}", "--cacert takes certificates in a PEM file"
        ) from None
    return Client(str(where), timeout=timeout, transport=HttpTransport(where, timeout, context))


@contextlib.contextmanager
def prepare(
    client: Client, model: ModelMetadata, inputs: Inputs, delivery: Delivery, timeout_s: float, in_flight: int
) -> Iterator[Prepared]:
    """Build the requests; shared memory, if any, for at most ``in_flight`` at a time, lasts as long as the block."""
    url = target(client.address, delivery)
    family, address = _resolve(url, delivery)
    grpc = delivery.protocol is Protocol.GRPC
    said = _server_settings(url, delivery.tls, family, address) if grpc else {}
    setup = Setup(
        family=family,
        address=address,
        requests=(),
        timeout_ns=round(timeout_s * 1e9),
        grpc=grpc,
        streams=said.get(MAX_CONCURRENT_STREAMS, MOST),
        authority=url.netloc,
        host=url.host,
        tls=delivery.tls if url.scheme == "https" else None,
    )
    with contextlib.ExitStack() as held:
        regions: Regions | None = None
        if delivery.shared_memory is not SharedMemory.NONE:
            regions = held.enter_context(share(client, model, inputs.requests, in_flight, delivery.shared_memory))
        requests = tuple(_encode(model, inputs, url, delivery, regions))
        bodies = Bodies(requests, inputs.batch, inputs.source, inputs.sha256)
        setup = replace(setup, requests=requests, slots=regions.slots if regions else None)
        yield Prepared(bodies, setup, regions.outputs if regions else {})


def target(url: Url, delivery: Delivery) -> Url:
    """Where inferences go when everything else goes to ``url``."""
    if delivery.protocol is Protocol.HTTP:
        return url
    text = delivery.grpc_url
    if text is None:
        return Url(url.scheme, url.host, GRPC_PORT)
    whole = text if text.rpartition(":")[2].isdecimal() else f"{text}:{GRPC_PORT}"
    given = Url.parse(whole, f"--grpc-url {url.host}:{GRPC_PORT}")
    if given.prefix:
        raise UsageError(f"--grpc-url {text}: gRPC has no path", f"--grpc-url {given.netloc}")
    return given


def _resolve(url: Url, delivery: Delivery) -> tuple[int, tuple[object, ...]]:
    if delivery.protocol is Protocol.HTTP:
        return resolve(url)
    require_grpc()
    try:
        family, address = resolve(url)
    except ConnectionFailed as error:
        message = error.message.replace(str(url), url.netloc)  # a gRPC address has no scheme
        raise ConnectionFailed(message, "--grpc-url HOST:PORT says where the server speaks gRPC") from error
    return family, address


def _server_settings(url: Url, tls: Tls, family: int, address: tuple[object, ...]) -> dict[int, int]:
    """What a gRPC server says first; nothing if it is silent.  BadResponse, or ConnectionFailed, if it is none."""
    try:
        payload = _first_settings(url, tls, family, address)
    except TimeoutError:
        return {}
    except ssl.SSLCertVerificationError as error:
        raise ConnectionFailed(
            f"no secure connection to {url.netloc}: {error.verify_message}", "--cacert FILE.pem, or --insecure"
        ) from None
    except OSError:
        payload = None
    if payload is None:
        raise BadResponse(
            f"{url.netloc} does not speak gRPC{' with TLS' if url.scheme == 'https' else ''}",
            "--grpc-url HOST:PORT: Triton's gRPC port is 8001 by default, not 8000 (HTTP) or 8002 (metrics)",
        )
    return read_settings(payload)


def _first_settings(url: Url, tls: Tls, family: int, address: tuple[object, ...]) -> bytes | None:
    """The payload of the SETTINGS frame that HTTP/2 begins with (RFC 9113, section 3.4); None of anything else."""
    with socket.socket(family, socket.SOCK_STREAM) as plain:
        plain.settimeout(5)
        plain.connect(address)
        secure = url.scheme == "https"
        probe = tls.context("h2").wrap_socket(plain, server_hostname=url.host) if secure else plain
        with probe, probe.makefile("rb") as stream:
            probe.sendall(PREFACE + settings({}))
            head = stream.read(FRAME_BYTES)
            if len(head) < FRAME_BYTES or head[3] != SETTINGS:
                return None
            return stream.read(int.from_bytes(head[:3], "big"))


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
