"""Where an HTTP/1.1 answer ends: as much of the protocol as a load generator has to understand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CHUNKED: Final = -1

LONGEST_DESCRIPTION: Final = 1024
"""Bytes of JSON that is read in every answer where tensors' values may be in it: more takes the time of requests."""

_INFERENCE_HEADER: Final = b"inference-header-content-length"


@dataclass(frozen=True)
class Head:
    """The head of an answer: bytes of the body (:data:`CHUNKED` if it comes in chunks) and of its JSON part.

    ``encoding`` is what the body is compressed with, if it is.
    """

    status: int
    length: int
    header_length: int
    close: bool
    encoding: str = ""

    def description_of(self, length: int) -> int:
        """How many of a body's ``length`` bytes describe its tensors; 0 if they are not to be read in every answer."""
        if self.encoding or (self.header_length < 0 and length > LONGEST_DESCRIPTION):
            return 0
        return length if self.header_length < 0 else self.header_length


def parse_head(data: bytes) -> Head:
    """Read a head up to its empty line; ValueError if this is no HTTP/1.1 answer whose end can be known."""
    first, *lines = data.lower().split(b"\r\n")
    version, _, rest = first.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"http/1.") or not status.isdigit():
        raise ValueError("the answer is not HTTP/1.1")
    fields = {name: value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if fields.get(b"transfer-encoding") == b"chunked":
        length = CHUNKED
    elif status == b"204":
        length = 0
    elif b"content-length" in fields:
        length = int(fields[b"content-length"])
    else:
        raise ValueError("the answer doesn't say how long it is")
    return Head(
        status=int(status),
        length=length,
        header_length=int(fields.get(_INFERENCE_HEADER, -1)),
        close=fields.get(b"connection") == b"close" or version == b"http/1.0",
        encoding=fields.get(b"content-encoding", b"").decode("latin-1"),
    )


def join_chunks(data: bytes | bytearray) -> bytes | None:
    """The body in ``data``, chunks as they came over the wire; None while there is more to come."""
    parts: list[bytes | bytearray] = []
    at = 0
    while (line_end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line_end].partition(b";")[0], 16)
        start = line_end + 2
        if size == 0:
            # After the last chunk come trailers, which nobody uses, and an empty line.
            return b"".join(parts) if data.find(b"\r\n\r\n", line_end) >= 0 else None
        parts.append(data[start : start + size])
        at = start + size + 2
    return None
