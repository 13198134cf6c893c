"""A connection as the engine sees it; what the bytes on it mean is for :mod:`http1` and :mod:`http2` to say."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from client.load.records import Outcome

BUFFER_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    ``header_length`` is that of the JSON part, -1 if there is none; ``encoding`` its Content-Encoding.
    """

    outcome: Outcome
    message: str = ""
    header_length: int = -1
    encoding: str = ""


class Channel(ABC):
    """A connection to the server, and the request that is on it while ``sent`` is not 0."""

    __slots__ = (
        "connected", "due", "fd", "first", "keep", "kept", "open", "out", "own", "rest", "sent", "shaking", "slot",
        "socket", "spoiled", "waited", "writing",
    )  # fmt: skip

    socket: socket.socket

    def __init__(self) -> None:
        self.open = False  # there is a socket
        self.fd = -1  # of it
        self.connected = False  # the server has accepted it
        self.shaking = False  # TLS is still to be agreed on
        self.writing = False  # epoll tells when it can take more
        self.spoiled = False  # no other request can go over it
        self.out: memoryview | None = None  # what is still to be sent
        self.rest = b""  # what was received and can't be understood before more of it comes
        self.keep = False  # somebody will look at the answer
        self.kept: bytearray | None = None  # of its body
        self.due = self.sent = self.first = self.waited = 0
        self.slot = 0  # where in shared memory its outputs go
        self.own: dict[int, memoryview] = {}  # the requests that name this slot

    @abstractmethod
    def opened(self) -> None:
        """There is a new connection: forget the old one's state, put what a server must hear first into ``out``."""

    @abstractmethod
    def begin(self, request: memoryview) -> None:
        """Put a request into ``out``."""

    @abstractmethod
    def take(self, buffer: bytearray, count: int, now: int) -> Answer | None:
        """Understand ``count`` bytes that were received by ``now``: the answer if it is complete.

        ValueError if this can't be an answer, or nothing was asked.  ``out`` may have something to be sent after it.
        """

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Append to ``out``."""
        self.out = memoryview(b"".join((self.out or b"", *parts)))
