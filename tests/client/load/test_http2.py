"""gRPC over HTTP/2, byte by byte: what a server may send, and what may be sent to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hpack import Encoder
from tritonclient.grpc import service_pb2

from client.load import http2
from client.load.channel import BUFFER_BYTES, Answer, Call
from client.load.descriptions import MESSAGE_PREFIX, SoundMessages
from client.load.http2 import Fields, GrpcChannel, frame, settings, window_update
from client.load.records import Outcome

BODY = service_pb2.ModelInferResponse(
    model_name="net",
    outputs=[{"name": "y", "datatype": "UINT8", "shape": [900]}],
    raw_output_contents=[b"an answer" * 100],
).SerializeToString()
MESSAGE = MESSAGE_PREFIX.pack(0, len(BODY)) + BODY
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
    """A channel on which a request was sent, and nothing else."""
    channel = GrpcChannel(Fields("http", "localhost:8001"), SoundMessages())
    channel.out = None
    ask(channel, request)
    return channel


def ask(channel: GrpcChannel, request: bytes = b"\0\0\0\0\1x") -> Call:
    """Another call on the channel, and its request."""
    call = Call(0)
    channel.calls.append(call)
    ask_again(channel, call, request)
    return call


def ask_again(channel: GrpcChannel, call: Call, request: bytes = b"\0\0\0\0\1x") -> None:
    call.sent, call.keep, call.first = 1, True, 0
    channel.begin(call, memoryview(request))


def feed_all(channel: GrpcChannel, data: bytes) -> list[tuple[Call, Answer]]:
    """What the engine does with received bytes."""
    buffer = bytearray(BUFFER_BYTES)
    whole = channel.rest + data
    channel.rest = b""
    buffer[: len(whole)] = whole
    return list(channel.take(buffer, len(whole), 5))


def feed(channel: GrpcChannel, data: bytes) -> Answer | None:
    """The answer to the only call."""
    found = feed_all(channel, data)
    assert [call for call, _ in found] == channel.calls[: len(found)]
    return found[0][1] if found else None


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
        (call,) = channel.calls
        assert bytes(call.kept or b"") == BODY
        assert call.first == 5
        assert not channel.spoiled

    def test_one_call_after_the_other(self) -> None:
        channel = asked()
        for stream in (1, 3, 5):
            assert {entry[2] for entry in sent(channel)} == {stream}
            assert feed(channel, answer(stream)) is not None
            ask_again(channel, channel.calls[0])

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
        ("data", "message"),
        [
            (head() + trailers(grpc_status="0"), "no message"),
            (head() + frame(http2.DATA, http2.END_STREAM, 1, MESSAGE), "no gRPC status"),
            (head() + trailers(other="1"), "no gRPC status"),
        ],
    )
    def test_no_answer_to_this_call(self, data: bytes, message: str) -> None:
        found = feed(asked(), data)
        assert found == Answer(Outcome.NOT_UNDERSTOOD, f"the answer has {message}")

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
            frame(http2.HEADERS, 0, 1, block(__status="200")),
            frame(http2.DATA, http2.PADDED, 1, b"\0"),
            frame(http2.PUSH, 0, 1, b"\0\0\0\2"),
        ],
    )
    def test_what_can_not_be_understood(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"answer|fields|frame"):
            feed(asked(), data)


class TestCallsThatShareAConnection:
    def test_answers_in_any_order_and_in_pieces(self) -> None:
        channel = asked()
        first, second, third = *channel.calls, ask(channel), ask(channel)
        assert [entry[2] for entry in sent(channel)] == [1, 1, 3, 3, 5, 5]
        body = head(5) + head(1) + frame(http2.DATA, 0, 5, MESSAGE) + frame(http2.DATA, 0, 1, MESSAGE[:9])
        assert feed_all(channel, body) == []
        done = trailers(5, grpc_status="0") + frame(http2.DATA, 0, 1, MESSAGE[9:]) + trailers(1, grpc_status="0")
        assert feed_all(channel, done) == [(third, Answer(Outcome.OK)), (first, Answer(Outcome.OK))]
        assert bytes(first.kept or b"") == bytes(third.kept or b"") == BODY
        assert not second.kept
        assert second.first == 0

    def test_an_error_is_that_of_its_call(self) -> None:
        channel = asked()
        second = ask(channel)
        found = feed_all(channel, trailers(1, grpc_status="13", grpc_message="broken") + answer(3))
        assert [entry.outcome for _, entry in found] == [Outcome.SERVER_ERROR, Outcome.OK]
        assert found[1][0] is second

    def test_a_dropped_calls_answer_is_nobodys(self) -> None:
        channel = asked()
        first, second = channel.calls[0], ask(channel)
        channel.drop(first)
        assert feed_all(channel, answer(1) + answer(3)) == [(second, Answer(Outcome.OK))]

    def test_calls_wait_for_the_server_together(self) -> None:
        channel = asked(b"x" * 60_000)
        ask(channel, b"y" * 10_000)
        frames = sent(channel)
        assert sum(len(payload) for kind, _, _, payload in frames if kind == http2.DATA) == STREAM_AND_CONNECTION
        feed(channel, window_update(0, 10**6))
        (entry,) = sent(channel)
        assert entry[1:3] == (http2.END_STREAM, 3)
        assert len(entry[3]) == 70_000 - STREAM_AND_CONNECTION

    def test_those_in_flight_are_answered_when_the_server_leaves(self) -> None:
        channel = asked()
        ask(channel)
        assert feed_all(channel, frame(http2.GOAWAY, 0, 0, bytes(8))) == []
        assert channel.spoiled
        assert [entry.outcome for _, entry in feed_all(channel, answer(3) + answer(1))] == [Outcome.OK] * 2


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
        with pytest.raises(ValueError, match="ends the connection"):
            feed(channel, frame(http2.GOAWAY, 0, 0, bytes(8)))

    def test_a_call_answered_before_it_was_sent_is_the_last(self) -> None:
        channel = asked(b"x" * 100_000)
        found = feed(channel, trailers(grpc_status="3", grpc_message="too large"))
        assert found == Answer(Outcome.REFUSED, "gRPC INVALID_ARGUMENT: too large")
        assert channel.spoiled

    def test_a_connection_begins_with_the_greeting(self) -> None:
        assert bytes(GrpcChannel(Fields("http", "localhost:8001"), SoundMessages()).out or b"").startswith(
            http2.PREFACE
        )
