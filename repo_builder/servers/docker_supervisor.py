"""A process of its own that follows one container and sees to it that nothing of it is left behind.

    python -m repo_builder.servers.docker_supervisor PARENT_PID CONTAINER RECORD

CONTAINER is an id, or the name of one that is yet to be made and started.  Its output is copied to stdout.  As for
local servers (:mod:`repo_builder.servers.supervisor`):

SIGTERM, SIGINT  stop the container: Triton finishes the requests in flight; remove it, exit 0
SIGUSR1          the server is detached: stop watching the parent
parent gone      kill and remove the container at once
container ends   remove it, note in the record of a detached server how it ended, exit with its status
engine gone      exit 1; the record stays, for the container may have outlived its engine: a stop removes it later
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from repo_builder.servers.docker import GRACE_S, remove_container
from repo_builder.servers.docker_client import engine_address, open_client
from repo_builder.servers.supervisor import close_record

WATCH_S = 0.2
APPEAR_WATCH_S = 0.05
APPEAR_S = 2.0  # for the engine to make what a parent that is gone had asked for
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Follower(threading.Thread):
    """Copies the container's output to stdout until it ends; ``status`` is then its exit status."""

    def __init__(self, container: Any) -> None:
        super().__init__(daemon=True)
        self.container = container
        self.status = 1

    def run(self) -> None:
        try:
            for chunk in self.container.logs(stream=True, follow=True):  # attaching misses one that has ended
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            self.status = int(self.container.wait()["StatusCode"])
        except Exception as error:  # of the SDK, or of the libraries under it
            gone = getattr(error, "status_code", None) == 404
            self.status = 128 + signal.SIGKILL if gone else 1
            why = "it was removed" if gone else "its Docker engine does not answer"
            sys.stderr.write(f"the container can't be followed any more: {why}\n")


def find(client: Any, name: str) -> Any:
    """The container, None if there is none."""
    import docker.errors

    with contextlib.suppress(docker.errors.NotFound):
        return client.containers.get(name)
    return None


def wait_for_start(client: Any, name: str, parent: int) -> Any:
    """The container once it has been started; None where this process has to end before."""
    while True:
        container = find(client, name)
        if container is not None and container.status != "created":
            return container
        received = signal.sigtimedwait(SIGNALS, APPEAR_WATCH_S)
        if (received and received.si_signo != signal.SIGUSR1) or os.getppid() != parent:
            return None


def watch(follower: Follower, parent: int) -> int | None:
    """Wait until the container ends by itself, and return its exit status, or has to end, and return None."""
    import docker.errors

    while follower.is_alive():
        received = signal.sigtimedwait(SIGNALS, WATCH_S)
        number = received.si_signo if received else None
        if number == signal.SIGUSR1:
            parent = 0
        elif number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(docker.errors.DockerException, OSError):  # gone, or its engine is: seen by removal
                follower.container.stop(timeout=GRACE_S)
            return None
        if parent and os.getppid() != parent:
            return None
    return follower.status


def main() -> int:
    parent, name, record = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    client = open_client(engine_address())
    container = wait_for_start(client, name, parent)
    if container is None:
        deadline = time.monotonic() + APPEAR_S
        while (container := find(client, name)) is None and time.monotonic() < deadline:
            time.sleep(APPEAR_WATCH_S)
        if container is not None:
            remove_container(container)
        return 0
    follower = Follower(container)
    follower.start()
    status = None
    try:
        status = watch(follower, parent)
    finally:
        removed = remove_container(container)
        follower.join(1)
        if removed:
            close_record(record, os.getpid(), status)
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
