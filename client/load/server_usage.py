"""Where the server is, and what its processes and GPUs use while a load is on it."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from client.errors import ClientError, ConnectionFailed
from client.load.server_metrics import METRICS_PORT, GpuMeter, GpuUsage, metrics_url
from client.load.server_process import ProcessMeter, ProcessUsage, ServerProcess, find_server, is_local
from client.transport import Url

_INTERVAL_S: Final = 0.5


@dataclass(frozen=True)
class Whereabouts:
    """Where the server runs: its ``process`` when that is on this machine and can be seen, else ``unseen`` says why.

    ``metrics`` is where its GPUs' metrics are, None when it exports none.
    """

    process: ServerProcess | None
    unseen: str
    metrics: Url | None


@dataclass(frozen=True)
class ServerUsage:
    """What the server used over a window; None and empty where that can't be told."""

    process: ProcessUsage | None = None
    gpus: tuple[GpuUsage, ...] = field(default=())


def locate(url: Url, family: int, host: str, port: int, metrics: str | None = None) -> Whereabouts:
    """Find the server's process and the GPUs' metrics; :class:`ClientError` if there are none at a given URL.

    Without ``metrics``, the metrics' port is the one on the process's command line, else Triton's 8002 beside its 8000.
    """
    process, unseen = None, ""
    if not is_local(family, host):
        unseen = "the server is not on this machine: the CPU and memory that it used are not known"
    else:
        process = find_server(family, host, port)
        if process is None:
            unseen = "the server's process can't be seen (another user's, or in a container): its CPU and memory"
            unseen += " are not known"
    return Whereabouts(process, unseen, _metrics(url, process, metrics))


def found_anew(where: Whereabouts, family: int, host: str, port: int) -> Whereabouts:
    """The same with the process that listens there now: a server that was started anew has another."""
    return where if where.unseen else replace(where, process=find_server(family, host, port))


def _metrics(url: Url, process: ServerProcess | None, given: str | None) -> Url | None:
    """Where metrics of at least one GPU are."""
    if given is not None:
        found = metrics_url(given)
    elif process is not None and process.name == "tritonserver":
        found = Url("http", url.host, _port(process, "metrics-port") or METRICS_PORT, "/metrics")
    elif url.port == 8000:
        found = Url("http", url.host, METRICS_PORT, "/metrics")
    else:
        return None
    meter = GpuMeter(found)
    try:
        return found if meter.fetch() else None
    except ClientError as error:
        if given is None:
            return None
        raise ConnectionFailed(f"{found}: {error.message}", "--metrics-url http://HOST:8002/metrics") from error
    finally:
        meter.close()


def grpc_port(where: Whereabouts) -> int | None:
    """The port of gRPC on the command line of the server's process; None without one, or if it can't be seen."""
    process = where.process
    return _port(process, "grpc-port") if process is not None and process.name == "tritonserver" else None


def _port(process: ServerProcess, flag: str) -> int | None:
    given = process.flags(flag)
    return int(given[-1]) if given and given[-1].isdecimal() else None


class Watch:
    """Reads what the server uses twice a second while the ``with`` block lasts; ``usage`` is the result.

    ``server_ended``: the server's process ended meanwhile, and ``usage`` is of a part of the time at most.
    """

    def __init__(self, where: Whereabouts) -> None:
        self._process = ProcessMeter(where.process) if where.process else None
        self._gpus = GpuMeter(where.metrics) if where.metrics else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self.usage = ServerUsage()

    def __enter__(self) -> Watch:
        self._began = time.perf_counter()
        self._read(search=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._read(search=True)
        seconds = time.perf_counter() - self._began
        self.usage = ServerUsage(
            self._process.usage(seconds) if self._process else None, self._gpus.usage() if self._gpus else ()
        )
        if self._gpus:
            self._gpus.close()

    @property
    def server_ended(self) -> bool:
        return self._process is not None and self._process.ended

    def _go_on(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._read(search=False)

    def _read(self, *, search: bool) -> None:
        if self._process:
            self._process.read(search=search)
        if self._gpus:
            self._gpus.read()


def model_files(process: ServerProcess | None, name: str, version: str) -> dict[str, str] | None:
    """SHA-256 of every file of a model's version, by its path in the version's folder; not of what Python compiled.

    None when the folder can't be read: the server or its repository is not on this machine.
    """
    if process is None:
        return None
    for repository in (*process.flags("model-repository"), *process.flags("model-store")):
        folder = process.path(repository) / name / version
        try:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = {path: path.relative_to(folder) for path in files}
            found = {str(name): _sha256(path) for path, name in names.items() if "__pycache__" not in name.parts}
        except OSError:
            continue
        if found:
            return found
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
