"""gRPC over HTTP/2, byte by byte: what a server may send, and what may be sent to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hpack import Encoder

from client.load import http2
from client.load.channel import BUFFER_BYTES, Answer
from client.load.http2 import Fields, GrpcChannel, frame, settings, window_update
from client.load.records import Outcome

BODY = b"an answer" * 100
MESSAGE = http2.MESSAGE_PREFIX.pack(0, len(BODY)) + BODY
STREAM_AND_CONNECTION = 65_535


def block(**fields: str) -> bytes:
    """Header fields as most servers send them: Huffman-coded."""
    return Encoder().encode([(name.replace("_", "-").replace("--", ":", 1), value) for name, value in fields.items()])


def head(stream: int = 1, **fields: str) -> bytes:
    return frame(http2.HEADERS, http2.END_HEADERS, stream, block(__status="200", **fields))


def trailers(stream: int = 1, **fields: str) -> bytes:
    return frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, stream, block(**fields))


def answer(stream: int = 1) -> bytes:
    return head(stream) + frame(http2.DATA, 0, stream, MESSAGE) + trailers(stream, grpc_status="0")


def asked(request: bytes = b"\0\0\0\0\1x") -> GrpcChannel:
    """A channel on which a request was sent."""
    channel = GrpcChannel(Fields("http", "localhost:8001"))
    channel.opened()
    channel.out = None
    ask(channel, request)
    return channel


def ask(channel: GrpcChannel, request: bytes = b"\0\0\0\0\1x") -> None:
    channel.sent = 1
    channel.keep = True
    channel.begin(memoryview(request))


def feed(channel: GrpcChannel, data: bytes) -> Answer | None:
    """What the engine does with received bytes."""
    buffer = bytearray(BUFFER_BYTES)
    whole = channel.rest + data
    channel.rest = b""
    buffer[: len(whole)] = whole
    return channel.take(buffer, len(whole), 5)


def sent(channel: GrpcChannel) -> list[tuple[int, int, int, bytes]]:
    """The frames that were to be sent: kind, flags, stream, payload."""
    data, channel.out = bytes(channel.out or b""), None
    return list(_frames(data))


def _frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    while data:
        number, flags, stream = http2.FRAME.unpack_from(data)
        end = http2.FRAME_BYTES + (number >> 8)
        yield number & 0xFF, flags, stream, data[http2.FRAME_BYTES : end]
        data = data[end:]


class TestAnswers:
    @pytest.mark.parametrize("step", [1, 7, 10_000])
    def test_in_pieces(self, step: int) -> None:
        channel = asked()
        data = settings({}) + answer()
        found = [feed(channel, data[at : at + step]) for at in range(0, len(data), step)]
        assert found[-1] == Answer(Outcome.OK)
        assert not any(found[:-1])
        assert bytes(channel.kept or b"") == BODY
        assert channel.first == 5
        assert not channel.spoiled

    def test_one_call_after_the_other(self) -> None:
        channel = asked()
        for stream in (1, 3, 5):
            assert {entry[2] for entry in sent(channel)} == {stream}
            assert feed(channel, answer(stream)) is not None
            ask(channel)

    @pytest.mark.parametrize(
        ("code", "outcome", "name"),
        [
            ("3", Outcome.REFUSED, "INVALID_ARGUMENT"),
            ("5", Outcome.REFUSED, "NOT_FOUND"),
            ("13", Outcome.SERVER_ERROR, "INTERNAL"),
            ("14", Outcome.SERVER_ERROR, "UNAVAILABLE"),
            ("99", Outcome.SERVER_ERROR, "status 99"),
        ],
    )
    def test_errors(self, code: str, outcome: Outcome, name: str) -> None:
        found = feed(asked(), trailers(grpc_status=code, grpc_message="no%20such%20model"))
        assert found == Answer(outcome, f"gRPC {name}: no such model")

    def test_a_proxys_own_answer(self) -> None:
        fields = block(__status="502")
        found = feed(asked(), frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, fields))
        assert found == Answer(Outcome.SERVER_ERROR, "HTTP 502")

    def test_a_reset_call(self) -> None:
        found = feed(asked(), head() + frame(http2.RESET, 0, 1, b"\0\0\0\7"))
        assert found is not None
        assert (found.outcome, found.message) == (Outcome.SERVER_ERROR, "the server reset the call: HTTP/2 error 7")

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            head() + trailers(grpc_status="0"),  # no message
            head() + frame(http2.DATA, http2.END_STREAM, 1, MESSAGE),  # no status
            head() + trailers(other="1"),
            frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
            frame(http2.HEADERS, 0, 1, block(__status="200")),
            frame(http2.DATA, http2.PADDED, 1, b"\0"),
            frame(http2.PUSH, 0, 1, b"\0\0\0\2"),
        ],
    )
    def test_what_can_not_be_understood(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"answer|fields|frame"):
            feed(asked(), data)


class TestFlowControl:
    def test_a_large_message_waits_for_the_server(self) -> None:
        request = bytes(range(256)) * 1000
        channel = asked(request)
        assert sum(len(payload) for kind, _, _, payload in sent(channel) if kind == http2.DATA) == STREAM_AND_CONNECTION
        feed(channel, window_update(0, 1000))
        assert sent(channel) == []  # the stream's window is closed still
        feed(channel, window_update(1, 10**6))
        (entry,) = sent(channel)
        assert (len(entry[3]), entry[1]) == (1000, 0)
        feed(channel, window_update(0, 10**6))
        rest = sent(channel)
        assert [flags for _, flags, _, _ in rest] == [0] * (len(rest) - 1) + [http2.END_STREAM]
        assert b"".join(payload for _, _, _, payload in rest) == request[STREAM_AND_CONNECTION + 1000 :]

    def test_the_servers_settings_hold(self) -> None:
        channel = asked(b"x" * 200_000)
        sent(channel)
        feed(
            channel, settings({http2.INITIAL_WINDOW_SIZE: 10**6, http2.MAX_FRAME_SIZE: 10**6}) + window_update(0, 10**6)
        )
        frames = sent(channel)
        assert (http2.SETTINGS, http2.ACK, 0, b"") in frames
        assert [len(payload) for kind, _, _, payload in frames if kind == http2.DATA] == [
            200_000 - STREAM_AND_CONNECTION
        ]

    def test_pings_are_answered(self) -> None:
        channel = asked()
        sent(channel)
        feed(channel, frame(http2.PING, 0, 0, b"12345678") + frame(http2.PING, http2.ACK, 0, b"87654321"))
        assert sent(channel) == [(http2.PING, http2.ACK, 0, b"12345678")]


class TestEnd:
    def test_a_server_that_leaves_gets_no_other_request(self) -> None:
        channel = asked()
        assert feed(channel, frame(http2.GOAWAY, 0, 0, bytes(8)) + answer()) == Answer(Outcome.OK)
        assert channel.spoiled

    def test_a_server_that_leaves_between_requests(self) -> None:
        channel = asked()
        feed(channel, answer())
        channel.sent = 0
        with pytest.raises(ValueError, match="ends the connection"):
            feed(channel, frame(http2.GOAWAY, 0, 0, bytes(8)))

    def test_a_new_connection_begins_anew(self) -> None:
        channel = asked(b"x" * 100_000)
        feed(channel, frame(http2.GOAWAY, 0, 0, bytes(8)) + b"\0\0")
        channel.opened()
        greeting = bytes(channel.out or b"")
        assert greeting.startswith(http2.PREFACE)
        channel.out = None
        ask(channel)
        assert {entry[2] for entry in sent(channel)} == {1}
        assert feed(channel, answer()) == Answer(Outcome.OK)
        assert not channel.spoiled
