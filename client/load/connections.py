"""The sockets below channels: opened, agreed on TLS, sent and received from, closed."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from client.load.channel import BUFFER_BYTES, Call, Channel
from client.load.http1 import Heads, Http1Channel
from client.load.records import Setup

if TYPE_CHECKING:
    import ssl

_CONNECT_S: Final = 5.0

_SHARING: Final = 6
"""gRPC calls on a connection: as many as share one in Triton's own client (TRITON_CLIENT_GRPC_CHANNEL_MAX_SHARE_COUNT).

A connection for each takes tritonserver half more CPU a request at 16 or more in flight, where a read or write can
serve several.
"""

_SHARED_BYTES: Final = 16_384
"""Requests that are larger have a connection each, as none should wait for the others' bytes."""


class Connections:
    """All channels of a worker whose sockets are open, by file descriptor; ``epoll`` tells of them."""

    def __init__(self, setup: Setup, epoll: select.epoll) -> None:
        self._setup = setup
        self._epoll = epoll
        self._make = _maker(setup)
        sharing = setup.grpc and max(map(len, setup.requests)) <= _SHARED_BYTES
        self._room = max(1, min(_SHARING, setup.streams)) if sharing else 1
        self._with_room: list[Channel] = []  # and perhaps some without, which are found out when they are needed
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

    def new(self) -> Call:
        """A call without a connection."""
        return Call(self._spare_slots.pop() if self._spare_slots else next(self._new_slots))

    def discard(self, call: Call) -> None:
        """Forget a call for good."""
        self.detach(call)
        self._spare_slots.append(call.slot)

    def next_request(self, call: Call) -> memoryview:
        """The next request in turn, with its outputs in the call's own slot."""
        turn = next(self._turns)
        slots = self._setup.slots
        if slots is None:
            return self._requests[turn]
        if turn not in call.own:
            template, own = (slots.region(slots.name, slot).encode() for slot in (0, call.slot))
            call.own[turn] = memoryview(self._setup.requests[turn].replace(template, own))
        return call.own[turn]

    def outputs(self, call: Call) -> bytes | None:
        """What is in the call's slot, if it has one; OSError when that can't be read."""
        return self._read_slot(call.slot) if self._read_slot else None

    def attach(self, call: Call, *, blocking: bool) -> Channel:
        """Give a call a connection, one that has room or a new one.  OSError if there is no server.

        Without ``blocking``, what is put into ``out`` is sent as soon as it can be.
        """
        self.detach(call)
        while self._with_room and not self._has_room(self._with_room[-1]):
            self._with_room.pop()
        call.channel = channel = self._with_room[-1] if self._with_room else self._connect(blocking=blocking)
        channel.calls.append(call)
        return channel

    def detach(self, call: Call) -> None:
        """Take a call from its connection, which is closed after the last."""
        channel, call.channel = call.channel, None
        if channel is not None:
            channel.drop(call)
            if not channel.calls:
                self.close(channel)
            elif not channel.spoiled:
                self._with_room.append(channel)

    def close(self, channel: Channel) -> None:
        """Close a connection; nothing that was to be sent is sent later, and its calls are without one."""
        del self.by_fd[channel.fd]
        channel.socket.close()
        for call in channel.calls:
            call.channel = None
        channel.calls.clear()
        channel.spoiled, channel.out = True, None

    def _has_room(self, channel: Channel) -> bool:
        return len(channel.calls) < self._room and not channel.spoiled

    def _connect(self, *, blocking: bool) -> Channel:
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
        channel = self._make()
        channel.socket, channel.fd = connection, connection.fileno()
        channel.connected, channel.writing = blocking, not blocking
        channel.shaking = self._context is not None and not blocking
        self.by_fd[channel.fd] = channel
        self._with_room.append(channel)
        self._epoll.register(connection, select.EPOLLIN | (0 if blocking else select.EPOLLOUT))
        return channel

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
    from client.load.descriptions import SoundMessages
    from client.load.http2 import Fields, GrpcChannel

    fields, sound = Fields("http" if setup.tls is None else "https", setup.authority), SoundMessages()
    return lambda: GrpcChannel(fields, sound)
