"""Where requests go: the server's address, and what must be known of it before the first is sent."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Final

from client.client import Client
from client.errors import BadResponse, ConnectionFailed, UsageError
from client.load.delivery import Delivery, Protocol
from client.load.grpc_messages import require_grpc
from client.load.http2 import (
    FRAME_BYTES,
    MAX_CONCURRENT_STREAMS,
    MOST,
    PREFACE,
    SETTINGS,
    read_settings,
    settings,
)
from client.tls import Tls
from client.transport import HttpTransport, Url

GRPC_PORT: Final = 8001
"""Triton's own default."""

_PROBE_S: Final = 5.0
_LEAST_S, _MOST_S = 5.0, 30.0


@dataclass(frozen=True)
class Target:
    """A server that accepts connections; ``streams`` is the most gRPC calls that it takes on one at a time."""

    url: Url
    family: int
    address: tuple[object, ...]
    streams: int = MOST


def open_client(url: str | None, delivery: Delivery, timeout_s: float) -> Client:
    """A client for everything besides inferences, which trusts whom the inferences' connections do.

    It waits as long as they do, within reason: ``timeout_s`` may be a service level of milliseconds, or hours.
    """
    timeout = min(max(timeout_s, _LEAST_S), _MOST_S)
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


def inference_url(url: Url, delivery: Delivery) -> Url:
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


def find_target(url: Url, delivery: Delivery) -> Target:
    """Find where inferences go; ClientError if nobody is there who speaks what they are to be sent in."""
    url = inference_url(url, delivery)
    if delivery.protocol is Protocol.HTTP:
        return Target(url, *resolve(url))
    require_grpc()
    try:
        family, address = resolve(url)
    except ConnectionFailed as error:
        message = error.message.replace(str(url), url.netloc)  # a gRPC address has no scheme
        raise ConnectionFailed(message, "--grpc-url HOST:PORT says where the server speaks gRPC") from error
    said = _server_settings(url, delivery.tls, family, address)
    return Target(url, family, address, said.get(MAX_CONCURRENT_STREAMS, MOST))


def resolve(url: Url) -> tuple[int, tuple[object, ...]]:
    """Address family and address of a server, the first of its name's that accepts a connection."""
    problem: OSError | None = None
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionFailed(f"{url.host} is not a known host", "say where the server is with --url") from error
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.settimeout(_PROBE_S)
            try:
                probe.connect(address)
            except OSError as error:
                problem = error
                continue
            return family, address
    reason = f": {problem.strerror or problem}" if problem else ""
    raise ConnectionFailed(f"no server answers at {url}{reason}", "say where it is with --url") from problem


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
        plain.settimeout(_PROBE_S)
        plain.connect(address)
        secure = url.scheme == "https"
        probe = tls.context("h2").wrap_socket(plain, server_hostname=url.host) if secure else plain
        with probe, probe.makefile("rb") as stream:
            probe.sendall(PREFACE + settings({}))
            head = stream.read(FRAME_BYTES)
            if len(head) < FRAME_BYTES or head[3] != SETTINGS:
                return None
            return stream.read(int.from_bytes(head[:3], "big"))
