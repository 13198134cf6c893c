"""The generator against a server that does nothing: what it measures when there is nothing to measure.

The server (:mod:`client.load.floor_server`) is written like the generator, so the floor is that of both together: an
upper limit of what the generator adds to a latency, a lower limit of the throughput that it can make.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from client.errors import ClientError
from client.load.descriptions import MESSAGE_PREFIX
from client.load.records import Sample, Setup
from client.load.schedule import Load, Window
from client.load.workers import Workers, start_child
from client.protocol import HEADER_LENGTH

FLOOR_S: Final = 0.5

_TIMEOUT_NS: Final = 5_000_000_000


@dataclass(frozen=True)
class Floor:
    """The generator's own latency with one request in flight, and its throughput with ``concurrency``."""

    p50_ms: float
    p99_ms: float
    throughput: float
    concurrency: int


def measure_floor(setup: Setup, sample: Sample, concurrency: int, workers: int) -> Floor:
    """Send for half a second at concurrency 1, then at ``concurrency``, to a server that only answers ``sample``."""
    window = Window(FLOOR_S)
    with serve_floor(_grpc_answer(sample) if setup.grpc else _http_answer(sample), grpc=setup.grpc) as port:
        setup = replace(setup, family=socket.AF_INET, address=("127.0.0.1", port), timeout_ns=_TIMEOUT_NS)
        with Workers(setup, workers) as pool:
            single = pool.run(Load(concurrency=1).phases(workers, window, 0))
            full = pool.run(Load(concurrency=concurrency).phases(workers, window, 0))
    if any(phase.messages or not len(phase.store) for phase in (single, full)):
        raise ClientError("the generator's floor could not be measured", "--no-floor does without")
    p50, p99 = np.quantile(single.store.service, (0.5, 0.99)) / 1e6
    return Floor(float(p50), float(p99), len(full.store) / FLOOR_S, concurrency)


def _http_answer(sample: Sample) -> bytes:
    fields = [b"HTTP/1.1 200 OK", b"Content-Type: application/octet-stream"]
    if sample.header_length >= 0:
        fields.append(f"{HEADER_LENGTH}: {sample.header_length}".encode())
    if sample.encoding:
        fields.append(f"Content-Encoding: {sample.encoding}".encode())
    return b"\r\n".join([*fields, b"Content-Length: %d" % len(sample.body), b"", b""]) + sample.body


def _grpc_answer(sample: Sample) -> bytes:
    return MESSAGE_PREFIX.pack(0, len(sample.body)) + sample.body


@contextlib.contextmanager
def serve_floor(answer: bytes, *, grpc: bool = False) -> Iterator[int]:
    """The port of a server that does nothing but answer, for as long as the block lasts.

    ``answer`` is whole for HTTP/1.1; for gRPC it is the message behind its prefix.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = start_child("client.load.floor_server", theirs.fileno(), *(["grpc"] if grpc else []))
    try:
        with Connection(ours.detach()) as control:
            control.send_bytes(answer)
            try:
                port = control.recv()
            except (EOFError, OSError):
                raise ClientError("the server for the generator's floor didn't start", "--no-floor") from None
            yield int(port)
    finally:
        process.kill()
        process.wait()
