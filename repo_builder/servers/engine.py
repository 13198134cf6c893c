"""Where a repository is served: by the local server or by a container, and which of them if nobody says."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.errors import UsageError

if TYPE_CHECKING:
    from repo_builder.servers.base import ServerOptions
    from repo_builder.servers.docker import DockerOptions
    from repo_builder.servers.images import Progress
    from repo_builder.servers.supervised import SupervisedServer


DEFAULT_IMAGE = "nvcr.io/nvidia/tritonserver:25.11-py3"  # compose.yaml's


class Engine(str, Enum):
    """What runs tritonserver.  ``AUTO`` takes Docker where that works without a pull, else the local server."""

    AUTO = "auto"
    LOCAL = "local"
    DOCKER = "docker"


def choose_engine(engine: Engine, repository: Path | str, options: DockerOptions) -> tuple[Engine, str]:
    """The engine to take, and why.

    Raises:
        UsageError: options of containers were given for the local server.
    """
    from repo_builder.servers.docker import DockerOptions, usable_engine

    asked = options != DockerOptions()
    if engine is Engine.LOCAL and asked:
        raise UsageError("--image, --gpus and --shm-size are for containers", "--engine docker, or leave them out")
    if engine is not Engine.AUTO:
        return engine, f"--engine {engine.value}"
    if asked:
        return Engine.DOCKER, "an option of containers was given"
    usable, why = usable_engine(repository)
    if usable or (_installed("docker") and not _installed("pytriton")):
        return Engine.DOCKER, why if usable else "the local server is not installed"
    return Engine.LOCAL, why


def start_server(
    engine: Engine, repository: Path | str, options: ServerOptions, docker_options: DockerOptions, progress: Progress
) -> SupervisedServer:
    """Start a server and return when every model is loaded or refused, even if all are; raises RepoBuilderError."""
    from repo_builder.servers import docker, local

    if engine is Engine.DOCKER:
        return docker.start(repository, options, docker_options, progress)
    return local.start(repository, options)


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
