from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repo_builder.errors import ServerError, UsageError
from repo_builder.servers.ports import Ports, process_on, reserve


def test_free_ports_are_distinct_and_free() -> None:
    ports = reserve(Ports(0, 0, 0), "127.0.0.1")
    numbers = [ports.http, ports.grpc, ports.metrics]
    assert len(set(numbers)) == 3
    for number in numbers:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", number))


def test_a_port_that_a_connection_left_in_time_wait_is_free() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server_side, _ = listener.accept()
            server_side.close()  # first to close: its end goes to TIME_WAIT
    assert reserve(Ports(port, 0, 0), "127.0.0.1").http == port


def test_the_process_that_listens_is_named() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert f"(pid {os.getpid()})" in str(process_on(port))
        with pytest.raises(ServerError, match=f"port {port} is in use by .*{os.getpid()}"):
            reserve(Ports(0, 0, port), "127.0.0.1")
    assert process_on(port) is None


LISTEN = (
    "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
)


@contextlib.contextmanager
def listening(name: str, folder: Path) -> Iterator[int]:
    """A port that a program of that name has."""
    program = folder / name
    program.symlink_to(Path(sys.executable).resolve())
    command = [str(program), "-I", "-S", "-c", LISTEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate("\n")


@pytest.mark.parametrize("name", ["docker-proxy", "rootlesskit", "rootlessport"])
def test_of_a_container_s_port_the_hint_says_how_to_find_the_container(name: str, tmp_path: Path) -> None:
    with listening(name, tmp_path) as port:
        with pytest.raises(ServerError, match=f"port {port} is in use by {name} ") as caught:
            reserve(Ports(port, 0, 0), "127.0.0.1")
        assert str(caught.value.hint).startswith(f"docker ps --filter publish={port} names the container; or choose ")


def test_ports_that_can_not_be() -> None:
    for ports, words in ((Ports(-1, 0, 0), "-1 is not a port"), (Ports(8000, 8000, 0), "different ports")):
        with pytest.raises(UsageError, match=words):
            reserve(ports, "127.0.0.1")
