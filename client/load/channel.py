"""A connection as the engine sees it; what the bytes on it mean is for :mod:`http1` and :mod:`http2` to say."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from client.load.records import Outcome
from client.text import shortened

BUFFER_BYTES: Final = 256 * 1024
LONGEST_REFUSAL: Final = 1000
"""Characters that are told of one: ONNX Runtime names the node before it comes to the cause."""


def on_one_line(refusal: str) -> str:
    """What a server said when it refused a request."""
    return shortened(" ".join(refusal.split()), LONGEST_REFUSAL)


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    ``header_length`` is that of the JSON part, -1 if there is none; ``encoding`` its Content-Encoding.
    """

    outcome: Outcome
    message: str = ""
    header_length: int = -1
    encoding: str = ""


class Call:
    """A place for requests, one after the other; one of them is in flight while ``sent`` is not 0."""

    __slots__ = ("channel", "due", "first", "keep", "kept", "own", "sent", "slot", "waited")

    def __init__(self, slot: int) -> None:
        self.channel: Channel | None = None  # that its requests go over
        self.keep = False  # somebody will look at the answer
        self.kept: bytearray | None = None  # of its body
        self.due = self.sent = self.first = self.waited = 0
        self.slot = slot  # where in shared memory its outputs go
        self.own: dict[int, memoryview] = {}  # the requests that name this slot


class Channel(ABC):
    """A connection to the server, from when it is opened until it is closed, and the calls that go over it."""

    __slots__ = ("calls", "connected", "fd", "out", "rest", "shaking", "socket", "spoiled", "writing")

    socket: socket.socket

    def __init__(self) -> None:
        self.fd = -1  # of the socket
        self.connected = False  # the server has accepted it
        self.shaking = False  # TLS is still to be agreed on
        self.writing = False  # epoll tells when it can take more
        self.spoiled = False  # no other request can go over it
        self.out: memoryview | None = None  # what is still to be sent
        self.rest = b""  # what was received and can't be understood before more of it comes
        self.calls: list[Call] = []

    @abstractmethod
    def begin(self, call: Call, request: memoryview) -> None:
        """Put a request into ``out``."""

    @abstractmethod
    def take(self, buffer: bytearray, count: int, now: int) -> Sequence[tuple[Call, Answer]]:
        """Understand ``count`` bytes that were received by ``now``: the answers that are complete.

        ValueError if these can't be answers, or nothing was asked.  ``out`` may have something to be sent after it.
        """

    def drop(self, call: Call) -> None:
        """Forget a call, answered or not."""
        self.calls.remove(call)

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Append to ``out``."""
        self.out = memoryview(b"".join((self.out or b"", *parts)))
