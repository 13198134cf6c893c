"""A tritonserver on this machine, from the nvidia-pytriton wheel: started, watched and stopped."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from repo_builder.errors import ServerError, UsageError
from repo_builder.servers import supervisor
from repo_builder.servers.base import ModelState, ModelStatus, ServerOptions
from repo_builder.servers.installation import Installation, RunDirectory, find_installation, make_run_directory
from repo_builder.servers.load_errors import explain, reasons_in_log
from repo_builder.servers.ports import Ports, reserve, resolve_host
from repo_builder.servers.records import ServerRecord, record_path, start_time, state_folder, write_record

STOP_S = 5.0
READINESS_INTERVAL_S = 0.05
ATTEMPTS = 3  # a free port may be taken by another process while models load
KEPT_LOGS = 20


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
        raise no_model_error(states)
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


class PortTakenError(ServerError):
    """A port that was free before the models were loaded isn't any more."""


class LocalServer:
    """A tritonserver that this process started; a :class:`repo_builder.servers.base.Server`."""

    def __init__(
        self, repository: Path, options: ServerOptions, installation: Installation, ports: Ports, address: str
    ) -> None:
        reachable = "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104
        self.repository = repository
        self.url = f"http://{reachable}:{ports.http}"
        self.grpc_url = f"{reachable}:{ports.grpc}"
        self.metrics_url = f"http://{reachable}:{ports.metrics}/metrics"
        self.http_port = ports.http
        self.version = "unknown"
        self.log_file = options.log_file or _new_log_file(ports.http)
        self.detached = False
        self._timeout_s = options.timeout_s
        self._lock = threading.Lock()
        self._owner = os.getpid()
        shm_prefix = f"repo_builder_{secrets.token_hex(8)}_"
        run_directory = make_run_directory(installation, shm_prefix)
        self._files = (run_directory.path, shm_prefix, record_path(ports.http))
        command = _command(installation, run_directory, shm_prefix, repository, options, ports, address)
        self._process = self._launch(command, run_directory)
        atexit.register(self._stop_at_exit)

    def _launch(self, command: list[str], run_directory: RunDirectory) -> subprocess.Popen[bytes]:
        watcher = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), *map(str, self._files)]
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            return subprocess.Popen(
                [*watcher, *command],
                env=run_directory.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=run_directory.path,
                start_new_session=True,  # Ctrl-C in the terminal is ours to handle
            )

    @property
    def pid(self) -> int:
        """The process id of the supervisor, which ends when the server has ended."""
        return self._process.pid

    @property
    def models(self) -> tuple[ModelStatus, ...]:
        """Every model version the server knows, with its state; raises ServerError if the server doesn't answer."""
        return model_states(self.url, self.log_file)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the server ends; return its exit status (128 + N after signal N), None after ``timeout`` s."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        return status if status >= 0 else 128 - status

    def stop(self) -> None:
        """Stop the server, once it has answered the requests in flight or after 3.5 s.

        When this returns its processes and shared memory are gone.  Safe to call again and from any thread.
        """
        with self._lock:
            atexit.unregister(self._stop_at_exit)
            if self._process.poll() is None:
                self._process.terminate()
                if self.wait(STOP_S) is None:
                    self._process.kill()
                    self._process.wait()
            supervisor.remove_files(*self._files, self.pid)  # in case the supervisor itself was killed

    def detach(self) -> None:
        """Let the server outlive this process."""
        self._process.send_signal(signal.SIGUSR1)
        self.detached = True
        atexit.unregister(self._stop_at_exit)
        write_record(self.record())

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner:  # not in a forked child
            self.stop()

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.detached:
            self.stop()

    def wait_until_ready(self) -> None:
        """Return when HTTP answers, which Triton lets happen after the last model is loaded or refused."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            status = self.wait(READINESS_INTERVAL_S)
            if status is not None:
                raise self._start_error(status)
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.version = _request("GET", self.url, "/v2")["version"]
                break
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server is not ready after {self._timeout_s:g} s", f"see its log in {self.log_file}"
                )
        write_record(self.record())

    def record(self) -> ServerRecord:
        """What other processes need to know to find and stop this server."""
        return ServerRecord(
            pid=self.pid,
            start_time=start_time(self.pid) or 0,
            url=self.url,
            grpc_url=self.grpc_url,
            metrics_url=self.metrics_url,
            http_port=self.http_port,
            repository=str(self.repository),
            version=self.version,
            log_file=str(self.log_file),
            detached=self.detached,
        )

    def _start_error(self, status: int) -> ServerError:
        log = self.log_file.read_text(encoding="utf-8", errors="replace")
        if "already in use" in log or "Address already in use" in log:
            return PortTakenError(
                "a port was taken by another process while the models were loaded", "start the server again"
            )
        errors = [line.partition("] ")[2] for line in log.splitlines() if line.startswith("E")]
        ending = f"signal {status - 128}" if status > 128 else f"exit status {status}"
        last = f": {errors[-1].strip(chr(34))}" if errors else ""
        return ServerError(f"tritonserver ended at its start with {ending}{last}", f"see its log in {self.log_file}")


def checked_repository(root: Path, options: ServerOptions) -> Path:
    """Return the absolute path of ``root`` if it is a folder of models that has the ones asked for."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UsageError(f"{root} {what}", "repo-builder add MODEL.onnx makes a repository; --repository names one")
    names = sorted(entry.name for entry in root.iterdir() if _looks_like_model(entry))
    if not names:
        raise UsageError(f"{root} has no models", f"repo-builder add MODEL.onnx --repository {root} puts one there")
    for name in options.models:
        if name not in names:
            raise UsageError(f"{root} has no model {name!r}", f"--model takes one of {', '.join(names)}")
    if options.models and options.poll_seconds is not None:
        raise UsageError("Triton can't poll for chosen models only", "leave out --poll or --model")
    if options.poll_seconds is not None and options.poll_seconds < 1:
        raise UsageError(f"can't poll every {options.poll_seconds} seconds", "--poll takes whole seconds from 1")
    return root.resolve()


def _looks_like_model(entry: Path) -> bool:
    if not entry.is_dir() or entry.name.startswith("."):
        return False
    return (entry / "config.pbtxt").exists() or any(child.name.isdigit() for child in entry.iterdir())


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
        "backend-config": f"python,shm-region-prefix-name={shm_prefix}",
        "exit-on-error": "false",  # one broken model must not hide the good ones,
        "strict-readiness": "false",  # neither at the start nor in /v2/health/ready
        "exit-timeout-secs": int(supervisor.GRACE_S),
        "log-verbose": options.log_verbose,
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
        _is_complete(entry) for entry in repository.iterdir() if _looks_like_model(entry)
    ):
        flags["disable-auto-complete-config"] = None  # saves the process a model that would complete nothing
    if options.poll_seconds is not None:
        flags |= {"model-control-mode": "poll", "repository-poll-secs": options.poll_seconds}
    if options.models:
        flags["model-control-mode"] = "explicit"
    chosen = [f"--load-model={name}" for name in options.models]
    given = (f"--{name}" if value is None else f"--{name}={value}" for name, value in flags.items())
    return [str(installation.binary), *given, *chosen]


def _new_log_file(http_port: int) -> Path:
    folder = state_folder() / "logs"
    folder.mkdir(exist_ok=True)
    for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return folder / f"tritonserver-{http_port}.log"


def model_states(url: str, log_file: Path) -> tuple[ModelStatus, ...]:
    """Return the state of every model version that the server at ``url`` knows, by name and version."""
    try:
        index = _request("POST", url, "/v2/repository/index")
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"the server at {url} does not answer: {error}", f"see its log in {log_file}") from None
    unread = {}
    with contextlib.suppress(OSError):
        unread = reasons_in_log(log_file.read_text(encoding="utf-8", errors="replace"))
    named = {entry["name"] for entry in index}
    entries = [*index, *({"name": name} for name in unread if name not in named)]
    states = [_status(entry, unread) for entry in entries]
    return tuple(sorted(states, key=lambda status: (status.name, status.version or 0)))


def _status(entry: dict[str, str], unread: dict[str, str]) -> ModelStatus:
    name, version = entry["name"], entry.get("version")
    state = ModelState(entry.get("state", "UNAVAILABLE"))
    number = int(version) if version else None
    if state is not ModelState.UNAVAILABLE:
        return ModelStatus(name, number, state)
    explanation = explain(name, entry.get("reason") or unread.get(name, "it is not loaded"))
    return ModelStatus(name, number, state, explanation.cause, explanation.hint)


def no_model_error(broken: Sequence[ModelStatus]) -> ServerError:
    """The error of a server that could load none of its models: the first one's cause and hint."""
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return ServerError(f"no model could be loaded: {broken[0].name}: {broken[0].cause}{more}", broken[0].hint)


def _request(method: str, url: str, path: str) -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise http.client.HTTPException(f"{method} {path} answered {response.status}")
    return json.loads(body)
