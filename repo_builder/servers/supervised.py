"""What servers have in common that run under a supervisor process: asking, waiting, stopping, detaching."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

from repo_builder.errors import ServerError, UsageError
from repo_builder.folders import state_folder
from repo_builder.repository import Repository, is_stray
from repo_builder.servers.base import ModelState, ModelStatus, ServerOptions
from repo_builder.servers.load_errors import explain
from repo_builder.servers.ports import Ports, check_numbers
from repo_builder.servers.records import ServerRecord, forget_ended, start_time, write_record
from repo_builder.servers.triton_log import last_words, loaded_models, plan_errors, reasons, still_loading

STOP_S = 5.0
READINESS_INTERVAL_S = 0.05
KEPT_LOGS = 20
_UNLOADED = "unloaded"  # in Triton's, of what it had loaded and then took out
_NOT_LOADED = "it is not loaded"  # in our words: Triton lists what came after its start without a state or a reason

AnyServer = TypeVar("AnyServer", bound="SupervisedServer")


class PortTakenError(ServerError):
    """A port that was free before the models were loaded isn't any more."""


class SupervisedServer:
    """A Triton server whose supervisor process this process started.

    ``url`` and ``metrics_url`` are http:// URLs, ``grpc_url`` is host:port as gRPC clients want it.

    The supervisor ends when the server has ended, and stops the server when this process is gone or it gets SIGTERM.
    """

    def __init__(self, repository: Path, options: ServerOptions, ports: Ports, address: str) -> None:
        reachable = "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104
        self.repository = repository
        self.url = f"http://{reachable}:{ports.http}"
        self.grpc_url = f"{reachable}:{ports.grpc}"
        self.metrics_url = f"http://{reachable}:{ports.metrics}/metrics"
        self.http_port = ports.http
        self.version = "unknown"
        forget_ended(ports.http, repository)
        self.log_file = (options.log_file or _new_log_file(ports.http)).absolute()
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("ab") as log:
                log.write(b"\n")  # a full disk takes new files, but nothing in them
        except OSError as error:
            if options.log_file is None:
                self.log_file.unlink(missing_ok=True)
            why = f"the log can't go to {self.log_file}: {error.strerror}"
            raise UsageError(why, "free some space there; or --log-file takes a file that can be written") from None
        self.detached = False
        self._timeout_s = options.timeout_s
        self._poll_seconds = options.poll_seconds
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def _supervise(
        self,
        command: Sequence[str],
        environment: dict[str, str] | None = None,
        cwd: Path | str = "/",
        *descriptors: int,
    ) -> None:
        """Start the supervisor, which inherits ``descriptors``; the server's log is its output."""
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C in the terminal is ours to handle
            )
        atexit.register(self._stop_at_exit)

    @property
    def pid(self) -> int:
        """The process id of the supervisor."""
        return self._process.pid

    @property
    def models(self) -> tuple[ModelStatus, ...]:
        """Every model version the server knows, with its state; raises ServerError if the server doesn't answer."""
        return model_states(self.url, self.log_file, self.repository)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the server ends; return its exit status (128 + N after signal N), None after ``timeout`` s."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        return status if status >= 0 else 128 - status

    def end_error(self, status: int) -> ServerError:
        """The error of a server that ended by itself: :meth:`wait` returned ``status``."""
        return ServerError(f"tritonserver {ending(status)}", f"see its log in {self.log_file}")

    def stop(self) -> None:
        """Stop the server, once it has answered the requests in flight or after some seconds.

        When this returns nothing of it is left.  Safe to call again and from any thread.
        """
        with self._lock:
            atexit.unregister(self._stop_at_exit)
            if self._process.poll() is None:
                self._process.terminate()
                if self.wait(STOP_S) is None:
                    self._process.kill()
                    self._process.wait()
            self._remove_left()

    def _remove_left(self) -> None:
        """Remove what the supervisor leaves when it is killed itself."""

    def detach(self) -> None:
        """Let the server outlive this process."""
        self._process.send_signal(signal.SIGUSR1)
        self.detached = True
        atexit.unregister(self._stop_at_exit)
        write_record(self.record())

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner:  # not in a forked child
            self.stop()

    def __enter__(self: AnyServer) -> AnyServer:  # noqa: PYI019  (typing.Self is not in Python 3.10)
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
                self.version = request_json("GET", self.url, "/v2")["version"]
                break
            if time.monotonic() > deadline:
                loading = still_loading(self.log_file.read_text(encoding="utf-8", errors="replace"))
                raise ServerError(
                    f"the server is not ready after {self._timeout_s:g} s"
                    + (f", still loading {', '.join(loading)}" if loading else ""),
                    f"--model NAME leaves models out; see the server's log in {self.log_file}",
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
            poll_seconds=self._poll_seconds,
        )

    def _start_error(self, status: int) -> ServerError:
        log = self.log_file.read_text(encoding="utf-8", errors="replace")
        if "already in use" in log or "Address already in use" in log:
            return PortTakenError(
                "a port was taken by another process while the models were loaded", "start the server again"
            )
        how = f"signal {status - 128}" if status > 128 else f"exit status {status}"
        said = last_words(log)
        last = f": {said}" if said else ""
        return ServerError(f"tritonserver ended at its start with {how}{last}", f"see its log in {self.log_file}")


def ending(status: int) -> str:
    """How a server ended whose exit status is ``status``."""
    return f"was killed by signal {status - 128}" if status > 128 else f"ended with exit status {status}"


def last_log(http_port: str) -> Path | None:
    """The newest log that a server on ``http_port``, on any for "" or "all", has where logs go by default."""
    port = http_port if http_port.isdecimal() else "*"
    return max((state_folder() / "logs").glob(f"tritonserver-{port}.log"), key=_written, default=None)


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _new_log_file(http_port: int) -> Path:
    folder = state_folder() / "logs"
    folder.mkdir(exist_ok=True)
    for old in sorted(folder.glob("*.log"), key=_written)[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return folder / f"tritonserver-{http_port}.log"


def checked_repository(root: Path, options: ServerOptions) -> Path:
    """Return the absolute path of ``root`` if it is a folder of models that has the ones asked for.

    Raises:
        UsageError: it isn't or hasn't, or an option can't be right whatever the machine.
    """
    check_numbers(Ports(options.http_port, options.grpc_port, options.metrics_port))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UsageError(
            f"the repository {root} {what}", "repo-builder add MODEL.onnx makes a repository; --repository names one"
        )
    for link in Repository(root).dangling():
        raise UsageError(
            f"{link} leads to {link.readlink()}, which is not there, and Triton then reads no model at all",
            f"rm {link}, or put back what it leads to",
        )
    names = sorted(entry.name for entry in root.iterdir() if looks_like_model(entry))
    if not names:
        if any(child.name.isdigit() for child in root.iterdir()):
            hint = f"--repository {root.resolve().parent} --model {root.resolve().name}"
            raise UsageError(f"{root} is a model, not a repository of models", hint)
        raise UsageError(f"{root} has no models", f"repo-builder add MODEL.onnx --repository {root} puts one there")
    for name in options.models:
        if name not in names:
            raise UsageError(f"{root} has no model {name!r}", f"--model takes one of {', '.join(names)}")
    if options.models and options.poll_seconds is not None:
        raise UsageError("Triton can't poll for chosen models only", "leave out --poll or --model")
    if options.poll_seconds is not None and options.poll_seconds < 1:
        raise UsageError(f"can't poll every {options.poll_seconds} seconds", "--poll takes whole seconds from 1")
    return root.resolve()


def looks_like_model(entry: Path) -> bool:
    if not entry.is_dir() or is_stray(entry.name):
        return False
    try:
        return (entry / "config.pbtxt").exists() or any(child.name.isdigit() for child in entry.iterdir())
    except PermissionError:  # the server will say so, and serve the others
        return True


def common_flags(options: ServerOptions) -> list[str]:
    """Flags of tritonserver that are the same wherever it runs."""
    flags: dict[str, object] = {
        "exit-on-error": "false",  # one broken model must not hide the good ones,
        "strict-readiness": "false",  # neither at the start nor in /v2/health/ready
        "log-verbose": options.log_verbose,
    }
    if options.poll_seconds is not None:
        flags |= {"model-control-mode": "poll", "repository-poll-secs": options.poll_seconds}
    if options.models:
        flags["model-control-mode"] = "explicit"
    chosen = [f"--load-model={name}" for name in options.models]
    return [*(f"--{name}={value}" for name, value in flags.items()), *chosen]


def model_states(url: str, log_file: Path, repository: Path) -> tuple[ModelStatus, ...]:
    """Return the state of every model version that the server at ``url`` knows, by name and version.

    Raises:
        ServerError: the server does not answer, or can't look into the repository.
    """
    log = ""
    with contextlib.suppress(OSError):
        log = log_file.read_text(encoding="utf-8", errors="replace")
    try:
        index = request_json("POST", url, "/v2/repository/index")
        listed = {entry["name"] for entry in index}
        removed = [state for name in loaded_models(log) if name not in listed for state in _removed(url, name)]
    except OSError as error:
        raise ServerError(f"the server at {url} does not answer: {error}", f"see its log in {log_file}") from None
    except http.client.HTTPException as error:
        if not repository.is_dir():
            what = f"{repository} is not there any more; what was loaded from it is still served"
            raise ServerError(what, "put it back, or repo-builder stop") from None
        what = f"the server at {url} can't tell its models: {error}"
        raise ServerError(what, f"mend that in the repository, or see its log in {log_file}") from None
    unread = {name: why for name, why in reasons(log).items() if os.path.lexists(repository / name)}
    plans = plan_errors(log)
    entries = [*index, *({"name": name} for name in unread if name not in listed)]
    if "MODE_EXPLICIT" in log:  # only some were asked for: Triton lists the others too, without a state or a reason
        entries = [entry for entry in entries if entry.keys() & {"state", "reason"} or entry["name"] in unread]
    entries = [entry for entry in entries if not is_stray(entry["name"])]  # a version is being published
    served = {entry["name"] for entry in entries if entry.get("state") == "READY"} - unread.keys()
    entries = [entry for entry in entries if not (entry.get("reason") == _UNLOADED and entry["name"] in served)]
    states = [_status(entry, unread, plans) for entry in entries]
    return tuple(sorted((*states, *removed), key=lambda status: (status.name, status.version or 0)))


def _removed(url: str, name: str) -> list[ModelStatus]:
    """The versions of a model that the server still has in memory; its index is of what is on disk."""
    try:
        versions = request_json("GET", url, f"/v2/models/{quote(name)}")["versions"]
    except http.client.HTTPException:
        return []
    cause = "it is not in the repository any more, and served until the server ends"
    hint = "repo-builder stop, then serve; or serve --poll SECONDS, which takes up changes"
    return [ModelStatus(name, int(version), ModelState.READY, cause, hint) for version in versions]


def _status(entry: dict[str, str], unread: Mapping[str, str], plans: Mapping[str, str]) -> ModelStatus:
    name, version = entry["name"], entry.get("version")
    state = ModelState(entry.get("state", "UNAVAILABLE"))
    number = int(version) if version else None
    if state is not ModelState.UNAVAILABLE:
        return ModelStatus(name, number, state)
    reason = entry.get("reason")
    if reason in {None, "", _UNLOADED}:
        reason = unread.get(name, reason or _NOT_LOADED)
    explanation = explain(name, f"{reason}: {plans[name]}" if plans.get(name) else reason)
    return ModelStatus(name, number, state, explanation.cause, explanation.hint)


def load_error(states: Sequence[ModelStatus]) -> ServerError:
    """The error of a server that could not load all of its models, or none: the first one's cause and hint."""
    broken = sorted((status for status in states if not status.ready), key=lambda status: not status.cause)
    cause = broken[0].cause or "it is still being loaded"  # as Triton has those that it tries again when it polls
    what = "no model" if len(broken) == len(states) else "not every model"
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    hint = broken[0].hint or "the server's log may tell more"
    return ServerError(f"{what} could be loaded: {broken[0].name}: {cause}{more}", hint)


def request_json(method: str, url: str, path: str) -> Any:
    """Send a request without a body and return the JSON of the answer.

    Raises:
        OSError, http.client.HTTPException: there is none, or it isn't 200.
    """
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        why = " ".join(body[:1000].decode(errors="replace").split())
        raise http.client.HTTPException(f"{method} {path} answered {response.status}: {why}")
    return json.loads(body)
