"""gRPC's unary calls over HTTP/2: as much of RFC 9113 as a client needs that has one call at a time on a connection.

A call is a HEADERS frame, which is the same every time, and DATA frames of a message that was built before; its
answer is HEADERS, DATA and HEADERS again with the status.  grpcio itself takes some 200 us of CPU for a call from
Python and makes threads of its own that decide when something is sent.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from client.load.channel import Answer, Channel
from client.load.records import Outcome

if TYPE_CHECKING:
    from hpack import Decoder

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
MESSAGE_PREFIX: Final = Struct(">BI")
"""In front of a message: whether it is compressed, its length."""

DATA, HEADERS, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5

FRAME: Final = Struct(">IBI")
"""A frame's head: 24 bits of length and 8 of type in one number, flags, stream."""

FRAME_BYTES: Final = 9
_SETTING: Final = Struct(">HI")
_NUMBER: Final = Struct(">I")
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME: Final = 16_384
MOST: Final = 2**31 - 1
_REFILL: Final = 2**30
_MOST_FIELDS: Final = 1000

_REFUSED: Final = frozenset({3, 5, 6, 7, 9, 10, 11, 12, 16})
_CODES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_DONE: Final = Answer(Outcome.OK)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def window_update(stream: int, more: int) -> bytes:
    """A WINDOW_UPDATE frame: ``more`` bytes may be sent."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(more))


PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GREETING: Final = (
    PREFACE
    # Without a table, the same header fields are the same bytes on every connection: they are decoded once.
    + settings({HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: MOST})
    + window_update(0, MOST - DEFAULT_WINDOW)
)


def encode_fields(fields: dict[str, str]) -> bytes:
    """Header fields in a form that takes no table: the same bytes anywhere."""
    from hpack import Encoder, NeverIndexedHeaderTuple

    return Encoder().encode([NeverIndexedHeaderTuple(*pair) for pair in fields.items()], huffman=False)


class Fields:
    """Header fields of a gRPC call: encoded once for all requests, decoded once for all equal answers."""

    def __init__(self, scheme: str, authority: str) -> None:
        from hpack import Decoder

        fields = {
            ":method": "POST",
            ":scheme": scheme,
            ":path": METHOD,
            ":authority": authority,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        self.request = encode_fields(fields)
        self._decoder: Decoder = Decoder()
        self._decoder.max_allowed_table_size = self._decoder.header_table_size = 0
        self._known: dict[bytes, dict[str, str]] = {}

    def decode(self, block: bytes) -> dict[str, str]:
        """The fields in a HEADERS frame; ValueError if it can't be decoded."""
        from hpack import HPACKError

        fields = self._known.get(block)
        if fields is None:
            try:
                pairs = self._decoder.decode(block)
            except HPACKError as error:
                raise ValueError(f"header fields that can't be read: {error}") from None
            fields = {str(name): str(value) for name, value in pairs}
            if len(self._known) > _MOST_FIELDS:
                self._known.clear()
            self._known[block] = fields
        return fields


class GrpcChannel(Channel):
    """A connection that carries one gRPC call at a time."""

    __slots__ = (
        "_fields", "_frame", "_going", "_initial", "_left", "_received", "_size", "_status", "_stream",
        "_stream_window", "_window",
    )  # fmt: skip

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self._fields = fields

    def opened(self) -> None:
        self.rest, self.spoiled = b"", False
        self.out = memoryview(GREETING)
        self._stream = -1
        self._window = self._initial = DEFAULT_WINDOW
        self._frame = DEFAULT_FRAME
        self._received = 0  # since the server was last told that it may send more
        self._left = memoryview(b"")
        self._going = False

    def begin(self, request: memoryview) -> None:
        self._stream += 2
        self._stream_window = self._initial
        self._left = request
        self._size = 0
        self._status = "200"
        self.kept = bytearray() if self.keep else None
        block = self._fields.request
        self._fill([FRAME.pack(len(block) << 8 | HEADERS, END_HEADERS, self._stream), block])

    def _fill(self, parts: list[bytes | memoryview]) -> None:
        """Send ``parts``, and of the message as much as the server's windows let through."""
        while self._left and (room := min(self._window, self._stream_window, self._frame)) > 0:
            piece, self._left = self._left[:room], self._left[room:]
            size = len(piece)
            self._window -= size
            self._stream_window -= size
            parts += FRAME.pack(size << 8 | DATA, 0 if self._left else END_STREAM, self._stream), piece
        if parts:
            self.write(parts)

    def take(self, buffer: bytearray, count: int, now: int) -> Answer | None:
        view = memoryview(buffer)
        answer: Answer | None = None
        at = 0
        while count - at >= FRAME_BYTES:
            head, flags, stream = FRAME.unpack_from(buffer, at)
            start, kind = at + FRAME_BYTES, head & 0xFF
            end = start + (head >> 8)
            if head >> 8 > DEFAULT_FRAME:
                raise ValueError("the answer is not HTTP/2")
            if end > count:
                break
            at = end
            if kind in {DATA, HEADERS, RESET}:
                if stream == self._stream and self.sent and answer is None:
                    self.first = self.first or now
                    answer = self._of_call(kind, flags, view[start:end])
            else:
                self._of_connection(kind, flags, stream, view[start:end])
        self.rest = bytes(view[at:count])
        if answer is not None:
            self.spoiled = self._going or bool(self._left) or self._stream >= MOST
        elif self._going and not self.sent:
            raise ValueError("the server ends the connection")
        elif self._left:
            self._fill([])
        return answer

    def _of_call(self, kind: int, flags: int, payload: memoryview) -> Answer | None:
        if kind == RESET:
            code = int.from_bytes(payload, "big")
            return Answer(Outcome.SERVER_ERROR, f"the server reset the call: HTTP/2 error {code}")
        if flags & (PADDED | PRIORITY):
            raise ValueError("padded HTTP/2 frames are not understood")
        if kind == DATA:
            self._message(flags, payload)
            return None
        if not flags & END_HEADERS:
            raise ValueError("header fields of more than one HTTP/2 frame are not understood")
        fields = self._fields.decode(bytes(payload))
        self._status = fields.get(":status", self._status)
        return self._end(fields) if flags & END_STREAM else None

    def _message(self, flags: int, payload: memoryview) -> None:
        if flags & END_STREAM:
            raise ValueError("the answer has no gRPC status")
        size = len(payload)
        self._size += size
        self._received += size
        if self.kept is not None:
            self.kept += payload
        if self._received > _REFILL:
            self.write([window_update(0, self._received)])
            self._received = 0

    def _end(self, fields: dict[str, str]) -> Answer:
        code = fields.get("grpc-status", "")
        if code == "0":
            if self._size < MESSAGE_PREFIX.size:
                raise ValueError("the answer has no message")
            if self.kept is not None:
                del self.kept[: MESSAGE_PREFIX.size]
            return _DONE
        if code.isdecimal():
            number = int(code)
            name = _CODES[number] if number < len(_CODES) else f"status {number}"
            outcome = Outcome.REFUSED if number in _REFUSED else Outcome.SERVER_ERROR
            return Answer(outcome, f"gRPC {name}: {unquote(fields.get('grpc-message', ''))[:500]}")
        if self._status.isdecimal() and self._status != "200":  # a proxy's own answer
            return Answer(Outcome.of_http(int(self._status)), f"HTTP {self._status}")
        raise ValueError("the answer has no gRPC status")

    def _of_connection(self, kind: int, flags: int, stream: int, payload: memoryview) -> None:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload) - 5, _SETTING.size):
                self._set(*_SETTING.unpack_from(payload, at))
            self.write([frame(SETTINGS, ACK, 0)])
        elif kind == PING and not flags & ACK:
            self.write([frame(PING, ACK, 0, bytes(payload))])
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += more
            elif stream == self._stream:
                self._stream_window += more
        elif kind == GOAWAY:
            self._going = True
        elif kind in {PUSH, CONTINUATION}:
            raise ValueError("an HTTP/2 frame that nobody asked for")

    def _set(self, key: int, value: int) -> None:
        if key == INITIAL_WINDOW_SIZE:
            if self._stream > 0:
                self._stream_window += value - self._initial
            self._initial = value
        elif key == MAX_FRAME_SIZE:
            self._frame = value
