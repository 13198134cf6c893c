"""The sockets below channels: opened, agreed on TLS, sent and received from, closed."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from client.load.channel import BUFFER_BYTES, Channel
from client.load.http1 import Heads, Http1Channel
from client.load.records import Setup

if TYPE_CHECKING:
    import ssl

_CONNECT_S: Final = 5.0


class Connections:
    """All channels of a worker whose sockets are open, by file descriptor; ``epoll`` tells of them."""

    def __init__(self, setup: Setup, epoll: select.epoll) -> None:
        self._setup = setup
        self._epoll = epoll
        self._make = _maker(setup)
        self._context: ssl.SSLContext | None = None
        self._would_block: tuple[type[OSError], ...] = (BlockingIOError,)
        if setup.tls is not None:
            import ssl

            self._context = setup.tls.context(*(["h2"] if setup.grpc else []))
            self._would_block = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._requests = [memoryview(request) for request in setup.requests]
        self._turns = itertools.cycle(range(len(setup.requests)))
        slots = setup.slots
        self._new_slots = itertools.count(slots.first, slots.stride) if slots else itertools.repeat(0)
        self._spare_slots: list[int] = []
        self._read_slot = slots.reader() if slots else None
        self.by_fd: dict[int, Channel] = {}

    @property
    def buffer(self) -> bytearray:
        """Where :meth:`receive` puts what it received."""
        return self._buffer

    def new(self) -> Channel:
        """A channel without a socket."""
        channel = self._make()
        channel.slot = self._spare_slots.pop() if self._spare_slots else next(self._new_slots)
        return channel

    def discard(self, channel: Channel) -> None:
        """Close a channel for good."""
        self.close(channel)
        self._spare_slots.append(channel.slot)

    def next_request(self, channel: Channel) -> memoryview:
        """The next request in turn, with its outputs in the channel's own slot."""
        turn = next(self._turns)
        slots = self._setup.slots
        if slots is None:
            return self._requests[turn]
        if turn not in channel.own:
            template, own = (slots.region(slots.name, slot).encode() for slot in (0, channel.slot))
            channel.own[turn] = memoryview(self._setup.requests[turn].replace(template, own))
        return channel.own[turn]

    def outputs(self, channel: Channel) -> bytes | None:
        """What is in the channel's slot."""
        return self._read_slot(channel.slot) if self._read_slot else None

    def connect(self, channel: Channel, *, blocking: bool) -> None:
        """Open a socket; without ``blocking`` it is used as soon as it can be.  OSError if there is no server."""
        connection = socket.socket(self._setup.family, socket.SOCK_STREAM)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(_CONNECT_S if blocking else 0)
            with contextlib.suppress(BlockingIOError):
                connection.connect(self._setup.address)
            if blocking and self._context is not None:
                connection = self._context.wrap_socket(connection, server_hostname=self._setup.host)
            connection.setblocking(False)
        except BaseException:
            connection.close()
            raise
        channel.socket, channel.open = connection, True
        channel.connected, channel.writing = blocking, not blocking
        channel.shaking = self._context is not None and not blocking
        channel.fd = connection.fileno()
        self.by_fd[channel.fd] = channel
        self._epoll.register(connection, select.EPOLLIN | (0 if blocking else select.EPOLLOUT))
        channel.opened()

    def close(self, channel: Channel) -> None:
        """Close the socket; nothing that was to be sent is sent later."""
        if channel.open:
            del self.by_fd[channel.fd]
            channel.socket.close()
        channel.open, channel.out = False, None

    def send(self, channel: Channel) -> None:
        """Send as much of ``out`` as the socket takes; epoll tells when it takes more.  OSError when it broke."""
        if channel.out is None or (channel.shaking and not self._shake(channel)):
            return
        try:
            count = channel.socket.send(channel.out)
        except self._would_block:
            count = 0
        channel.connected = True
        left = count < len(channel.out)
        channel.out = channel.out[count:] if left else None
        if left is not channel.writing:
            self._listen(channel, writing=left)

    def receive(self, channel: Channel) -> int:
        """Bytes in the buffer, those included that came before; 0 at the end, -1 if there is nothing yet."""
        rest = channel.rest
        try:
            if not rest:
                return channel.socket.recv_into(self._buffer)
            self._view[: len(rest)] = rest
            count = channel.socket.recv_into(self._view[len(rest) :])
        except self._would_block:
            return -1
        channel.rest = b""
        return count and count + len(rest)

    def _shake(self, channel: Channel) -> bool:
        """Go on with the TLS handshake; whether it is done."""
        import ssl

        if self._context is None:
            return True
        connection = channel.socket
        if not isinstance(connection, ssl.SSLSocket):
            # If the server has refused the connection, this raises that error and has closed the socket.
            connection = channel.socket = self._context.wrap_socket(
                connection, server_hostname=self._setup.host, do_handshake_on_connect=False
            )
        try:
            connection.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as wish:
            self._listen(channel, writing=isinstance(wish, ssl.SSLWantWriteError))
            return False
        channel.shaking = False
        return True

    def _listen(self, channel: Channel, *, writing: bool) -> None:
        channel.writing = writing
        self._epoll.modify(channel.socket, select.EPOLLIN | (select.EPOLLOUT if writing else 0))


def _maker(setup: Setup) -> Callable[[], Channel]:
    if not setup.grpc:
        heads: Heads = {}
        return lambda: Http1Channel(heads)
    from client.load.http2 import Fields, GrpcChannel

    fields = Fields("http" if setup.tls is None else "https", setup.authority)
    return lambda: GrpcChannel(fields)
