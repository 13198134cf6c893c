"""The server that does nothing: it reads each request to its end and sends the same answer back every time.

It is a process of its own, and written like the generator.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from multiprocessing.connection import Connection
from typing import Final

from client.load import http2

_BUFFER_BYTES: Final = 1 << 20
_LENGTH: Final = b"\r\nContent-Length: "


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
            self._epoll.register(connection, select.EPOLLIN)
            self._opened(connection)

    def _serve(self, fd: int) -> None:
        connection = self._sockets[fd]
        try:
            count = connection.recv_into(self._buffer)
            if count:
                self._received(connection, count)
                return
        except OSError:
            pass
        connection.close()
        del self._sockets[fd]

    def _opened(self, connection: socket.socket) -> None:
        self._missing[connection.fileno()] = 0

    def _received(self, connection: socket.socket, count: int) -> None:
        fd = connection.fileno()
        self._missing[fd] = (self._missing[fd] or self._length(count)) - count
        if self._missing[fd] == 0:
            connection.sendall(self._answer)

    def _length(self, count: int) -> int:
        """Bytes of the request that begins in the buffer; its head always comes whole."""
        end = self._buffer.find(b"\r\n\r\n", 0, count) + 4
        start = self._buffer.find(_LENGTH, 0, end) + len(_LENGTH)
        return end + int(self._buffer[start : self._buffer.find(b"\r\n", start)])


class _GrpcServer(_Server):
    """The same over gRPC: the answer is a message behind its prefix."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer)
        self._rest: dict[int, bytearray] = {}
        self._head = http2.encode_fields({":status": "200", "content-type": "application/grpc"})
        self._end = http2.encode_fields({"grpc-status": "0"})

    def _opened(self, connection: socket.socket) -> None:
        self._rest[connection.fileno()] = bytearray()
        most = {http2.INITIAL_WINDOW_SIZE: http2.MOST, http2.MAX_FRAME_SIZE: 2**24 - 1}
        connection.sendall(http2.settings(most) + http2.window_update(0, http2.MOST - http2.DEFAULT_WINDOW))

    def _received(self, connection: socket.socket, count: int) -> None:
        data = self._rest[connection.fileno()]
        data += memoryview(self._buffer)[:count]
        at = len(http2.PREFACE) if data.startswith(http2.PREFACE) else 0
        while len(data) - at >= http2.FRAME_BYTES:
            head, flags, stream = http2.FRAME.unpack_from(data, at)
            size = head >> 8
            if at + http2.FRAME_BYTES + size > len(data):
                break
            at += http2.FRAME_BYTES + size
            if head & 0xFF == http2.DATA:
                end = bool(flags & http2.END_STREAM)
                connection.sendall(http2.window_update(0, size) + (self._answer_of(stream) if end else b""))
        del data[:at]

    def _answer_of(self, stream: int) -> bytes:
        steps = range(0, len(self._answer), http2.DEFAULT_FRAME)
        parts = (bytes(self._answer[at : at + http2.DEFAULT_FRAME]) for at in steps)
        frames = [http2.frame(http2.DATA, 0, stream, part) for part in parts]
        head = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, self._head)
        end = http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, stream, self._end)
        return b"".join([head, *frames, end])


def main(fd: int, *, grpc: bool) -> None:
    """Be the server: the parent sends the answer on the socket ``fd``, is told the port, and ends this by leaving."""
    with Connection(fd) as control, contextlib.suppress(OSError):  # the parent sees that its requests fail
        server = (_GrpcServer if grpc else _Server)(control.recv_bytes())
        control.send(server.port)
        server.serve_forever(control)


if __name__ == "__main__":
    main(int(sys.argv[1]), grpc="grpc" in sys.argv[2:])
