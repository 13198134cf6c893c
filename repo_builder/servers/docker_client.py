"""Docker's engine: where it is, a client of it, and what kind it is."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from repo_builder.errors import MissingExtraError, ServerError

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
ROOTLESS_USER = "0:0"  # of a rootless engine's containers: who started it


def engine_address() -> str:
    """Where the Docker engine is: as DOCKER_HOST has it, else as the context that Docker's own client uses."""
    from docker.context import ContextAPI

    if host := os.environ.get("DOCKER_HOST"):
        return host
    with contextlib.suppress(Exception):  # it is written by hand, or by other versions of Docker
        return str(ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT")).Host or DEFAULT_ADDRESS)
    return DEFAULT_ADDRESS


def open_client(where: str) -> Any:
    """A client of the Docker engine at ``where``, which has not been asked anything yet; raises DockerException."""
    import docker

    return docker.from_env(timeout=60, environment={**os.environ, "DOCKER_HOST": where})


def connect(otherwise: str = "or serve without: --engine local", where: str | None = None) -> Any:
    """A client of the Docker engine at ``where``, else of the one here; ``otherwise`` is what can be done without it.

    Raises:
        MissingExtraError: Docker's Python SDK is not installed.
        ServerError: no engine answers, or not to this user.
    """
    try:
        import docker.errors
    except ImportError:
        raise MissingExtraError("docker", "Docker's Python SDK") from None
    where = where or engine_address()
    try:
        if where.startswith("unix://"):  # tried first, for the SDK leaks a socket that does not connect
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(where.removeprefix("unix://"))
        client = open_client(where)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise _no_engine_error(error, where, otherwise) from None
    return client


def _no_engine_error(error: Exception, where: str, otherwise: str) -> ServerError:
    if isinstance(error, PermissionError) or "Permission denied" in str(error):
        return ServerError(
            "this user may not use the Docker engine", "sudo usermod -aG docker $USER, then log in again"
        )
    start = "start one (sudo systemctl start docker, or Docker Desktop)"
    if os.environ.get("DOCKER_HOST") == where:
        start = "DOCKER_HOST says where: correct it, unset it"
    elif where != DEFAULT_ADDRESS:
        start = "docker context says where: start that engine, docker context use another"
    return ServerError(f"no Docker engine answers at {where}", f"{start}, {otherwise}")
