"""The local server's life: started, found, stopped, killed; what it leaves behind is nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import Client, ModelNotReady
from repo_builder.errors import ServerError, UsageError
from repo_builder.repository import Repository
from repo_builder.servers import local, supervisor
from repo_builder.servers.local import LocalServer, serve
from repo_builder.servers.ports import Ports, reserve
from repo_builder.servers.records import (
    ServerRecord,
    record_path,
    running_servers,
    start_time,
    write_record,
)
from repo_builder.servers.supervisor import remove_environments, start_of_server
from tests.conftest import SmallDisk
from tests.servers.repositories import infer, write_identity
from tests.support import fill, snapshot, wait_for

pytestmark = pytest.mark.usefixtures("no_servers_left")

COMMAND = [sys.executable, "-m", "repo_builder"]
LOCAL = ["--engine", "local", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
STOPS_S = 15  # 5 are promised, to which a busy machine adds; Triton left to itself waits 30 for a client
SAMPLE = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_identity(tmp_path / "models", "good")
    return tmp_path / "models"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


class Traces:
    """All that a running server has in the machine: processes, shared memory, files, ports."""

    def __init__(self, record: ServerRecord) -> None:
        arguments = Path(f"/proc/{record.pid}/cmdline").read_text().split("\0")
        self.supervisor = record.pid
        self.run_directory, self.shm_prefix, self.record = Path(arguments[5]), arguments[6], Path(arguments[7])
        self.ports = [record.http_port, int(record.grpc_url.rpartition(":")[2])]

    def processes(self, name: str = "") -> list[int]:
        """Return the processes of the server's session, its stubs too, whose command has ``name`` in it."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if status[3] == str(self.supervisor) and status[0] != "Z" and name in command.partition("\0")[0]:
                found.append(int(folder.name))
        return found

    def left(self) -> list[object]:
        left: list[object] = [*self.processes(), *Path("/dev/shm").glob(f"{self.shm_prefix}*")]
        left += [path for path in (self.run_directory, self.record) if path.exists()]
        return left + [port for port in self.ports if not bindable(port)]

    def assert_gone(self, within: float) -> None:
        deadline = time.monotonic() + within
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.left() == []


def bindable(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Foreground:
    """A ready `repo-builder serve`, with all that it prints in files beside the repository."""

    def __init__(self, repository: Path) -> None:
        self._output, self._errors = repository.parent / "output", repository.parent / "errors"
        with self._output.open("w") as output, self._errors.open("w") as errors:
            command = [*COMMAND, "serve", "-r", str(repository), *LOCAL]
            self.process = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            wait_for(lambda: "Ctrl-C stops it" in self.errors or self.process.poll() is not None, within_s=60)
            assert self.process.poll() is None, self.errors
            (self.record,) = running_servers()
        except BaseException:
            self.__exit__()
            raise
        self.traces = Traces(self.record)

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def test_serve_until_sigterm(repository: Path) -> None:
    with Foreground(repository) as serving:
        np.testing.assert_array_equal(infer(serving.record.url, "good", {"x": SAMPLE})["y"], SAMPLE)
        assert len(serving.traces.left()) > 4
        serving.process.terminate()
        assert serving.process.wait(STOPS_S) == 0
        serving.traces.assert_gone(within=0)
    assert serving.record.url in serving.output
    assert "good" in serving.output
    assert "READY" in serving.output
    assert serving.record.log_file in serving.errors
    assert "Traceback" not in serving.errors


def test_ctrl_c_with_a_client_still_connected(repository: Path) -> None:
    with Foreground(repository) as serving, socket.socket() as idle:
        idle.connect(("127.0.0.1", serving.record.http_port))
        idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(STOPS_S) == 0
        serving.traces.assert_gone(within=0)


def test_killed_parent_leaves_nothing(repository: Path) -> None:
    with Foreground(repository) as serving:
        serving.process.kill()
        serving.process.wait()
        serving.traces.assert_gone(within=2)


def test_killed_supervisor_leaves_nothing(repository: Path) -> None:
    with Foreground(repository) as serving:
        os.kill(serving.traces.supervisor, signal.SIGKILL)
        assert serving.process.wait(STOPS_S) == 1
        serving.traces.assert_gone(within=10)  # a stub ends when its parent has been reaped, by init
    assert "error: tritonserver was killed by signal 9" in serving.errors


def test_what_a_killed_supervisor_left_is_cleared_away_later(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repo-builder-mine").mkdir()
    (tmp_path / "repo-builder-empty").mkdir()
    (tmp_path / "repo-builder-mine/server.lock").write_text("*")
    (tmp_path / "repo-builder-empty/server.lock").touch()
    bystanders = snapshot(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert run("serve", "-r", str(repository), "--detach", *LOCAL).returncode == 0
    (record,) = running_servers()
    killed = Traces(record)
    os.kill(killed.supervisor, signal.SIGKILL)
    wait_for(lambda: not killed.processes())
    assert killed.run_directory.is_dir()
    assert run("serve", "-r", str(repository), "--detach", *LOCAL).returncode == 0
    (record,) = running_servers()
    killed.assert_gone(within=0)
    traces = Traces(record)
    assert run("stop", "--http-port", str(record.http_port)).returncode == 0
    traces.assert_gone(within=0)
    assert {path: snapshot(tmp_path)[path] for path in bystanders} == bystanders


def test_folders_of_triton_s_own_go_with_the_last_server(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python-based backends make them in /tmp whatever TMPDIR says; here stand-ins in another folder."""
    folder, processes = tmp_path / "tmp", tmp_path / "proc"
    processes.mkdir()
    for name in ("python_env_abcdef", "python_env_filled/1", "python_environment", "another"):
        (folder / name).mkdir(parents=True)
    with serve(repository) as server:
        (tritonserver,) = Traces(server.record()).processes("bin/tritonserver")
        (processes / str(tritonserver)).symlink_to(f"/proc/{tritonserver}")
        assert abs(start_of_server(Path("/proc", str(tritonserver)), folder) - time.time()) < 60
        remove_environments(folder, processes)
        assert (folder / "python_env_abcdef").is_dir()
        monkeypatch.setattr(supervisor, "CLOCK_SLACK_S", -60)  # as if the server were younger than they are
        remove_environments(folder, processes)
        assert not (folder / "python_env_abcdef").exists()
    (folder / "python_env_abcdef").mkdir()
    monkeypatch.setattr(supervisor, "CLOCK_SLACK_S", 10)
    remove_environments(folder, processes)
    assert {path.name for path in folder.iterdir()} == {"another", "python_env_filled", "python_environment"}


def test_killed_tritonserver_is_reported_and_cleaned_up(repository: Path) -> None:
    with Foreground(repository) as serving:
        (server,) = serving.traces.processes("bin/tritonserver")
        os.kill(server, signal.SIGKILL)
        assert serving.process.wait(STOPS_S) == 1
        serving.traces.assert_gone(within=0)
    assert "error: tritonserver was killed by signal 9" in serving.errors
    assert f"hint: see its log in {serving.record.log_file}" in serving.errors


def test_detach_status_stop(repository: Path) -> None:
    started = run("serve", "-r", str(repository), "--detach", "--json", *LOCAL)
    assert started.returncode == 0, started.stderr
    server = json.loads(started.stdout)
    assert server["detached"]
    (record,) = running_servers()
    traces = Traces(record)
    try:
        np.testing.assert_array_equal(infer(server["url"], "good", {"x": SAMPLE})["y"], SAMPLE)
        (listed,) = json.loads(run("status", "--json").stdout)
        assert listed["url"] == server["url"]
        assert listed["detached"]
        assert listed["repository"] == str(repository)
        assert listed["models"] == [{"name": "good", "version": 1, "state": "READY", "cause": None, "hint": None}]
        assert server["url"] in run("status").stdout
        wrong = run("stop", "--http-port", "1")
        assert wrong.returncode == 1
        assert "error: no server of yours runs on port 1" in wrong.stderr
    finally:
        stopped = run("stop", "--http-port", str(server["http_port"]), "--json")
    traces.assert_gone(within=0)
    assert stopped.returncode == 0
    assert json.loads(stopped.stdout)[0]["url"] == server["url"]
    assert json.loads(run("status", "--json").stdout) == []
    assert run("stop").returncode == 1
    assert run("stop", "--http-port", "all").returncode == 0


def test_a_record_of_a_process_id_used_again_is_no_server(repository: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        started = start_time(bystander.pid)
        assert started is not None
        write_record(
            ServerRecord(bystander.pid, started - 1, "http://127.0.0.1:9", "", "", 9, str(repository), "", "", True)
        )
        assert running_servers() == []
        assert run("stop", "--http-port", "all").returncode == 0
        assert not record_path(9).exists()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_servers_of_other_machines_and_containers_keep_their_records(repository: Path, tmp_path: Path) -> None:
    elsewhere = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*elsewhere, "true"], check=False).returncode:
        pytest.skip("can't make a PID namespace here")
    with serve(repository) as server:
        (record,) = running_servers()
        path = record_path(record.http_port)
        boot = path.name.partition("@")[2].partition("-")[0]
        other_machine = path.with_name(path.name.replace(boot, f"{int(boot, 16) ^ 1:08x}"))
        gone_there = replace(record, pid=2**22 + 1)  # above any process id of Linux
        other_machine.write_text(json.dumps(asdict(gone_there)))
        before = snapshot(tmp_path / "state")
        for command in (["status", "--json"], ["stop", "--http-port", "all", "--json"]):
            done = subprocess.run([*elsewhere, *COMMAND, *command], capture_output=True, text=True, check=False)
            assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr
        assert snapshot(tmp_path / "state") == before
        assert running_servers() == [record]
        np.testing.assert_array_equal(infer(server.url, "good", {"x": SAMPLE})["y"], SAMPLE)
    assert other_machine.exists()


def test_python_api(repository: Path) -> None:
    with serve(repository) as server:
        traces = Traces(server.record())
        assert [(status.name, status.version, status.ready) for status in server.models] == [("good", 1, True)]
        assert server.wait(timeout=0.01) is None
        np.testing.assert_array_equal(infer(server.url, "good", {"x": SAMPLE})["y"], SAMPLE)
    traces.assert_gone(within=0)
    server.stop()
    assert server.wait() == 0


def test_server_outlives_the_thread_that_started_it(repository: Path) -> None:
    servers: list[LocalServer] = []
    thread = threading.Thread(target=lambda: servers.append(serve(repository)))
    thread.start()
    thread.join()
    with servers[0] as server:
        assert server.wait(timeout=0.5) is None
        np.testing.assert_array_equal(infer(server.url, "good", {"x": SAMPLE})["y"], SAMPLE)


def test_a_forked_child_neither_stops_nor_keeps_the_server(repository: Path) -> None:
    script = """
import os, sys, time
import repo_builder
server = repo_builder.serve(sys.argv[1])
child = os.fork()
if child == 0:
    sys.exit(0)                       # runs atexit handlers, which must not stop the parent's server
os.waitpid(child, 0)
assert server.models[0].ready
if os.fork() == 0:
    time.sleep(30)                    # outlives the parent
    os._exit(0)
print(server.pid, flush=True)
time.sleep(30)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(repository)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    (record,) = running_servers()
    traces = Traces(record)
    process.kill()
    process.wait()
    process.stdout.close()
    traces.assert_gone(within=2)


def test_a_broken_model_does_not_hide_the_good_one(repository: Path) -> None:
    (write_identity(repository, "broken") / "1/model.onnx").write_bytes(b"not a model")
    (write_identity(repository, "unread") / "config.pbtxt").write_text('platfrm: "x"\n')
    (write_identity(repository, "no_version") / "1").rename(repository / "no_version/first")
    with Foreground(repository) as serving:
        np.testing.assert_array_equal(infer(serving.record.url, "good", {"x": SAMPLE})["y"], SAMPLE)
        listed = json.loads(run("status", "--json").stdout)[0]["models"]
        serving.process.terminate()
        assert serving.process.wait(timeout=6) == 0
    assert {model["name"]: model["state"] for model in listed} == {
        "good": "READY", "broken": "UNAVAILABLE", "unread": "UNAVAILABLE", "no_version": "UNAVAILABLE",
    }  # fmt: skip
    assert "warning: broken: the model file is no whole ONNX model" in serving.errors
    assert "warning: unread: config.pbtxt line 1, column 8:" in serving.errors
    assert "warning: no_version: it has no version that its version_policy takes" in serving.errors
    assert "error:" not in serving.errors


def test_exit_on_error_serves_all_models_or_none(repository: Path) -> None:
    (repository / "good/1").rename(repository / "good/7")
    shutil.copytree(repository / "good/7", repository / "good/12")  # Triton loads the latest version only
    served = run("serve", "-r", str(repository), "--detach", "--exit-on-error", *LOCAL)
    assert served.returncode == 0, served.stderr
    assert run("stop").returncode == 0
    (write_identity(repository, "broken") / "1/model.onnx").write_bytes(b"not a model")
    failed = run("serve", "-r", str(repository), "--detach", "--exit-on-error", *LOCAL)
    assert (failed.returncode, failed.stdout) == (1, "")
    error = "not every model could be loaded: broken: the model file is no whole ONNX model"
    assert f"\nerror: {error}\n\nhint: " in failed.stderr
    assert running_servers() == []


def test_no_model_at_all_is_an_error(repository: Path) -> None:
    (repository / "good/1/model.onnx").unlink()
    failed = run("serve", "-r", str(repository), *LOCAL)
    assert failed.returncode == 1
    assert failed.stderr.count("1/model.onnx is missing") == 1
    assert "\nerror: no model could be loaded: good:" in failed.stderr
    assert "\nlog      " in failed.stderr
    assert failed.stdout == ""
    (write_identity(repository, "other") / "1/model.onnx").unlink()
    failed = run("serve", "-r", str(repository), *LOCAL)
    assert failed.stdout == ""
    assert "warning: other: " in failed.stderr
    assert "1/model.onnx is missing (and 1 more)\n" in failed.stderr
    assert run("serve", "-r", str(repository), "--json", *LOCAL).stdout == ""
    assert running_servers() == []
    with pytest.raises(ServerError, match="no model could be loaded"):
        serve(repository)


def test_a_model_that_never_finishes_loading_is_named(repository: Path) -> None:
    stuck = repository / "stuck"
    stuck.mkdir()
    (stuck / "config.pbtxt").write_text('backend: "python"\nmax_batch_size: 0\ninput []\noutput []\n')
    (stuck / "1").mkdir()
    (stuck / "1/model.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ServerError, match="not ready after 3 s, still loading stuck") as raised:
        serve(repository, timeout_s=3)
    assert "--model NAME" in str(raised.value.hint)
    assert running_servers() == []


def test_ports_in_use_are_named(repository: Path) -> None:
    for taken in ("http", "grpc", "metrics"):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            port = sock.getsockname()[1]
            with pytest.raises(ServerError) as raised:
                serve(
                    repository,
                    http_port=port if taken == "http" else 0,
                    grpc_port=port if taken == "grpc" else 0,
                    metrics_port=port if taken == "metrics" else 0,
                )
            assert f"port {port} is in use by " in raised.value.message
            assert f"(pid {os.getpid()})" in raised.value.message
            assert f"--{taken}-port" in str(raised.value.hint)
            assert "repo-builder stop" not in str(raised.value.hint)


def test_a_port_of_one_s_own_server_is_named_as_status_and_stop_name_it(repository: Path) -> None:
    with serve(repository) as server:
        record = server.record()
        for taken, port in zip(("http", "grpc", "metrics"), record.ports, strict=True):
            ports = {"http": 0, "grpc": 0, "metrics": 0, taken: port}
            with pytest.raises(ServerError) as raised:
                serve(repository, http_port=ports["http"], grpc_port=ports["grpc"], metrics_port=ports["metrics"])
            assert f"your own server at {server.url} (pid {server.pid})" in raised.value.message
            assert f"repo-builder stop --http-port {record.http_port};" in str(raised.value.hint)
            assert f"--{taken}-port 0" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"http_port": 8100, "grpc_port": 8100}, "need different ports"),
        ({"http_port": 70000}, "70000 is not a port"),
        ({"host": "no such host"}, "is not an IPv4 address"),
        ({"host": "192.0.2.1"}, "can't listen on 192.0.2.1"),
        ({"models": ["absent"]}, "has no model 'absent'"),
        ({"models": ["good"], "poll_seconds": 1}, "poll"),
        ({"poll_seconds": 0}, "can't poll every 0 seconds"),
    ],
)
def test_options_that_can_not_be_right(repository: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        serve(repository, **options)
    assert raised.value.hint


def test_ports_that_can_not_be_are_refused_before_anything_starts(repository: Path) -> None:
    for arguments, words in ((["--http-port", "99999"], "99999 is not a port"), (["--grpc-port", "8000"], "different")):
        failed = run("serve", "-r", str(repository), *arguments)
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ")
        assert words in failed.stderr


def test_no_repository(tmp_path: Path) -> None:
    (tmp_path / "empty/.git").mkdir(parents=True)
    (tmp_path / "empty/README.md").write_text("models go here")
    for what, path, words in (
        ("the repository {}", "absent", "does not exist"),
        ("{}", "empty", "has no models"),
        ("the repository {}", "empty/README.md", "is not a folder"),
    ):
        failed = run("serve", "-r", str(tmp_path / path))
        assert failed.returncode == 2
        error = f"error: {what.format(tmp_path / path)} {words}\n\nhint: repo-builder add MODEL.onnx"
        assert failed.stderr.startswith(error)
    model = write_identity(tmp_path / "models", "good")
    failed = run("serve", "-r", str(model))
    told = f"error: {model} is a model, not a repository of models\n\nhint: --repository {model.parent} --model good\n"
    assert (failed.returncode, failed.stderr) == (2, told)


def test_chosen_models_only(repository: Path) -> None:
    write_identity(repository, "other")
    with serve(repository, models=["other"]) as server:
        assert [status.name for status in server.models if status.ready] == ["other"]


def test_what_changed_since_the_start_is_told(repository: Path, tmp_path: Path) -> None:
    with serve(repository) as server:
        write_identity(repository, "late")
        (repository / "good").rename(tmp_path / "good")
        gone, late = server.models
        assert (gone.name, gone.version, gone.ready) == ("good", 1, True)
        assert gone.cause == "it is not in the repository any more, and served until the server ends"
        assert (late.name, late.ready) == ("late", False)
        assert late.cause == "it is not loaded; a server loads models only at its start"
        assert all("repo-builder stop, then serve" in str(status.hint) for status in (gone, late))
        shown = run("status")
        assert "good    1  READY" in shown.stdout
        assert "note: good: it is not in the repository" in shown.stderr
        assert "warning: late: it is not loaded" in shown.stderr
        with Client(server.url) as client, pytest.raises(ModelNotReady) as raised:
            client.infer("late", {"x": SAMPLE})
        assert "restart it (repo-builder stop, then serve)" in str(raised.value.hint)
    assert server.wait() == 0


@pytest.mark.parametrize("poll_seconds", [None, 1])
def test_add_says_what_becomes_of_a_running_server(repository: Path, poll_seconds: int | None) -> None:
    with serve(repository, poll_seconds=poll_seconds) as server:
        model = str(repository / "good/1/model.onnx")
        added = run("add", model, "--name", "other", "-r", str(repository))
        last = added.stderr.splitlines()[-1]
        if poll_seconds:
            assert last == f"next: the server at {server.url} takes it up within 1 s"
        else:
            assert f"the server at {server.url} loads models only at its start" in added.stderr
            assert last.startswith(f"next: repo-builder stop --http-port {server.http_port}, then repo-builder serve")
    assert (
        run("add", model, "--name", "third", "-r", str(repository))
        .stderr.splitlines()[-1]
        .startswith("next: repo-builder serve --repository")
    )


def test_a_folder_without_config_is_told(repository: Path) -> None:
    (repository / "foreign").mkdir()
    (repository / "foreign/notes.txt").touch()
    with serve(repository) as server:
        foreign = server.models[0]
    assert (foreign.name, foreign.cause) == ("foreign", "its folder has no config.pbtxt")
    assert foreign.hint == "publish the model with repo-builder add, or move the folder out of the repository"


def test_onnx_runtime_reports_nothing_and_leaves_no_files_at_home(repository: Path, tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    script = f"""
from pathlib import Path
from repo_builder import serve
from repo_builder.runtime import open_session
open_session(Path({str(repository)!r}, "good/1/model.onnx"))
with serve({str(repository)!r}) as server:
    assert server.models[0].ready
"""
    # No variable of continuous integration, in which it reports nothing anyway.
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert [path.name for path in (*home.iterdir(), *temporary.iterdir())] == [".local"]


def test_polling_takes_up_what_changes(repository: Path) -> None:
    with serve(repository, poll_seconds=1) as server:
        version = repository / "good/2"
        staged = repository.parent / "staged"
        staged.mkdir()
        (staged / "model.onnx").write_bytes((repository / "good/1/model.onnx").read_bytes())
        staged.rename(version)
        wait_for(lambda: [(status.version, status.ready) for status in server.models] == [(2, True)])
        (repository / "good/config.pbtxt").write_text("x{")
        wait_for(lambda: any("config.pbtxt line 1" in str(status.cause) for status in server.models))
        (repository / "good").rename(repository.parent / "elsewhere")
        wait_for(lambda: server.models == ())


def test_what_is_being_published_into_a_mount_point_is_no_model(small_disk: SmallDisk) -> None:
    disk = small_disk(256)
    write_identity(disk, "good")
    with serve(disk, poll_seconds=1) as server, Repository(disk).staging() as staged:
        wait_for(lambda: staged.name in server.log_file.read_text())
        assert [(status.name, status.ready) for status in server.models] == [("good", True)]
        np.testing.assert_array_equal(infer(server.url, "good", {"x": SAMPLE})["y"], SAMPLE)


def test_a_temporary_folder_that_is_full_or_runs_no_programs(
    repository: Path, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(8000)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    subprocess.run(["mount", "-o", "remount,noexec", disk], check=True)
    with pytest.raises(ServerError, match=f"programs can't be run in {disk}, .* it is mounted with noexec"):
        serve(repository)
    fill(disk)
    with pytest.raises(ServerError, match=f"{disk} can't be written, .*: No space left on device") as caught:
        serve(repository)
    assert "set TMPDIR" in str(caught.value.hint)
    assert [path.name for path in disk.iterdir()] == ["full"]


def test_names_are_not_run_by_a_shell(repository: Path) -> None:
    """Triton 24.10 starts each model's process through a shell: names in a repository must not be commands there."""
    model = (repository / "good").rename(repository / "a;touch witness;b")
    file = "m $(touch witness) `touch witness`"
    (model / "1/model.onnx").rename(model / "1" / file)
    config = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace('name: "good"', f'default_model_filename: "{file}"'))
    with serve(repository) as server:
        traces = Traces(server.record())
        assert [(status.name, status.ready) for status in server.models] == [(model.name, True)]
        assert not list(traces.run_directory.rglob("witness"))


def test_repository_is_only_read(repository: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in repository.rglob("*")}
    with serve(repository):
        pass
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in repository.rglob("*")} == before


@pytest.mark.parametrize("role", ["http", "grpc", "metrics"])
def test_a_free_port_that_is_taken_meanwhile_is_replaced(
    repository: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton binds its ports after the models are loaded: another process may be quicker."""
    thieves: list[socket.socket] = []

    def reserve_and_lose_once(wanted: Ports, address: str) -> Ports:
        ports = reserve(wanted, address)
        if not thieves:
            thieves.append(socket.create_server((address, getattr(ports, role))))
        return ports

    monkeypatch.setattr(local, "reserve", reserve_and_lose_once)
    try:
        with serve(repository) as server:
            np.testing.assert_array_equal(infer(server.url, "good", {"x": SAMPLE})["y"], SAMPLE)
    finally:
        thieves[0].close()


def test_only_the_models_asked_for_are_judged(repository: Path) -> None:
    (repository / "other" / "1").mkdir(parents=True)
    (repository / "other" / "config.pbtxt").write_text('platform: "onnxruntime_onnx"\n')
    with serve(repository, models=["good"]) as server:
        assert [(status.name, status.ready) for status in server.models] == [("good", True)]


def test_a_log_file_that_cannot_be_written(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the log can't go to .*: Is a directory"):
        serve(repository, log_file=tmp_path)
