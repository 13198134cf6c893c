"""A container that runs one command as the caller, and of which nothing is left behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repo_builder.errors import CompileError, ServerError
from repo_builder.folders import state_folder
from repo_builder.host import is_rootless
from repo_builder.servers.docker import lacks_gpu, remove_container
from repo_builder.servers.docker_client import ROOTLESS_USER, connect
from repo_builder.servers.docker_supervisor import find
from repo_builder.servers.images import explanation

LABEL = "repo-builder.build"
END_S = 10.0

Mounts = dict[str, tuple[Path, bool]]
"""By the path in the container: the path here, and whether it may be written."""


def connect_for_build() -> Any:
    """A client of the Docker engine; raises ServerError, MissingExtraError."""
    return connect("or build without: install TensorRT here and drop --build-in-container")


class BuildContainer:
    """Runs ``command`` in ``image`` until it ends or :meth:`close`, or until this process is gone.

    Raises:
        ServerError: the container can't be made or started.
    """

    def __init__(
        self,
        client: Any,
        image: str,
        command: list[str],
        mounts: Mounts,
        environment: Mapping[str, str],
        *,
        gpus: list[Any] | None = None,
        network: bool = False,
    ) -> None:
        import docker.errors

        settings = _settings(client, mounts, environment, gpus or [], network=network)
        self._client, self._name = client, f"repo-builder-build-{os.getpid()}-{secrets.token_hex(4)}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the container)
        # It copies the container's output, and removes the container when that has ended or this process has.
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "repo_builder.servers.docker_supervisor", str(os.getpid()), self._name, os.devnull],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for this process
        )
        try:
            client.containers.create(image, command, name=self._name, **settings).start()
        except (docker.errors.DockerException, OSError) as error:
            self.close()
            raise _start_error(error, image) from None
        except BaseException:
            self.close()
            raise

    def poll(self) -> int | None:
        """The exit status of the container once it has ended."""
        return self._supervisor.poll()

    def said(self) -> str:
        """What the container has written."""
        log = self._log.fileno()
        return os.pread(log, os.fstat(log).st_size, 0).decode("utf-8", "replace").strip()

    def ended_error(self, status: int) -> CompileError:
        """The error of a container that ended before its work was done; its log is kept."""
        said = self.said()
        kept = state_folder() / "builds" / "container.log"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(said, encoding="utf-8")
        if status in {128 + signal.SIGKILL, -signal.SIGKILL}:
            return CompileError(
                "the build container was killed",
                f"it may have run out of memory: give Docker more, or lower --workspace; its log is {kept}",
            )
        last = f": {said.splitlines()[-1].strip()}" if said else ""
        return CompileError(
            f"the build container ended with exit status {status}{last}", f"all that it said is in {kept}"
        )

    def close(self) -> None:
        """Kill and remove the container."""
        container = find(self._client, self._name)
        if container is not None:
            remove_container(container)
        self._supervisor.terminate()
        try:
            self._supervisor.wait(END_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        self._log.close()


def _settings(
    client: Any, mounts: Mounts, environment: Mapping[str, str], gpus: list[Any], *, network: bool
) -> dict[str, Any]:
    from docker.types import Mount

    return {
        "mounts": [
            Mount(inside, str(outside), type="bind", read_only=not writable)
            for inside, (outside, writable) in mounts.items()
        ],
        "environment": {"HOME": "/tmp", **environment},  # noqa: S108
        "device_requests": gpus,
        # Files are to belong to the caller, whom a rootless engine calls root.
        "user": ROOTLESS_USER if is_rootless(client.info()) else f"{os.getuid()}:{os.getgid()}",
        "network_mode": None if network else "none",
        "working_dir": "/tmp",  # noqa: S108
        "read_only": True,
        "tmpfs": {"/tmp": "exec"},  # noqa: S108  (TensorRT loads libraries that it unpacks there)
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "labels": {LABEL: str(os.getpid())},
    }


def _start_error(error: Exception, image: str) -> ServerError:
    """An engine's refusal in one line, with its mend."""
    text = explanation(error)
    if lacks_gpu(text):
        return ServerError(
            f"the Docker engine can't give containers a GPU: {text}",
            "install nvidia-container-toolkit, sudo nvidia-ctk runtime configure, restart Docker",
        )
    if "executable file not found" in text:
        return ServerError(f"{image} has no python3", "--container-image nvcr.io/nvidia/tritonserver:YY.MM-py3 has one")
    if "bind source path does not exist" in text:
        return ServerError(
            f"the Docker engine does not see this machine's files: {text}",
            "use this machine's engine: unset DOCKER_HOST",
        )
    if "mounts denied" in text or "not shared" in text:
        return ServerError(f"the engine may not mount this folder: {text}", "share it in Docker Desktop")
    if "no space left" in text:
        return ServerError(f"the disk of the Docker engine is full: {text}", "docker system prune frees space")
    return ServerError(f"the build container does not start: {text}", "repo-builder doctor looks at Docker")
