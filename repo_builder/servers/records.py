"""Which servers run: one small file a server in the user's state folder, trusted only after a look at /proc.

The file of a server that ends without being asked to stays, with how it ended, until a stop or another server comes.
Machines and containers may share that folder and don't see each other's processes: each reads its own files only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from repo_builder.errors import ServerError, UsageError
from repo_builder.folders import state_folder
from repo_builder.servers.engine import Engine

STOP_S = 6.0  # a supervisor takes at most 5
FOLLOW_S = 0.2


class ServerState(str, Enum):
    """Whether a server runs; ``UNSUPERVISED`` is one in a container that may run on, but nobody looks after it."""

    RUNNING = "running"
    ENDED = "ended"
    UNSUPERVISED = "unsupervised"


@dataclass(frozen=True)
class ServerRecord:
    """A server: its supervisor's process id and start time (clock ticks after boot), where it is, and how it ended."""

    pid: int
    start_time: int
    url: str
    grpc_url: str
    metrics_url: str
    http_port: int
    repository: str
    version: str
    log_file: str
    detached: bool
    poll_seconds: int | None = None
    container: str | None = None  # its name; None: no container
    container_id: str | None = None
    image: str | None = None
    docker_host: str | None = None  # where the container's engine is
    exit_status: int | None = None  # 128 + N after signal N; None: it runs, or its supervisor is lost
    ended_at: str | None = None  # ISO 8601

    @property
    def engine(self) -> Engine:
        return Engine.DOCKER if self.container_id else Engine.LOCAL

    @property
    def place(self) -> str:
        """What runs it, for a person."""
        if self.container_id:
            return f"container {self.container} ({self.container_id}) of {self.image}"
        return f"pid {self.pid}"

    @property
    def ports(self) -> tuple[int, int, int]:
        """Of HTTP, gRPC and metrics."""
        grpc, metrics = (int(url.rpartition(":")[2].partition("/")[0]) for url in (self.grpc_url, self.metrics_url))
        return self.http_port, grpc, metrics


def record_path(http_port: int | str) -> Path:
    """The file of the server on ``http_port``; its name also says who sees the process."""
    folder = state_folder() / "servers"
    folder.mkdir(exist_ok=True)
    return folder / f"{http_port}@{_where()}.json"


def _where() -> str:
    """Where process ids mean what they mean to this process: this boot and PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}-{Path('/proc/self/ns/pid').readlink().name.strip('pid:[]')}"


def write_record(record: ServerRecord) -> None:
    """Write ``record`` for other processes; raises ServerError where it can't be written."""
    path = record_path(record.http_port)
    written = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        written.write_text(json.dumps(asdict(record), indent=2), encoding="utf-8")
        written.replace(path)
    except OSError as error:
        written.unlink(missing_ok=True)
        why = f"{path.parent} can't be written, where servers are noted: {error.strerror}"
        raise ServerError(why, "free some space there, or set XDG_STATE_HOME to a folder elsewhere") from None


def known_servers() -> list[ServerRecord]:
    """Return this user's servers that run here or ended without being asked to, by HTTP port."""
    found, pattern = [], record_path("*")
    for path in pattern.parent.glob(pattern.name):
        try:
            found.append(ServerRecord(**json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError):
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda record: record.http_port)


def running_servers() -> list[ServerRecord]:
    """Return the servers of this user that run here, by HTTP port."""
    return [record for record in known_servers() if is_running(record)]


def forget_ended(http_port: int, repository: Path) -> None:
    """Remove the records of ended servers that a new one follows: on its port, or of its repository."""
    for record in known_servers():
        follows = record.http_port == http_port or record.repository == str(repository)
        if follows and not is_running(record) and not is_orphan(record):
            record_path(record.http_port).unlink(missing_ok=True)


def server_on(port: int) -> ServerRecord | None:
    """This user's server that has ``port``, for HTTP, gRPC or metrics."""
    there = (record for record in known_servers() if is_running(record) or is_orphan(record))
    return next((record for record in there if port in record.ports), None)


def servers_of(repository: Path) -> list[ServerRecord]:
    """This user's servers of a repository."""
    return [record for record in running_servers() if record.repository == str(repository.resolve())]


def select_servers(servers: list[ServerRecord], http_port: str) -> list[ServerRecord]:
    """Return the server on ``http_port``, every one for "all", the only one for "": of those that run, if any does.

    Raises:
        UsageError: not a port, or there are several and none is named.
        ServerError: no such server.
    """
    if http_port == "all":
        return servers
    if not http_port:
        running = [record for record in servers if is_running(record)]
        chosen = running or servers
        if len(chosen) > 1:
            ports = ", ".join(str(record.http_port) for record in chosen)
            what = f"{len(chosen)} servers {'run' if running else 'have ended'}"
            raise UsageError(what, f"--http-port takes one of {ports}, or all")
        if not chosen:
            raise ServerError("no server runs", "repo-builder serve starts one")
        return chosen
    if not http_port.isdecimal():
        raise UsageError(f"{http_port!r} is not a port", "--http-port takes a number or all")
    chosen = [record for record in servers if record.http_port == int(http_port)]
    if not chosen:
        raise ServerError(f"no server of yours runs on port {http_port}", "repo-builder status shows those that do")
    return chosen


def stop_server(record: ServerRecord) -> bool:
    """Stop ``record``'s server and wait until it is gone; of one that has ended, clear away what is left.

    Returns whether there was one to stop.

    Raises:
        RepoBuilderError: it is another user's, or still there after six seconds; or the container that a lost
            supervisor left can't be removed: then the record stays.
    """
    stopped, path = is_running(record), record_path(record.http_port)
    try:
        _signal(record, signal.SIGTERM)
    except PermissionError:
        raise ServerError(
            f"the server at {record.url} is not yours to stop (pid {record.pid})", "its user or root can"
        ) from None
    deadline = time.monotonic() + STOP_S
    while is_running(record):
        if time.monotonic() > deadline:
            raise ServerError(f"the server at {record.url} does not stop", f"kill -9 {record.pid}")
        time.sleep(0.02)
    if is_orphan(record) and path.exists():  # a supervisor removes both
        from repo_builder.servers.docker import remove_left

        stopped = remove_left(record) or stopped
    path.unlink(missing_ok=True)
    return stopped


def start_time(pid: int) -> int | None:
    """Return when process ``pid`` started, in clock ticks after boot, None if there is none (or only its zombie)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()  # proc(5): the name in parentheses may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def process_name() -> str:
    """A name of this process that no other one ever has, for :func:`has_ended`."""
    return f"{os.getpid()}-{start_time(os.getpid())}@{_where()}"


def has_ended(name: str) -> bool:
    """Whether the process with that :func:`process_name` ran where it could be seen from here, and runs no more."""
    process, _, where = name.partition("@")
    pid, _, started = process.partition("-")
    return where == _where() and pid.isdecimal() and str(start_time(int(pid))) != started


def is_running(record: ServerRecord) -> bool:
    """Whether the process is there and the same one: process ids are used again."""
    return start_time(record.pid) == record.start_time


def is_orphan(record: ServerRecord) -> bool:
    """Whether it is in a container and lost its supervisor, killed or without an engine: it may still run."""
    return bool(record.container_id) and record.ended_at is None and not is_running(record)


def server_state(record: ServerRecord) -> ServerState:
    if is_running(record):
        return ServerState.RUNNING
    return ServerState.UNSUPERVISED if is_orphan(record) else ServerState.ENDED


def _signal(record: ServerRecord, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(record.pid)  # first the handle, then the look: the id can't change hands between
        try:
            if is_running(record):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def follow_log(record: ServerRecord, lines: int = 0, *, follow: bool = False) -> Iterator[str]:
    """Yield the last ``lines`` lines of a server's log, all for 0, and with ``follow`` those written until it ends.

    Raises:
        ServerError: the log can't be read.
    """
    try:
        with Path(record.log_file).open(encoding="utf-8", errors="replace") as log:
            written = log.read().splitlines()
            yield from written[-lines:] if lines else written
            line, running = "", follow
            while running:
                running = is_running(record)  # asked before reading, so that the last lines are not lost
                while part := log.readline():
                    line += part
                    if line.endswith("\n"):
                        yield line[:-1]
                        line = ""
                time.sleep(FOLLOW_S)
    except OSError as error:
        raise ServerError(
            f"{record.log_file} can't be read: {error.strerror}", "--log-file, when the server starts, names another"
        ) from None
