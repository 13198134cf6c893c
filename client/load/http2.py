"""gRPC's unary calls over HTTP/2: as much of RFC 9113 as a client needs that has a few calls on a connection.

A call is a HEADERS frame, which is the same every time, and DATA frames of a message that was built before; its
answer is HEADERS, DATA and HEADERS again with the status.  grpcio itself takes some 200 us of CPU for a call from
Python and makes threads of its own that decide when something is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from client.load.channel import Answer, Call, Channel, on_one_line
from client.load.descriptions import MESSAGE_PREFIX, SoundMessages
from client.load.records import Outcome

if TYPE_CHECKING:
    from hpack import Decoder

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
DATA, HEADERS, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5

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
_NO_STATUS: Final = Answer(Outcome.NOT_UNDERSTOOD, "the answer has no gRPC status")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def read_settings(payload: bytes | memoryview) -> dict[int, int]:
    """What a SETTINGS frame says."""
    return dict(_SETTING.unpack_from(payload, at) for at in range(0, len(payload) - 5, _SETTING.size))


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


class _Stream:
    """A gRPC call in flight."""

    __slots__ = ("call", "left", "number", "size", "status", "window")

    def __init__(self, call: Call, number: int, window: int, message: memoryview) -> None:
        self.call = call
        self.number = number
        self.window = window  # bytes that the server takes
        self.left = message  # still to be sent
        self.size = 0  # of the answer
        self.status = "200"


class GrpcChannel(Channel):
    """A connection that carries gRPC calls."""

    __slots__ = (
        "_fields",
        "_frame",
        "_going",
        "_initial",
        "_number",
        "_received",
        "_sound",
        "_streams",
        "_unsent",
        "_window",
    )

    def __init__(self, fields: Fields, sound: SoundMessages) -> None:
        super().__init__()
        self._fields = fields
        self._sound = sound
        self.out = memoryview(GREETING)
        self._number = -1  # of the last stream
        self._streams: dict[int, _Stream] = {}
        self._unsent: list[_Stream] = []  # those that wait for the server to take more
        self._window = self._initial = DEFAULT_WINDOW
        self._frame = DEFAULT_FRAME
        self._received = 0  # since the server was last told that it may send more
        self._going = False

    def begin(self, call: Call, request: memoryview) -> None:
        self._number += 2
        stream = self._streams[self._number] = _Stream(call, self._number, self._initial, request)
        call.kept = bytearray() if call.keep else None
        self.spoiled = self._number >= MOST
        block = self._fields.request
        parts: list[bytes | memoryview] = [FRAME.pack(len(block) << 8 | HEADERS, END_HEADERS, self._number), block]
        self._fill(stream, parts)
        self.write(parts)
        if stream.left:
            self._unsent.append(stream)

    def _fill(self, stream: _Stream, parts: list[bytes | memoryview]) -> None:
        """Add to ``parts`` as much of the message as the server's windows let through."""
        while stream.left and (room := min(self._window, stream.window, self._frame)) > 0:
            piece, stream.left = stream.left[:room], stream.left[room:]
            size = len(piece)
            self._window -= size
            stream.window -= size
            parts += FRAME.pack(size << 8 | DATA, 0 if stream.left else END_STREAM, stream.number), piece

    def drop(self, call: Call) -> None:
        super().drop(call)
        for stream in [stream for stream in self._streams.values() if stream.call is call]:
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.number]
        if stream.left:
            # What is on the way can't be called back, and the server waits for the rest.
            self._unsent.remove(stream)
            self.spoiled = True

    def take(self, buffer: bytearray, count: int, now: int) -> Sequence[tuple[Call, Answer]]:
        view = memoryview(buffer)
        answers: list[tuple[Call, Answer]] = []
        at = 0
        while count - at >= FRAME_BYTES:
            head, flags, number = FRAME.unpack_from(buffer, at)
            start, kind = at + FRAME_BYTES, head & 0xFF
            end = start + (head >> 8)
            if head >> 8 > DEFAULT_FRAME:
                raise ValueError("the answer is not HTTP/2")
            if end > count:
                break
            at = end
            if kind in {DATA, HEADERS, RESET}:
                stream = self._streams.get(number)
                if stream is not None:
                    stream.call.first = stream.call.first or now
                    answer = self._of_call(stream, kind, flags, view[start:end])
                    if answer is not None:
                        self._forget(stream)
                        answers.append((stream.call, answer))
            else:
                self._of_connection(kind, flags, number, view[start:end])
        self.rest = bytes(view[at:count])
        if self._going:
            self.spoiled = True
            if not (answers or self._streams):
                raise ValueError("the server ends the connection")
        if self._unsent:
            self._send_more()
        return answers

    def _send_more(self) -> None:
        parts: list[bytes | memoryview] = []
        for stream in self._unsent:
            self._fill(stream, parts)
        self._unsent = [stream for stream in self._unsent if stream.left]
        if parts:
            self.write(parts)

    def _of_call(self, stream: _Stream, kind: int, flags: int, payload: memoryview) -> Answer | None:
        if kind == RESET:
            code = int.from_bytes(payload, "big")
            return Answer(Outcome.SERVER_ERROR, f"the server reset the call: HTTP/2 error {code}")
        if flags & (PADDED | PRIORITY):
            raise ValueError("padded HTTP/2 frames are not understood")
        if kind == DATA:
            return self._message(stream, flags, payload)
        if not flags & END_HEADERS:
            raise ValueError("header fields of more than one HTTP/2 frame are not understood")
        fields = self._fields.decode(bytes(payload))
        stream.status = fields.get(":status", stream.status)
        return self._end(stream, fields) if flags & END_STREAM else None

    def _message(self, stream: _Stream, flags: int, payload: memoryview) -> Answer | None:
        if flags & END_STREAM:
            return _NO_STATUS
        size = len(payload)
        if not stream.size and stream.call.kept is None and not self._sound.like(payload):
            stream.call.kept = bytearray()
        stream.size += size
        self._received += size
        if stream.call.kept is not None:
            stream.call.kept += payload
        if self._received > _REFILL:
            self.write([window_update(0, self._received)])
            self._received = 0
        return None

    def _of_connection(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if kind == SETTINGS and not flags & ACK:
            for key, value in read_settings(payload).items():
                self._set(key, value)
            self.write([frame(SETTINGS, ACK, 0)])
        elif kind == PING and not flags & ACK:
            self.write([frame(PING, ACK, 0, bytes(payload))])
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if number == 0:
                self._window += more
            elif number in self._streams:
                self._streams[number].window += more
        elif kind == GOAWAY:
            self._going = True
        elif kind in {PUSH, CONTINUATION}:
            raise ValueError("an HTTP/2 frame that nobody asked for")

    def _set(self, key: int, value: int) -> None:
        if key == INITIAL_WINDOW_SIZE:
            for stream in self._streams.values():
                stream.window += value - self._initial
            self._initial = value
        elif key == MAX_FRAME_SIZE:
            self._frame = value

    def _end(self, stream: _Stream, fields: dict[str, str]) -> Answer:
        """What the last header fields of an answer say."""
        code = fields.get("grpc-status", "")
        if code == "0":
            return self._whole(stream)
        if code.isdecimal():
            number = int(code)
            name = _CODES[number] if number < len(_CODES) else f"status {number}"
            outcome = Outcome.REFUSED if number in _REFUSED else Outcome.SERVER_ERROR
            return Answer(outcome, f"gRPC {name}: {on_one_line(unquote(fields.get('grpc-message', '')))}")
        if stream.status.isdecimal() and stream.status != "200":  # a proxy's own answer
            return Answer(Outcome.of_http(int(stream.status)), f"HTTP {stream.status}")
        return _NO_STATUS

    def _whole(self, stream: _Stream) -> Answer:
        """A success, if the message is like others before or sound on its own."""
        kept = stream.call.kept
        if stream.size < MESSAGE_PREFIX.size:
            return Answer(Outcome.NOT_UNDERSTOOD, "the answer has no message")
        if kept is None:
            return _DONE
        compressed, length = MESSAGE_PREFIX.unpack_from(kept)
        del kept[: MESSAGE_PREFIX.size]
        try:
            if length != len(kept):
                raise ValueError(f"the answer's message has {len(kept)} bytes of {length}")
            if not compressed:
                self._sound.learn(bytes(kept))
        except ValueError as error:
            return Answer(Outcome.NOT_UNDERSTOOD, str(error))
        return _DONE
