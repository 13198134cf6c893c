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
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from client.errors import BadResponse, ClientError, ConnectionFailed, RequestTimeout, UsageError
from client.protocol import Request, Response, http_head

DEFAULT_URL: Final = "http://localhost:8000"
URL_VARIABLE: Final = "TRITON_URL"


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
    def parse(cls, text: str) -> Url:
        """Read ``host``, ``host:port`` or a whole URL with an optional path prefix.

        A bare host means Triton's port 8000; with a scheme the port is the scheme's own.
        """
        whole = "://" in text
        try:
            parts = urlsplit(text if whole else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{text!r} is no URL: {error}", f"such as --url {DEFAULT_URL}") from None
        sound = parts.scheme in {"http", "https"} and text.isprintable() and not any(c.isspace() for c in text)
        if not sound or not host or parts.username or parts.query or parts.fragment:
            raise UsageError(
                f"{text!r} is no URL of a server",
                f"http:// or https://, a host, a port and perhaps a path, such as --url {DEFAULT_URL}",
            )
        default = 8000 if not whole else 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, host, default if port is None else port, parts.path.rstrip("/"))

    @classmethod
    def from_environment(cls) -> Url:
        """The URL in ``TRITON_URL``, else http://localhost:8000."""
        return cls.parse(os.environ.get(URL_VARIABLE) or DEFAULT_URL)

    @property
    def netloc(self) -> str:
        """``host:port``, as in an HTTP Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"


class HttpTransport:
    """One kept-open connection to ``url``; not thread-safe.

    ``timeout``: seconds to wait for the connection, and for each next piece of an answer.
    """

    def __init__(self, url: Url, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def send(self, request: Request) -> Response:
        """Send ``request`` once, never twice, and read the whole answer."""
        connection = self._connected()
        try:
            response = self._exchange(connection, request)
        except BaseException as error:
            # Nothing half-sent or half-read may be left for the next request, whatever broke this one.
            self.close()
            if isinstance(error, OSError | http.client.HTTPException):
                raise self._explain(error) from error
            raise
        return response

    def close(self) -> None:
        """Close the connection; the next :meth:`send` opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        """The open connection: a new one if there is none or the server closed it while it was idle."""
        if self._socket is not None and _readable(self._socket):
            self.close()
        if self._socket is None:
            https = self._url.scheme == "https"
            kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
            connection = kind(self._url.host, self._url.port, timeout=self._timeout)
            try:
                connection.connect()
            except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA can't encode
                raise self._no_server(error) from error
            self._socket = connection.sock
        return self._socket

    def _exchange(self, connection: socket.socket, request: Request) -> Response:
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
                    raise broken from None
            else:
                answer.begin()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            body = answer.read()
            if answer.will_close:
                self.close()
        return Response(answer.status, headers, body)

    def _no_server(self, error: Exception) -> ConnectionFailed:
        if isinstance(error, ssl.SSLError):
            return ConnectionFailed(
                f"no secure connection to {self._url}: {getattr(error, 'verify_message', '') or error.reason}",
                "SSL_CERT_FILE names the certificates to trust; without TLS the URL begins with http://",
            )
        if isinstance(error, TimeoutError):
            reason = f"no connection within {self._timeout:g} s"
        else:
            reason = str(getattr(error, "strerror", None) or error)
        return ConnectionFailed(
            f"no server answers at {self._url}: {reason}",
            "start one with repo-builder serve, or say where it is with --url",
        )

    def _explain(self, error: OSError | http.client.HTTPException) -> ClientError:
        if isinstance(error, TimeoutError):
            return RequestTimeout(
                f"{self._url} gave no answer within {self._timeout:g} s", "--timeout SECONDS waits longer"
            )
        if isinstance(error, http.client.RemoteDisconnected):
            return ConnectionFailed(f"{self._url} closed the connection without an answer")
        if isinstance(error, http.client.IncompleteRead):
            return ConnectionFailed(f"{self._url} closed the connection in the middle of its answer")
        if isinstance(error, http.client.HTTPException):
            return BadResponse(
                f"what answers at {self._url} doesn't speak HTTP",
                "Triton's HTTP port is 8000 by default; 8001 is gRPC, 8002 metrics",
            )
        return ConnectionFailed(f"the connection to {self._url} broke: {error.strerror or error}")


def _send_all(connection: socket.socket, head: bytes, body: bytes) -> None:
    """Send head and body together, without joining them in memory where the socket can do that."""
    if isinstance(connection, ssl.SSLSocket):
        connection.sendall(head + body)
        return
    sent = connection.sendmsg([head, body])
    connection.sendall(head[sent:])
    connection.sendall(memoryview(body)[max(0, sent - len(head)) :])


def _readable(connection: socket.socket) -> bool:
    """Whether an idle connection has something to read: its end, or bytes that nobody asked for."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
