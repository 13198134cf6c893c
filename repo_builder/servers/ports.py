"""The three ports of a server: free ones, and who holds the others."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

from repo_builder.errors import ServerError, UsageError
from repo_builder.servers.records import server_on

CONTAINER_PORTS = ("docker-proxy", "rootlesskit", "rootlessport")  # the programs that listen for a container


@dataclass(frozen=True)
class Ports:
    """The ports a server listens on; in options 0 means any free one."""

    http: int
    grpc: int
    metrics: int


def resolve_host(host: str) -> str:
    """Return the IPv4 address to listen on; raises UsageError where there is none."""
    try:
        return socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]  # type: ignore[return-value]
    except OSError as error:
        raise UsageError(f"{host!r} is not an IPv4 address or a name of one: {error}", "--host 127.0.0.1") from None


def check_numbers(wanted: Ports) -> None:
    """Raise UsageError where a port is given twice or is no port."""
    numbers = {field.name: getattr(wanted, field.name) for field in fields(Ports)}
    for name, port in numbers.items():
        if not 0 <= port <= 65535:
            raise UsageError(f"{port} is not a port", f"--{name}-port takes 1 to 65535, or 0 for any free one")
    given = [port for port in numbers.values() if port]
    if len(set(given)) < len(given):
        raise UsageError(
            f"HTTP, gRPC and metrics need different ports, not {wanted.http}, {wanted.grpc} and {wanted.metrics}",
            "--http-port, --grpc-port, --metrics-port",
        )


def reserve(wanted: Ports, address: str) -> Ports:
    """Return ``wanted`` with every 0 replaced by a free port, after seeing that all of them can be bound.

    Raises:
        UsageError: a port is given twice, is no port, or the address isn't this machine's.
        ServerError: a port is in use; the message names the port and, if it can be told, the process.
    """
    check_numbers(wanted)
    with ExitStack() as held:  # all three at once, so that no free one is found twice
        return Ports(
            **{
                field.name: _bound_port(held, getattr(wanted, field.name), field.name, address)
                for field in fields(Ports)
            }
        )


def _bound_port(held: ExitStack, port: int, role: str, address: str) -> int:
    flag = f"--{role}-port"
    sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton does: TIME_WAIT is no obstacle
    try:
        sock.bind((address, port))
        sock.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use_error(port, flag) from None
        if error.errno == errno.EACCES:
            raise ServerError(f"port {port} needs privileges", f"choose one above 1023 with {flag}") from None
        raise UsageError(f"can't listen on {address}:{port}: {error.strerror}", "--host 127.0.0.1") from None
    return int(sock.getsockname()[1])


def _in_use_error(port: int, flag: str) -> ServerError:
    another = f"choose another with {flag}, or {flag} 0 for any free one"
    if ours := server_on(port):
        return ServerError(
            f"port {port} is in use by your own server at {ours.url} (pid {ours.pid})",
            f"repo-builder stop --http-port {ours.http_port}; or {another}",
        )
    holder = process_on(port)
    if holder and holder.startswith(CONTAINER_PORTS):
        another = f"docker ps --filter publish={port} names the container; or {another}"
    return ServerError(f"port {port} is in use" + (f" by {holder}" if holder else ""), another)


def process_on(port: int) -> str | None:
    """Return "NAME (pid N)" of the process that listens on ``port``, None where this user can't see it."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    # proc(5): column 1 is ADDRESS:PORT in hexadecimal, 3 the state (0A: listening), 9 the socket's inode
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes
