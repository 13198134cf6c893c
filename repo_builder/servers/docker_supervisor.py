"""A process of its own that follows one container and sees to it that nothing of it is left behind.

    python -m repo_builder.servers.docker_supervisor PARENT_PID CONTAINER_ID RECORD

The container's output is copied to stdout.  As for local servers (:mod:`repo_builder.servers.supervisor`):

SIGTERM, SIGINT  stop the container: Triton finishes the requests in flight; remove it, exit 0
SIGUSR1          the server is detached: stop watching the parent
parent gone      kill and remove the container at once
container ends   remove it, exit with its status
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from repo_builder.servers.docker import GRACE_S

WATCH_S = 0.2
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
        except Exception as error:  # the engine went away, or the container was removed by someone else
            sys.stderr.write(f"the container can't be followed any more: {error}\n")


def watch(follower: Follower, parent: int) -> int:
    """Wait until the container ends or has to; return the exit status of this process."""
    while follower.is_alive():
        received = signal.sigtimedwait(SIGNALS, WATCH_S)
        number = received.si_signo if received else None
        if number == signal.SIGUSR1:
            parent = 0
        elif number in (signal.SIGTERM, signal.SIGINT):
            follower.container.stop(timeout=GRACE_S)
            return 0
        if parent and os.getppid() != parent:
            return 0
    return follower.status


def main() -> int:
    import docker

    parent, container_id, record = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    container = docker.from_env().containers.get(container_id)
    follower = Follower(container)
    follower.start()
    try:
        return watch(follower, parent)
    finally:
        with contextlib.suppress(docker.errors.DockerException, OSError):
            container.remove(force=True, v=True)
        follower.join(1)
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(record.read_text(encoding="utf-8"))["pid"] == os.getpid():
                record.unlink()


if __name__ == "__main__":
    sys.exit(main())
