"""A tritonserver on this machine, from the nvidia-pytriton wheel: started, watched and stopped."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repo_builder.servers import supervisor
from repo_builder.servers.base import ServerOptions
from repo_builder.servers.installation import (
    Installation,
    RunDirectory,
    find_installation,
    make_run_directory,
    new_shm_prefix,
)
from repo_builder.servers.ports import Ports, reserve, resolve_host
from repo_builder.servers.records import record_path
from repo_builder.servers.supervised import (
    PortTakenError,
    SupervisedServer,
    checked_repository,
    common_flags,
    load_error,
    looks_like_model,
)

_SHM_GROWTH = 16 << 20  # bytes, holes until used; the default of 1 MiB maps the whole region anew at every step
ATTEMPTS = 3  # a free port may be taken by another process while models load


def serve(
    repository: Path | str,
    *,
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    host: str = "127.0.0.1",
    models: Sequence[str] = (),
    poll_seconds: int | None = None,
    log_verbose: int = 0,
    log_file: Path | str | None = None,
    timeout_s: float = 600.0,
) -> LocalServer:
    """Serve ``repository``; return when every model is loaded or refused.

    ::

        with repo_builder.serve("model_repository") as server:
            Client(server.url).infer(...)

    The server stops at the end of the ``with`` block, by ``stop()``, and with this process however it ends.  A port
    of 0 is any free one.  Models that can't be loaded don't hinder the others: see ``server.models``.

    Raises:
        MissingExtraError: nvidia-pytriton or onnxruntime is not installed.
        UsageError: the folder is no model repository, a model is not in it, an option can't be right.
        ServerError: a port is in use, no model could be loaded, or the server didn't start.
    """
    options = ServerOptions(
        http_port, grpc_port, metrics_port, host, tuple(models), poll_seconds, log_verbose,
        Path(log_file) if log_file is not None else None, timeout_s,
    )  # fmt: skip
    server = start(repository, options)
    states = server.models
    if not any(status.ready for status in states):
        server.stop()
        raise load_error(states)
    return server


def start(repository: Path | str, options: ServerOptions) -> LocalServer:
    """Start a server as :func:`serve` does, but let it run even when no model could be loaded."""
    root = checked_repository(Path(repository), options)
    installation = find_installation()
    address = resolve_host(options.host)
    wanted = Ports(options.http_port, options.grpc_port, options.metrics_port)
    for attempt in range(ATTEMPTS):
        server = LocalServer(root, options, installation, reserve(wanted, address), address)
        try:
            server.wait_until_ready()
        except PortTakenError:
            server.stop()
            if attempt == ATTEMPTS - 1 or 0 not in (wanted.http, wanted.grpc, wanted.metrics):
                raise
            continue
        except BaseException:
            server.stop()
            raise
        return server
    raise AssertionError  # the last attempt returns or raises


class LocalServer(SupervisedServer):
    """A tritonserver that this process started."""

    def __init__(
        self, repository: Path, options: ServerOptions, installation: Installation, ports: Ports, address: str
    ) -> None:
        super().__init__(repository, options, ports, address)
        shm_prefix = new_shm_prefix()
        run_directory = make_run_directory(installation, shm_prefix)
        self._files = (run_directory.path, shm_prefix, record_path(ports.http))
        watcher = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), *map(str, self._files)]
        command = _command(installation, run_directory, shm_prefix, repository, options, ports, address)
        try:
            self._supervise([*watcher, *command], run_directory.environment, run_directory.path, run_directory.lock)
        finally:
            os.close(run_directory.lock)

    def _remove_left(self) -> None:
        supervisor.remove_files(*self._files, self.pid)


def _is_complete(model: Path) -> bool:
    """Whether a model's config.pbtxt says all that Triton needs, inputs and outputs."""
    try:
        text = (model / "config.pbtxt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return all(re.search(rf"^\s*{field}\s*:?\s*[\[{{]", text, re.MULTILINE) for field in ("input", "output"))


def _command(
    installation: Installation,
    run_directory: RunDirectory,
    shm_prefix: str,
    repository: Path,
    options: ServerOptions,
    ports: Ports,
    address: str,
) -> list[str]:
    flags: dict[str, Any] = {
        "model-repository": repository,
        "backend-directory": run_directory.backends,
        "exit-timeout-secs": int(supervisor.GRACE_S),
        "http-address": address,
        "http-port": ports.http,
        "grpc-address": address,
        "grpc-port": ports.grpc,
        "metrics-address": address,
        "metrics-port": ports.metrics,
    }
    if not Path("/dev/nvidiactl").exists():
        flags["allow-gpu-metrics"] = "false"
    if options.poll_seconds is None and all(
        _is_complete(entry) for entry in repository.iterdir() if looks_like_model(entry)
    ):
        flags["disable-auto-complete-config"] = None  # saves the process a model that would complete nothing
    given = (f"--{name}" if value is None else f"--{name}={value}" for name, value in flags.items())
    shared_memory = {"region-prefix-name": shm_prefix, "growth-byte-size": _SHM_GROWTH}
    backends = (f"--backend-config=python,shm-{name}={value}" for name, value in shared_memory.items())
    return [str(installation.binary), *given, *backends, *common_flags(options)]
