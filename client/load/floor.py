"""The generator against a server that does nothing: what it measures when there is nothing to measure.

The server is a process of its own that reads each request to its end and sends the same bytes back every time.
It is written like the generator, so the floor is that of both together: an upper limit of what the
generator adds to a latency, a lower limit of the throughput that it can make.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from client.errors import ClientError
from client.load.records import Setup
from client.load.schedule import Load, Window
from client.load.workers import Workers, child_environment

FLOOR_S: Final = 0.5

_BUFFER_BYTES: Final = 1 << 20
_LENGTH: Final = b"\r\nContent-Length: "


@dataclass(frozen=True)
class Floor:
    """The generator's own latency with one request in flight, and its throughput with ``concurrency``."""

    p50_ms: float
    p99_ms: float
    throughput: float
    concurrency: int


def measure_floor(requests: Sequence[bytes], answer: bytes, concurrency: int, workers: int) -> Floor:
    """Send ``requests`` for half a second at concurrency 1, then at ``concurrency``, to a server that does nothing."""
    window = Window(FLOOR_S)
    with serve_floor(answer) as port:
        setup = Setup(socket.AF_INET, ("127.0.0.1", port), tuple(requests), 5_000_000_000)
        with Workers(setup, workers) as pool:
            single = pool.run(Load(concurrency=1).phases(workers, window, 0))
            full = pool.run(Load(concurrency=concurrency).phases(workers, window, 0))
    if not len(single.store) or not len(full.store):
        raise ClientError("the generator's floor could not be measured", "--no-floor does without")
    p50, p99 = np.quantile(single.store.service, (0.5, 0.99)) / 1e6
    return Floor(float(p50), float(p99), len(full.store) / FLOOR_S, concurrency)


@contextlib.contextmanager
def serve_floor(answer: bytes) -> Iterator[int]:
    """The port of a server that does nothing but answer, for as long as the block lasts."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "client.load.floor", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
        )
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


class _Server:
    """Answers every complete request with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = memoryview(answer)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._missing: dict[int, int] = {}
        self._buffer = bytearray(_BUFFER_BYTES)
        self._lengths: dict[bytes, int] = {}

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def serve_forever(self, control: Connection) -> None:
        self._epoll.register(control.fileno(), select.EPOLLIN)
        while True:
            for fd, _ in self._epoll.poll():
                if fd == control.fileno():
                    return
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._serve(fd)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[connection.fileno()] = connection
            self._missing[connection.fileno()] = 0
            self._epoll.register(connection, select.EPOLLIN)

    def _serve(self, fd: int) -> None:
        connection = self._sockets[fd]
        try:
            count = connection.recv_into(self._buffer)
            if count:
                self._missing[fd] = (self._missing[fd] or self._length(count)) - count
                if self._missing[fd] == 0:
                    connection.sendall(self._answer)
                return
        except OSError:
            pass
        connection.close()
        del self._sockets[fd], self._missing[fd]

    def _length(self, count: int) -> int:
        """Bytes of the request that begins in the buffer; its head always comes whole."""
        end = self._buffer.find(b"\r\n\r\n", 0, count) + 4
        start = self._buffer.find(_LENGTH, 0, end) + len(_LENGTH)
        return end + int(self._buffer[start : self._buffer.find(b"\r\n", start)])


def main(fd: int) -> None:
    """Be the server: the parent sends the answer on the socket ``fd``, is told the port, and ends this by leaving."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(fd) as control:
        server = _Server(control.recv_bytes())
        control.send(server.port)
        server.serve_forever(control)


if __name__ == "__main__":
    main(int(sys.argv[1]))
