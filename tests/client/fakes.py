"""Fakes for what a real tritonserver can't be made to do: stall, break off, and answer nonsense."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from client.protocol import Request, Response


@dataclass
class FakeServer:
    """A TCP server that reads one HTTP request after another and lets ``behave`` do what it likes with each.

    ``requests`` are the raw requests, ``connections`` how often a client has connected.
    """

    behave: Callable[[socket.socket, bytes], None]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""


@contextlib.contextmanager
def fake_server(behave: Callable[[socket.socket, bytes], None]) -> Iterator[FakeServer]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = FakeServer(behave, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    thread = threading.Thread(target=_accept, args=(listener, server), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _accept(listener: socket.socket, server: FakeServer) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            server.connections += 1
            with connection:
                connection.settimeout(5)
                _serve(connection, server)


def _serve(connection: socket.socket, server: FakeServer) -> None:
    with contextlib.suppress(OSError, EOFError):
        while connection.fileno() >= 0:
            request = _read_request(connection)
            server.requests.append(request)
            server.behave(connection, request)


def _read_request(connection: socket.socket) -> bytes:
    data = bytearray()  # which grows in place, where bytes are copied with every part
    while b"\r\n\r\n" not in data:
        data += _receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += _receive(connection)
    return bytes(head + b"\r\n\r\n" + body)


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise EOFError
    return data


def stay_silent(connection: socket.socket, _: bytes) -> None:
    """Say nothing until the client leaves."""
    connection.recv(1)


def http_answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def reset(connection: socket.socket) -> None:
    """Close with a TCP reset instead of an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass
class FakeTransport:
    """An in-memory server: answers by path, with a JSON value, a whole :class:`Response`, or an error."""

    answers: dict[str, Any]
    requests: list[Request] = field(default_factory=list)
    closed: bool = False

    def send(self, request: Request) -> Response:
        self.requests.append(request)
        found = self.answers.get(request.path)
        if found is None:
            return Response(404, {}, b'{"error": "Request for unknown model: is not found"}')
        if isinstance(found, Exception):
            raise found
        if isinstance(found, Response):
            return found
        return Response(200, {}, json.dumps(found).encode())

    def close(self) -> None:
        self.closed = True
