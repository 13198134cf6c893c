"""What is kept of a server that ends without being stopped, who shows it, and what clears it away."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from repo_builder.errors import MissingExtraError, ServerError
from repo_builder.servers import records
from repo_builder.servers.local import serve
from repo_builder.servers.records import (
    ServerRecord,
    has_ended,
    is_running,
    known_servers,
    process_name,
    record_path,
    running_servers,
    start_time,
    stop_server,
    write_record,
)
from tests.conftest import Cli
from tests.servers.repositories import write_identity
from tests.support import wait_for

pytestmark = pytest.mark.usefixtures("no_servers_left")

COMMAND = [sys.executable, "-m", "repo_builder"]
DETACHED = ["--detach", "--engine", "local", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_identity(tmp_path / "models", "good")
    return tmp_path / "models"


def detached(repository: Path) -> ServerRecord:
    started = run("serve", "-r", repository, *DETACHED, "--json")
    assert started.returncode == 0, started.stderr
    port = json.loads(started.stdout)["http_port"]
    return next(record for record in known_servers() if record.http_port == port)


def end(record: ServerRecord, number: signal.Signals = signal.SIGKILL) -> None:
    """Send the server itself a signal, as the kernel does where memory is short, and wait for its supervisor."""
    children = Path(f"/proc/{record.pid}/task/{record.pid}/children").read_text().split()
    (server,) = [pid for pid in children if b"bin/tritonserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(server), number)
    wait_for(lambda: not is_running(record))


def test_status_names_what_runs_a_server(repository: Path) -> None:
    record = detached(repository)
    assert f"{record.url}  tritonserver 2.51.0, local, pid {record.pid}, {repository}\n" in run("status").stdout
    (listed,) = json.loads(run("status", "--json").stdout)
    assert (listed["engine"], listed["state"], listed["container_state"]) == ("local", "running", None)
    assert [listed[key] for key in ("container", "container_id", "image", "exit_status", "ended_at")] == [None] * 5
    repository.rename(repository.with_name("elsewhere"))
    shown = run("status")
    assert f"\n  {repository} is not there any more; what was loaded from it is still served\n" in shown.stdout
    assert shown.stderr == "  hint: put it back, or repo-builder stop\n"
    assert run("stop").stderr == f"stopped {record.url} (pid {record.pid})\n"


def test_a_detached_server_that_died_is_told_until_it_is_stopped(repository: Path) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    record = detached(repository)
    log = run("logs").stdout
    end(record)

    (listed,) = json.loads(run("status", "--json").stdout)
    assert (listed["url"], listed["state"], listed["exit_status"]) == (record.url, "ended", 137)
    assert before <= datetime.fromisoformat(listed["ended_at"]) <= datetime.now(timezone.utc)
    shown = run("status")
    assert shown.stdout.startswith(f"{record.url}  tritonserver 2.51.0, local, pid {record.pid}, {repository}\n")
    assert "\n  was killed by signal 9 on 2" in shown.stdout
    assert f"repo-builder stop --http-port {record.http_port} clears it away" in shown.stderr
    assert run("logs").stdout.startswith(log)
    assert run("logs", "--follow", "--http-port", record.http_port).returncode == 0
    assert running_servers() == []

    stopped = run("stop")
    assert (stopped.returncode, stopped.stderr) == (0, f"had ended already: {record.url} (pid {record.pid})\n")
    assert known_servers() == []
    assert run("status").stdout == ""


def test_a_server_that_someone_else_asked_to_end_tells_its_exit_status(repository: Path) -> None:
    record = detached(repository)
    end(record, signal.SIGTERM)
    (ended,) = known_servers()
    assert ended.exit_status == 0
    assert "\n  ended with exit status 0 on 2" in run("status").stdout


def test_a_killed_supervisor_is_told(repository: Path) -> None:
    record = detached(repository)
    os.kill(record.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(record))
    assert f"\n  its supervisor, pid {record.pid}, is gone; log: " in run("status").stdout
    assert run("stop", "--http-port", "all").returncode == 0
    assert known_servers() == []


def test_a_server_that_runs_is_meant_before_one_that_ended(repository: Path, tmp_path: Path) -> None:
    write_identity(tmp_path / "others", "other")
    first = detached(repository)
    end(first)
    second = detached(tmp_path / "others")
    assert [record.http_port for record in known_servers()] == sorted([first.http_port, second.http_port])
    assert "'other'" in run("logs").stdout
    assert run("stop").stderr == f"stopped {second.url} (pid {second.pid})\n"
    assert [record.http_port for record in known_servers()] == [first.http_port]


def test_a_new_server_takes_the_place_of_one_that_ended(repository: Path) -> None:
    end(detached(repository))
    with serve(repository) as server:
        assert [record.http_port for record in known_servers()] == [server.http_port]
    assert known_servers() == []


def test_a_server_in_the_foreground_leaves_no_record(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serve(repository, log_file="server.log") as server:
        (record,) = running_servers()
        assert record.log_file == str(tmp_path / "server.log")  # for commands that run elsewhere
        end(record)
        assert server.wait() == 137
        assert known_servers() == []


def test_a_process_is_known_by_its_name() -> None:
    tell = "from repo_builder.servers.records import process_name; print(process_name(), end='')"
    ended = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True).stdout
    pid, _, where = ended.partition("@")
    assert has_ended(ended)
    assert not has_ended(process_name())
    assert has_ended(f"{os.getpid()}-1@{where}")  # an id that is used again
    assert not has_ended(f"{pid}@elsewhere")
    assert not has_ended("")


@pytest.fixture
def orphan() -> ServerRecord:
    """A server in a container whose supervisor was killed."""
    url = "http://127.0.0.1:8000"
    record = ServerRecord(
        2**22, 1, url, "127.0.0.1:8001", f"{url}/metrics", 8000, "/models", "2.51.0", "/nothing", detached=True,
        container="repo-builder-8000", container_id="abcdef123456", image="triton",
    )  # fmt: skip
    write_record(record)
    return record


class FakeEngine(BaseHTTPRequestHandler):
    """A Docker engine that has every container and removes none."""

    def do_GET(self) -> None:
        self.answer(200, {"Id": "abcdef123456", "ApiVersion": "1.44"})

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        self.answer(500, {"message": "device or resource busy"})

    def answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_container_that_can_not_be_removed_is_not_forgotten(
    orphan: ServerRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine")
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "engine"), FakeEngine) as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        with pytest.raises(ServerError, match=r"abcdef123456 can't be removed: device or resource busy") as caught:
            stop_server(orphan)
        engine.shutdown()
    assert caught.value.hint == "docker rm --force abcdef123456, then repo-builder stop again"
    assert known_servers() == [orphan]


def test_a_container_is_not_forgotten_where_dockers_sdk_is_missing(
    orphan: ServerRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("docker", "docker.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError):
        stop_server(orphan)
    assert known_servers() == [orphan]


def test_a_container_without_supervisor_and_engine_is_told_as_such(
    orphan: ServerRecord, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such.sock")
    (listed,) = cli("status", "--json").json
    assert (listed["state"], listed["container_state"]) == ("unsupervised", "unknown")
    shown = cli("status")
    assert "its Docker engine does not answer, so the container may still run; log: " in shown.out
    assert f"hint: repo-builder stop --http-port {orphan.http_port} removes the container" in shown.err


def test_stop_tries_every_server_before_it_fails(
    orphan: ServerRecord, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such.sock")
    other = replace(orphan, http_port=8010, url="http://127.0.0.1:8010", container="repo-builder-8010")
    ended = replace(orphan, http_port=8005, url="http://127.0.0.1:8005", container_id=None)
    for record in (other, ended):
        write_record(record)

    stopped = cli("stop", "--http-port", "all", "--json")

    assert stopped.error == "no Docker engine answers at unix:///no/such.sock"
    assert stopped.err.splitlines()[:5] == [
        f"could not stop {orphan.url} ({orphan.place})",
        f"had ended already: {ended.url} (pid {ended.pid})",
        f"could not stop {other.url} ({other.place})",
        "warning: no Docker engine answers at unix:///no/such.sock",
        "  hint: DOCKER_HOST says where: correct it, unset it, then repo-builder stop removes the container",
    ]
    assert known_servers() == [orphan, other]


def test_a_server_that_does_not_stop_is_not_forgotten(orphan: ServerRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "STOP_S", 0.1)
    with subprocess.Popen(["sh", "-c", "trap '' TERM; echo; exec sleep 60"], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        record = replace(orphan, pid=deaf.pid, start_time=start_time(deaf.pid) or 0, container_id=None)
        write_record(record)
        try:
            with pytest.raises(ServerError, match="does not stop") as caught:
                stop_server(record)
        finally:
            deaf.kill()
    assert caught.value.hint == f"kill -9 {deaf.pid}"
    assert known_servers() == [record]


def test_a_record_that_can_not_be_written_is_told_and_not_left_half(orphan: ServerRecord) -> None:
    path = record_path(8010)
    path.mkdir()
    with pytest.raises(ServerError, match="where servers are noted: Is a directory"):
        write_record(replace(orphan, http_port=8010))
    assert {*path.parent.iterdir()} == {record_path(orphan.http_port), path}
    path.rmdir()
