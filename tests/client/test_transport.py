from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable

import pytest

from client.errors import BadResponse, ClientError, ConnectionFailed, RequestTimeout, UsageError
from client.protocol import Request, Response
from client.transport import HttpTransport, Url
from tests.client.fakes import FakeServer, fake_server, http_answer, reset, stay_silent

GET = Request("GET", "/v2")


def send(server: FakeServer, request: Request = GET, timeout: float = 5) -> Response:
    transport = HttpTransport(Url.parse(server.url), timeout)
    try:
        return transport.send(request)
    finally:
        transport.close()


class TestUrl:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("localhost:8000", "http://localhost:8000"),
            ("gpu-box", "http://gpu-box:8000"),
            ("http://gpu-box", "http://gpu-box:80"),
            ("https://gpu-box", "https://gpu-box:443"),
            ("https://gpu-box:8443/models/triton/", "https://gpu-box:8443/models/triton"),
            ("gpu-box:9000/triton", "http://gpu-box:9000/triton"),
            ("[::1]:8000", "http://[::1]:8000"),
            ("http://[fe80::1]/", "http://[fe80::1]:80"),
        ],
    )
    def test_parse(self, text: str, expected: str) -> None:
        assert str(Url.parse(text)) == expected

    @pytest.mark.parametrize(
        "text",
        ["", ":8000", "grpc://host:8001", "host:port", "host:99999", "http://", "http://a b", "user:pw@host:8000",
         "user:pw@host:x", "http://host/?q=1", "8000", "http://host/#x", "host:80\r\nX: y", "http://[::1"],
    )  # fmt: skip
    def test_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="no URL") as caught:
            Url.parse(text)
        assert caught.value.exit_code == 2
        assert "pw" not in caught.value.message

    def test_from_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_URL", "box:1234")
        assert str(Url.from_environment()) == "http://box:1234"
        monkeypatch.setenv("TRITON_URL", "")
        assert str(Url.from_environment()) == "http://localhost:8000"
        monkeypatch.setenv("TRITON_URL", "ftp://box")
        with pytest.raises(UsageError, match="no URL") as caught:
            Url.from_environment()
        assert str(caught.value.hint).endswith("such as TRITON_URL=http://localhost:8000")


class TestSend:
    def test_request_and_answer(self) -> None:
        with fake_server(lambda c, _: c.sendall(http_answer(b"hello", headers="X-Word: yes\r\n"))) as server:
            response = send(server, Request("POST", "/v2/x", b"body" * 100, {"A": "b"}))
        assert response == Response(200, {"content-length": "5", "x-word": "yes"}, b"hello")
        host = server.url.removeprefix("http://")
        head = f"POST /v2/x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 400\r\nA: b\r\n\r\n"
        assert server.requests == [head.encode() + b"body" * 100]

    def test_status_is_handed_on(self) -> None:
        with fake_server(lambda c, _: c.sendall(http_answer(b"{}", "503 Service Unavailable"))) as server:
            assert send(server).status == 503

    def test_path_prefix(self) -> None:
        with fake_server(lambda c, _: c.sendall(http_answer(b""))) as server:
            transport = HttpTransport(Url.parse(f"{server.url}/triton/"), 5)
            transport.send(GET)
            transport.close()
        assert server.requests[0].startswith(b"GET /triton/v2 HTTP/1.1\r\n")

    def test_large_bodies_both_ways(self) -> None:
        body = bytes(range(256)) * 40_000
        with fake_server(lambda c, r: c.sendall(http_answer(r.partition(b"\r\n\r\n")[2]))) as server:
            assert send(server, Request("POST", "/", body)).body == body

    def test_chunked_answer(self) -> None:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        with fake_server(lambda c, _: c.sendall(chunked)) as server:
            assert send(server).body == b"abcde"

    def test_connection_is_kept(self) -> None:
        with fake_server(lambda c, _: c.sendall(http_answer(b"x"))) as server:
            transport = HttpTransport(Url.parse(server.url), 5)
            for _ in range(5):
                transport.send(GET)
            transport.close()
        assert server.connections == 1
        assert len(server.requests) == 5

    @pytest.mark.parametrize("headers", ["", "Connection: close\r\n"])
    def test_connection_that_the_server_closed_while_idle_is_opened_anew(self, headers: str) -> None:
        closed = threading.Semaphore(0)

        def answer_and_close(connection: socket.socket, _: bytes) -> None:
            connection.sendall(http_answer(b"x", headers=headers))
            connection.close()
            closed.release()

        with fake_server(answer_and_close) as server:
            transport = HttpTransport(Url.parse(server.url), 5)
            for _ in range(3):
                assert transport.send(GET).body == b"x"
                assert closed.acquire(timeout=5)
            transport.close()
        assert server.connections == 3
        assert len(server.requests) == 3

    def test_answer_to_a_large_body_that_is_not_read(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))

        def refuse() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(http_answer(b"too large", "413 Content Too Large"))
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            reset(connection)

        thread = threading.Thread(target=refuse)
        thread.start()
        transport = HttpTransport(Url("http", *listener.getsockname()), 5)
        try:
            # The answer may be lost with the connection; what may not be is a clear error.
            assert transport.send(Request("POST", "/", bytes(50_000_000))).status == 413
        except ConnectionFailed:
            pass
        finally:
            transport.close()
            thread.join()
            listener.close()


class TestFailures:
    def test_nothing_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(ConnectionFailed, match=f"no server answers at http://127.0.0.1:{port}: ") as caught:
            HttpTransport(Url.parse(f"127.0.0.1:{port}"), 5).send(GET)
        assert "--url" in str(caught.value.hint)

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "x..y"])
    def test_host_that_is_none(self, host: str) -> None:
        with pytest.raises(ConnectionFailed, match="no server answers"):
            HttpTransport(Url("http", host, 80), 5).send(GET)

    def test_tls_to_a_server_without(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))

        def answer_in_plain_text() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(http_answer(b"", "400 Bad Request"))

        thread = threading.Thread(target=answer_in_plain_text)
        thread.start()
        transport = HttpTransport(Url("https", *listener.getsockname()), 5)
        with pytest.raises(ConnectionFailed, match="no secure connection to https://127") as caught:
            transport.send(GET)
        assert "http://" in str(caught.value.hint)
        thread.join()
        listener.close()

    def test_silence_is_a_timeout(self) -> None:
        timeout = pytest.raises(RequestTimeout, match=r"no answer within 0\.2 s")
        with fake_server(stay_silent) as server, timeout as caught:
            send(server, timeout=0.2)
        assert "--timeout" in str(caught.value.hint)

    def test_stall_in_the_middle_of_an_answer(self) -> None:
        def stall(connection: socket.socket, request: bytes) -> None:
            connection.sendall(http_answer(b"0123456789")[:-3])
            stay_silent(connection, request)

        with fake_server(stall) as server, pytest.raises(RequestTimeout):
            send(server, timeout=0.2)

    def test_nothing_is_sent_twice(self) -> None:
        for behave in (lambda c, _: c.close(), lambda c, _: reset(c)):
            with fake_server(behave) as server, pytest.raises(ConnectionFailed):
                send(server, Request("POST", "/", b"once"))
            assert len(server.requests) == 1

    @pytest.mark.parametrize("cut", [10, 45, -1])
    def test_answer_that_breaks_off(self, cut: int) -> None:
        def break_off(connection: socket.socket, _: bytes) -> None:
            connection.sendall(http_answer(b"0123456789")[:cut])
            connection.close()

        with fake_server(break_off) as server, pytest.raises((ConnectionFailed, BadResponse)):
            send(server)

    @pytest.mark.parametrize(
        "garbage",
        [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b"SSH-2.0-OpenSSH\r\n", b"HTTP/9 nope\r\n\r\n",
         b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n", b"HTTP/1.1 200 " + b"x" * 70_000,
         b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
    )  # fmt: skip
    def test_garbage(self, garbage: bytes) -> None:
        def talk(connection: socket.socket, _: bytes) -> None:
            connection.sendall(garbage)
            connection.close()

        with fake_server(talk) as server, pytest.raises(ClientError) as caught:
            send(server)
        assert isinstance(caught.value, BadResponse | ConnectionFailed)

    def test_next_request_after_a_failure_has_a_clean_connection(self) -> None:
        answers = iter([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", http_answer(b"whole")])
        with fake_server(lambda c, _: c.sendall(next(answers))) as server:
            transport = HttpTransport(Url.parse(server.url), 0.3)
            with pytest.raises(RequestTimeout):
                transport.send(GET)
            assert transport.send(GET).body == b"whole"
            transport.close()
        assert server.connections == 2


class TestReuse:
    """A connection that breaks as it is used again: what may be repeated, and what may not."""

    @staticmethod
    def breaks_at_second(leave: Callable[[socket.socket], None]) -> Callable[[socket.socket, bytes], None]:
        seen = itertools.count(1)

        def behave(connection: socket.socket, _: bytes) -> None:
            if next(seen) == 2:
                leave(connection)
            else:
                connection.sendall(http_answer(b"x"))

        return behave

    @pytest.mark.parametrize("leave", [socket.socket.close, reset])
    def test_a_question_is_asked_again(self, leave: Callable[[socket.socket], None]) -> None:
        with fake_server(self.breaks_at_second(leave)) as server:
            transport = HttpTransport(Url.parse(server.url), 5)
            assert [transport.send(GET).body for _ in range(3)] == [b"x"] * 3
            transport.close()
        assert server.connections == 2
        assert len(server.requests) == 4

    @pytest.mark.parametrize("leave", [socket.socket.close, reset])
    def test_an_inference_that_was_sent_whole_is_not(self, leave: Callable[[socket.socket], None]) -> None:
        post = Request("POST", "/v2/models/net/infer", b"once")
        with fake_server(self.breaks_at_second(leave)) as server:
            transport = HttpTransport(Url.parse(server.url), 5)
            transport.send(post)
            with pytest.raises(ConnectionFailed, match=r"closed the connection without an answer|broke") as caught:
                transport.send(post)
            assert "repo-builder status" in str(caught.value.hint)
            assert transport.send(post).body == b"x"
            transport.close()
        assert len(server.requests) == 3

    def test_an_inference_that_was_sent_in_part_is_sent_again(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        whole: list[int] = []

        def serve() -> None:
            first, _ = listener.accept()
            first.recv(1000)
            first.sendall(http_answer(b"first"))
            first.recv(1000)
            reset(first)
            second, _ = listener.accept()
            with second:
                missing = 20_000_000
                while missing > 0:
                    missing -= len(second.recv(1 << 20))
                whole.append(missing)
                second.sendall(http_answer(b"second"))

        thread = threading.Thread(target=serve)
        thread.start()
        transport = HttpTransport(Url("http", *listener.getsockname()), 5)
        assert transport.send(GET).body == b"first"
        assert transport.send(Request("POST", "/", bytes(20_000_000))).body == b"second"
        transport.close()
        thread.join(5)
        listener.close()
        assert len(whole) == 1

    def test_silence_is_not_a_reason_to_ask_again(self) -> None:
        with fake_server(self.breaks_at_second(lambda c: stay_silent(c, b""))) as server:
            transport = HttpTransport(Url.parse(server.url), 0.2)
            transport.send(GET)
            with pytest.raises(RequestTimeout):
                transport.send(GET)
            transport.close()
        assert len(server.requests) == 2


class TestOtherServers:
    def test_tls_where_plain_http_is_asked(self) -> None:
        """A real TLS server; it needs no certificate to see that what comes is no TLS."""
        listener = socket.create_server(("127.0.0.1", 0))

        def accept() -> None:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError):
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(connection, server_side=True)
            connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        url = Url("http", *listener.getsockname())
        with pytest.raises(ClientError) as caught:
            HttpTransport(url, 5).send(GET)
        assert f"--url https://{url.netloc}" in str(caught.value.hint)
        thread.join(5)
        listener.close()

    @pytest.mark.parametrize(
        ("first", "protocol", "hint"),
        [
            (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS", "--url https://127.0.0.1"),
            (b"\x00\x00\x18\x04\x00\x00\x00\x00\x00", "speaks HTTP/2", "check --url: Triton's HTTP port"),
            (b"SSH-2.0-OpenSSH\r\n", "doesn't speak HTTP", "check --url: Triton's HTTP port"),
        ],
    )
    def test_other_protocols(self, first: bytes, protocol: str, hint: str) -> None:
        def talk(connection: socket.socket, _: bytes) -> None:
            connection.sendall(first)
            connection.close()

        with fake_server(talk) as server, pytest.raises(BadResponse, match=protocol) as caught:
            send(server)
        assert hint in str(caught.value.hint)

    def test_plain_server_where_tls_is_asked(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)

        thread = threading.Thread(target=hang_up)
        thread.start()
        url = Url("https", *listener.getsockname())
        with pytest.raises(ConnectionFailed, match="what answers speaks no TLS") as caught:
            HttpTransport(url, 5).send(GET)
        assert caught.value.hint == f"without TLS it is --url http://{url.netloc}"
        thread.join(5)
        listener.close()

    def test_host_that_never_accepts_is_given_up_long_before_a_slow_model(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("client.transport.CONNECT_SECONDS", 0.2)
        with socket.socket() as full, contextlib.ExitStack() as waiting:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(3):  # more than the queue holds: Linux no longer answers
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            with pytest.raises(ConnectionFailed, match=r"no connection within 0\.2 s"):
                HttpTransport(Url("http", *full.getsockname()), 60).send(GET)

    def test_the_answer_may_take_longer_than_the_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("client.transport.CONNECT_SECONDS", 0.1)

        def slow(connection: socket.socket, _: bytes) -> None:
            time.sleep(0.4)
            connection.sendall(http_answer(b"late"))

        with fake_server(slow) as server:
            assert send(server, timeout=5).body == b"late"
