"""HTTP to one server over one connection that is kept open.

Bodies are tritonclient's (see :mod:`client.protocol`); the connection is the standard library's and not the gevent one
of tritonclient's client, which breaks after a fork and in some versions sends a POST twice when a connection is reset.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
from dataclasses import dataclass, replace
from typing import Final, Protocol
from urllib.parse import urlsplit

from client.errors import BadResponse, ClientError, ConnectionFailed, RequestTimeout, UsageError
from client.protocol import Request, Response, http_head

DEFAULT_URL: Final = "http://localhost:8000"
URL_VARIABLE: Final = "TRITON_URL"
MAX_S: Final = 7 * 24 * 3600
"""Of any time: a week; sockets take no number of seconds that there may be."""

CONNECT_SECONDS: Final = 10.0
"""A server that can be reached accepts within moments; only its answers may take as long as a model runs."""

_SIGNS_OF_NO_TLS: Final = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}
_PROTOCOLS: Final = {"\x15\x03": "TLS", "\x00\x00": "HTTP/2 (as a gRPC port does)"}
"""By the first bytes of an answer: a TLS alert, and an HTTP/2 frame (a short one of at most 255 bytes)."""


class Transport(Protocol):
    """Carries one request at a time to a server; what :class:`client.Client` needs of a connection."""

    def send(self, request: Request) -> Response:
        """Send ``request`` and return the whole answer, whatever its status; :class:`ClientError` if none."""

    def close(self) -> None:
        """Close the connection; the next :meth:`send` opens another."""


@dataclass(frozen=True)
class Url:
    """Where a server is: ``scheme://host:port/prefix``, the prefix without a slash at its end."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, text: str, example: str = f"--url {DEFAULT_URL}") -> Url:
        """Read ``host``, ``host:port`` or a whole URL with an optional path prefix.

        A bare host means Triton's port 8000; with a scheme the port is the scheme's own.  UsageError, with ``example``
        in its hint, if it is none.
        """
        whole = "://" in text
        _, at, shown = text.rpartition("@")  # a password is not to be seen
        try:
            parts = urlsplit(text if whole else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{shown!r} is no URL: {error}", f"such as {example}") from None
        sound = parts.scheme in {"http", "https"} and text.isprintable() and not any(c.isspace() for c in text)
        if not sound or not host or host.isdecimal() or at or parts.query or parts.fragment:
            raise UsageError(
                f"{shown!r}{' with a user' if at else ''} is no URL of a server",
                f"http:// or https://, a host, a port and perhaps a path, such as {example}",
            )
        default = 8000 if not whole else 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, host, default if port is None else port, parts.path.rstrip("/"))

    @classmethod
    def from_environment(cls) -> Url:
        """The URL in ``TRITON_URL``, else http://localhost:8000."""
        return cls.parse(os.environ.get(URL_VARIABLE) or DEFAULT_URL, f"{URL_VARIABLE}={DEFAULT_URL}")

    @property
    def netloc(self) -> str:
        """``host:port``, as in an HTTP Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"


class HttpTransport:
    """One kept-open connection to ``url``; not thread-safe.

    ``timeout``: seconds to wait for each next piece of an answer, and for the connection, but for that never
    more than :data:`CONNECT_SECONDS`.
    """

    def __init__(self, url: Url, timeout: float, context: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._timeout = timeout
        self._context = context
        self._socket: socket.socket | None = None

    def send(self, request: Request) -> Response:
        """Send ``request`` and read the whole answer.

        A server may close an idle connection at the very moment that it is used again.  Then the request is
        sent once more over a new one, if no harm can come of it: it only asks (GET), or the server can't have
        run it because it never got all of it.  An inference that was sent whole is never repeated: a model may
        keep state from request to request.
        """
        if self._socket is not None and _readable(self._socket):
            self.close()  # the server closed it while it was idle
        reused = self._socket is not None
        try:
            try:
                return self._exchange(request)
            except ConnectionError as error:
                if not reused or not (request.method == "GET" or isinstance(error, _SentInPart)):
                    raise
                return self._exchange(request)
        except (OSError, http.client.HTTPException) as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Close the connection; the next :meth:`send` opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            https = self._url.scheme == "https"
            host, port, timeout = self._url.host, self._url.port, min(self._timeout, CONNECT_SECONDS)
            connection = (
                http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)
                if https
                else http.client.HTTPConnection(host, port, timeout=timeout)
            )
            try:
                connection.connect()
            except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA can't encode
                # http.client keeps the TCP connection in `sock` before it begins with TLS.
                raise (self._no_tls(error) if connection.sock else self._no_server(error)) from error
            connection.sock.settimeout(self._timeout)
            self._socket = connection.sock
        return self._socket

    def _exchange(self, request: Request) -> Response:
        connection = self._connected()
        try:
            return self._send_and_read(connection, request)
        except BaseException:
            # Nothing half-sent or half-read may be left for the next request, whatever broke this one.
            self.close()
            raise

    def _send_and_read(self, connection: socket.socket, request: Request) -> Response:
        head = http_head(request, self._url.netloc, self._url.prefix)
        # http.client's own request() sends head and body apart, which wakes the server twice and was measured
        # slower at every size of body.  Only its parser of answers is used.
        answer = http.client.HTTPResponse(connection, method=request.method)
        with answer:
            try:
                _send_all(connection, head, request.body)
            except (BrokenPipeError, ConnectionResetError) as broken:
                # A server that refuses a large body may answer and close before it has read all of it.
                try:
                    answer.begin()
                except (OSError, http.client.HTTPException):
                    raise _SentInPart(broken.errno, broken.strerror) from None
            else:
                answer.begin()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            body = answer.read()
            if answer.will_close:
                self.close()
        return Response(answer.status, headers, body)

    def _no_server(self, error: Exception) -> ConnectionFailed:
        if isinstance(error, TimeoutError):
            reason = f"no connection within {min(self._timeout, CONNECT_SECONDS):g} s"
        else:
            reason = str(getattr(error, "strerror", None) or error)
        return ConnectionFailed(
            f"no server answers at {self._url}: {reason}",
            "start one with repo-builder serve, or say where it is with --url",
        )

    def _no_tls(self, error: Exception) -> ConnectionFailed:
        hint = f"without TLS it is --url {replace(self._url, scheme='http')}"
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = error.verify_message
            hint = "SSL_CERT_FILE=FILE.pem in the environment names the certificate to trust"
        elif isinstance(error, ssl.SSLEOFError) or reason in _SIGNS_OF_NO_TLS:
            reason = "what answers speaks no TLS"
        return ConnectionFailed(f"no secure connection to {self._url}: {reason.replace('_', ' ')}", hint)

    def _explain(self, error: OSError | http.client.HTTPException) -> ClientError:
        if isinstance(error, TimeoutError):
            return RequestTimeout(f"{self._url} gave no answer within {self._timeout:g} s")
        if isinstance(error, http.client.IncompleteRead):
            return ConnectionFailed(f"{self._url} closed the connection in the middle of its answer")
        if isinstance(error, ConnectionError):
            secure = f"--url {replace(self._url, scheme='https')} if the server speaks TLS; "
            hint = f"{'' if self._url.scheme == 'https' else secure}repo-builder status says if it still runs"
            if isinstance(error, http.client.RemoteDisconnected):
                return ConnectionFailed(f"{self._url} closed the connection without an answer", hint)
            return ConnectionFailed(f"the connection to {self._url} broke: {error.strerror or error}", hint)
        if isinstance(error, http.client.HTTPException):
            return self._no_http(getattr(error, "line", ""))
        return ConnectionFailed(f"the connection to {self._url} broke: {error.strerror or error}")

    def _no_http(self, first_line: object) -> BadResponse:
        for start, protocol in _PROTOCOLS.items():
            if str(first_line).startswith(start):
                hint = f"--url {replace(self._url, scheme='https')}" if protocol == "TLS" else None
                return BadResponse(f"what answers at {self._url} speaks {protocol}, not plain HTTP", hint)
        return BadResponse(f"what answers at {self._url} doesn't speak HTTP")


class _SentInPart(ConnectionError):  # noqa: N818
    """The connection broke before all of a request was sent, and no answer had come."""


def _send_all(connection: socket.socket, head: bytes, body: bytes) -> None:
    """Send head and body together, without joining them in memory where the socket can do that.

    An error means that the last byte was not sent; so nothing is tried once it was.
    """
    if isinstance(connection, ssl.SSLSocket):
        connection.sendall(head + body)
        return
    sent = connection.sendmsg([head, body])
    if sent < len(head):
        connection.sendall(head[sent:])
    if sent < len(head) + len(body):
        connection.sendall(memoryview(body)[max(0, sent - len(head)) :])


def _readable(connection: socket.socket) -> bool:
    """Whether an idle connection has something to read: its end, or bytes that nobody asked for."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
