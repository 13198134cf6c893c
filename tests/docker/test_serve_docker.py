"""``serve --engine docker``: the same life as the local server's, in a container, and every failure in one line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from repo_builder.host import is_rootless
from repo_builder.servers.base import ServerOptions
from repo_builder.servers.docker import LABEL, STARTER, DockerOptions, start
from repo_builder.servers.records import process_name
from tests.docker.conftest import ROOT, Containers, Run
from tests.docker.make_image import make_base
from tests.servers.repositories import write_identity
from tests.support import let_everyone_into, steady_port, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("no_containers")]

REPO_BUILDER = (sys.executable, "-m", "repo_builder")
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


def serve(image: str, repository: Path) -> tuple[str, ...]:
    return (*REPO_BUILDER, "serve", "--engine", "docker", "--image", image, "-r", str(repository), *FREE_PORTS)


def only_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one error line; there is no traceback, nothing on stdout, and a hint."""
    assert done.returncode in {1, 2}
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "\nhint: " in done.stderr
    return error


def test_detached_server_is_found_asked_read_and_stopped(
    containers: Containers, image: str, repository: Path, run: Run
) -> None:
    started = run(*serve(image, repository), "--detach", "--json")
    assert started.returncode == 0, started.stderr
    record = json.loads(started.stdout)
    assert [(model["name"], model["state"]) for model in record["models"]] == [("efficientnet-lite0", "READY")]
    assert len(containers()) == 1
    infer = run(sys.executable, "-m", "client.infer", "--url", record["url"], "examples/cat.jpg")
    assert "tiger cat" in infer.stdout, infer.stderr
    (container,) = containers()
    assert container.name == f"repo-builder-{record['http_port']}"
    assert (record["engine"], record["container"], record["image"]) == ("docker", container.name, image)
    assert container.id.startswith(record["container_id"])
    (listed,) = json.loads(run(*REPO_BUILDER, "status", "--json").stdout)
    assert listed == record
    where = f"docker, container {container.name} ({record['container_id']}) of {image}, {repository}\n"
    assert run(*REPO_BUILDER, "status").stdout.startswith(f"{record['url']}  tritonserver 2.51.0, {where}")
    log = run(*REPO_BUILDER, "logs").stdout
    assert "Started HTTPService" in log
    assert run(*REPO_BUILDER, "logs", "--lines", "1").stdout == log.splitlines(keepends=True)[-1]
    stopped = run(*REPO_BUILDER, "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert containers() == []


def start_detached(image: str, repository: Path, run: Run, *options: str) -> dict[str, Any]:
    started = run(*serve(image, repository), *options, "--detach", "--json")
    assert started.returncode == 0, started.stderr
    record = json.loads(started.stdout)
    assert isinstance(record, dict)
    return record


def wait_until_ended(run: Run) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        (listed,) = json.loads(run(*REPO_BUILDER, "status", "--json").stdout)
        assert isinstance(listed, dict)
        return None if listed["state"] == "running" else listed

    return wait_for(ended)


def test_a_detached_container_that_died_is_told_until_it_is_stopped(
    containers: Containers, image: str, repository: Path, run: Run
) -> None:
    record = start_detached(image, repository, run)
    containers()[0].kill()
    wait_for(lambda: not containers())
    ended = wait_until_ended(run)
    assert (ended["state"], ended["exit_status"], ended["container_state"]) == ("ended", 137, None)
    shown = run(*REPO_BUILDER, "status").stdout
    assert f"container {record['container']} ({record['container_id']}) of {image}" in shown
    assert re.search(r"^  was killed by signal 9 on 2.*; the container is removed; log: ", shown, re.MULTILINE)
    assert "Started HTTPService" in run(*REPO_BUILDER, "logs").stdout
    assert run(*REPO_BUILDER, "stop").stderr.startswith(f"had ended already: {record['url']} (container ")
    assert run(*REPO_BUILDER, "status").stdout == ""


def test_a_container_without_its_supervisor_is_told_and_stopped(
    containers: Containers, image: str, repository: Path, run: Run
) -> None:
    record = start_detached(image, repository, run)
    os.kill(record["pid"], signal.SIGKILL)
    left = wait_until_ended(run)
    assert (left["state"], left["container_state"]) == ("unsupervised", "running")
    shown = run(*REPO_BUILDER, "status")
    assert f"its supervisor, pid {record['pid']}, is gone; its container is there, running; log: " in shown.stdout
    assert f"repo-builder stop --http-port {record['http_port']} removes the container" in shown.stderr
    again = run(*serve(image, repository), "--http-port", str(record["http_port"]))
    assert only_error(again).startswith(f"error: port {record['http_port']} is in use by your own server")
    assert f"repo-builder stop --http-port {record['http_port']};" in again.stderr
    assert len(containers()) == 1
    stopped = run(*REPO_BUILDER, "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr.startswith(f"stopped {record['url']} ")
    assert containers() == []


class Way:
    """A socket that leads to the engine until it is closed: the engine is lost then, and its containers run on."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix://{path}"
        self._path = path
        self.open()

    def open(self) -> None:
        engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
        self._ends: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(engine,), daemon=True).start()

    def _accept(self, engine: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
                far.connect(engine)
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._path.unlink()
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    way = Way(tmp_path / "engine.sock")
    yield way
    with contextlib.suppress(OSError):
        way.close()


def test_a_container_whose_engine_is_lost_is_told_kept_and_stopped_once_it_answers(
    containers: Containers, image: str, repository: Path, run: Run, way: Way
) -> None:
    started = run(*serve(image, repository), "--detach", "--json", DOCKER_HOST=way.address)
    record = json.loads(started.stdout)
    way.close()
    left = wait_until_ended(run)
    assert (left["state"], left["container_state"]) == ("unsupervised", "unknown")
    assert "its Docker engine does not answer, so the container may still run; " in run(*REPO_BUILDER, "status").stdout
    last = run(*REPO_BUILDER, "logs").stdout.splitlines()[-1]
    assert last == "the container can't be followed any more: its Docker engine does not answer"
    refused = run(*REPO_BUILDER, "stop")  # though another engine is at the usual place
    assert only_error(refused) == f"error: no Docker engine answers at {way.address}"
    assert len(containers()) == 1
    way.open()
    assert "its container is there, running; log: " in run(*REPO_BUILDER, "status").stdout
    assert run(*REPO_BUILDER, "stop").stderr.startswith(f"stopped {record['url']} ")
    assert containers() == []
    assert run(*REPO_BUILDER, "status").stdout == ""


def test_a_container_of_the_same_name_is_replaced_once_who_made_it_has_ended(
    engine: Any, containers: Containers, image: str, repository: Path, run: Run
) -> None:
    port = str(steady_port())
    made = {"name": f"repo-builder-{port}", "volumes": [f"{repository}:/models:ro"]}
    about_to_start = engine.containers.create(image, labels={LABEL: port, STARTER: process_name()}, **made)
    told = only_error(run(*serve(image, repository), "--http-port", port))
    assert told == f"error: a container named repo-builder-{port} is there already, created"
    about_to_start.remove()
    tell = "from repo_builder.servers.records import process_name; print(process_name())"
    ended = run(sys.executable, "-c", tell).stdout.strip()
    left = engine.containers.create(image, labels={LABEL: port, STARTER: ended}, **made)
    record = start_detached(image, repository, run, "--http-port", port)
    (container,) = containers()
    assert container.id.startswith(record["container_id"])
    assert container.id != left.id
    assert run(*REPO_BUILDER, "stop").returncode == 0


def test_a_container_of_the_same_name_that_is_someone_else_s_is_left_alone(
    engine: Any, image: str, repository: Path, run: Run
) -> None:
    port = str(steady_port())
    other = engine.containers.create(image, name=f"repo-builder-{port}")
    try:
        done = run(*serve(image, repository), "--http-port", port)
        assert only_error(done) == f"error: a container named {other.name} is there already, created"
        assert f"hint: docker rm --force {other.name}, if nobody needs it; or another port" in done.stderr
        assert engine.containers.get(other.id)
    finally:
        other.remove(force=True)


def test_of_two_at_once_on_a_port_one_is_told_what_is_there(image: str, repository: Path, run: Run) -> None:
    port = str(steady_port())
    with ThreadPoolExecutor(2) as pool:
        command = (*serve(image, repository), "--http-port", port, "--detach")
        one, other = sorted(pool.map(lambda _: run(*command), range(2)), key=lambda done: done.returncode)
    assert run(*REPO_BUILDER, "stop").returncode == 0
    assert one.returncode == 0, one.stderr
    told = rf"error: (a container named repo-builder-{port} is there|port {port} is in use)"
    assert re.match(told, only_error(other))


def test_a_repository_with_a_colon_in_its_path(image: str, repository: Path, run: Run, tmp_path: Path) -> None:
    let_everyone_into(tmp_path)
    shutil.copytree(repository, tmp_path / "models: mine")
    record = start_detached(image, tmp_path / "models: mine", run)
    assert [model["state"] for model in record["models"]] == ["READY"]
    assert run(*REPO_BUILDER, "stop").returncode == 0


def test_a_repository_that_a_container_can_t_read_is_refused(repository: Path, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    (root / "elsewhere").symlink_to(repository / "efficientnet-lite0")
    error = only_error(run(*serve("any", root)))
    assert error == f"error: {root}/elsewhere leads to {repository}/efficientnet-lite0, which a container does not have"
    if os.getuid() == 0:
        (root / "elsewhere").unlink()
        shutil.copytree(repository / "efficientnet-lite0", root / "model")
        root.chmod(0o700)
        error = only_error(run(*serve("any", root)))
        assert error == f"error: {root} can't be read by the container, which runs as user 1000"


def test_python_api(image: str, repository: Path) -> None:
    with start(repository, ServerOptions(0, 0, 0), DockerOptions(image)) as server:
        assert [status.ready for status in server.models] == [True]
        assert server.version == "2.51.0"


KILLED_IN_START = """
import os, signal, sys
from docker.models.containers import Container
from repo_builder.servers.base import ServerOptions
from repo_builder.servers.docker import DockerOptions, start

begin = Container.start
Container.start = lambda container: (begin(container), os.kill(os.getpid(), signal.SIGKILL))
start(sys.argv[1], ServerOptions(0, 0, 0), DockerOptions(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["create", "start"])
def test_ctrl_c_while_the_container_is_made_leaves_none(
    containers: Containers, image: str, repository: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    docker = pytest.importorskip("docker")
    made = docker.models.containers
    part = made.ContainerCollection if moment == "create" else made.Container
    whole = getattr(part, moment)

    def interrupted(*arguments: Any, **settings: Any) -> None:
        def go_on() -> None:  # as the engine does with what it was asked for
            with contextlib.suppress(docker.errors.NotFound):
                whole(*arguments, **settings)

        threading.Timer(0.2, go_on).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(part, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(repository, ServerOptions(0, 0, 0), DockerOptions(image))
    assert containers() == []


def test_an_engine_that_can_t_raise_limits_keeps_its_own(
    containers: Containers, image: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = pytest.importorskip("docker")
    begin = docker.models.containers.Container.start

    def rootless(container: Any) -> None:
        if container.attrs["HostConfig"]["Ulimits"]:
            raise docker.errors.APIError("error setting rlimit type 8: operation not permitted")
        begin(container)

    monkeypatch.setattr(docker.models.containers.Container, "start", rootless)
    with start(repository, ServerOptions(0, 0, 0), DockerOptions(image)) as server:
        assert [status.ready for status in server.models] == [True]
        assert len(containers()) == 1
    assert containers() == []


def test_nothing_runs_on_when_its_maker_is_killed_in_that_moment(
    containers: Containers, image: str, repository: Path, run: Run
) -> None:
    killed = run(sys.executable, "-c", KILLED_IN_START, str(repository), image)
    assert killed.returncode == -signal.SIGKILL
    wait_for(lambda: not containers())


@contextlib.contextmanager
def in_foreground(*command: str, state: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A server in the foreground, ready."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(state), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "READY" in line:
            break
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def foreground(image: str, repository: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with in_foreground(*serve(image, repository), state=tmp_path / "state") as process:
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_container(
    containers: Containers, foreground: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert len(containers()) == 1
    began = time.monotonic()
    foreground.send_signal(number)
    assert foreground.wait(10) == 0
    assert time.monotonic() - began < 7
    assert containers() == []


def test_a_killed_parent_leaves_no_container(containers: Containers, foreground: subprocess.Popen[str]) -> None:
    foreground.kill()
    wait_for(lambda: not containers())


def test_a_killed_container_is_one_line(containers: Containers, foreground: subprocess.Popen[str]) -> None:
    containers()[0].kill()
    _, errors = foreground.communicate(timeout=10)
    assert foreground.returncode == 1
    assert "error: tritonserver was killed by signal 9" in errors
    assert containers() == []


def test_a_server_in_the_foreground_that_loses_its_engine_says_how_its_container_goes(
    containers: Containers, image: str, repository: Path, tmp_path: Path, run: Run, way: Way
) -> None:
    command = serve(image, repository)
    with in_foreground(*command, state=tmp_path / "state", DOCKER_HOST=way.address) as process:
        way.close()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.endswith(
        "error: tritonserver is lost: its Docker engine does not answer any more\n\n"
        "hint: repo-builder stop removes the container once the engine answers again\n"
    )
    assert len(containers()) == 1
    way.open()
    assert run(*REPO_BUILDER, "stop").stderr.startswith("stopped http://127.0.0.1:")
    assert containers() == []


def test_broken_models_are_explained(containers: Containers, image: str, tmp_path: Path, run: Run) -> None:
    root = tmp_path / "models"
    write_identity(root, "good")
    write_identity(root, "broken")
    (root / "broken/1/model.onnx").write_bytes(b"not a model")
    let_everyone_into(tmp_path)
    done = run(*serve(image, root), "--detach")
    assert done.returncode == 0, done.stderr
    assert "warning: broken: the model file is no whole ONNX model" in done.stderr
    assert run(*REPO_BUILDER, "stop").returncode == 0


def test_auto_takes_docker_when_the_image_is_there(image: str, repository: Path, run: Run) -> None:
    command = (*REPO_BUILDER, "serve", "-r", str(repository), *FREE_PORTS, "--detach")
    done = run(*command, TRITON_IMAGE=image)
    assert f"engine docker ...\n  (Docker is here and has {image})" in done.stderr
    assert f" of {image}" in done.stdout
    assert run(*REPO_BUILDER, "stop").returncode == 0


def test_auto_takes_the_local_server_otherwise(engine: Any, repository: Path, run: Run) -> None:
    command = (*REPO_BUILDER, "serve", "-r", str(repository), *FREE_PORTS, "--detach")
    for variables, why in (
        ({"TRITON_IMAGE": "no.such/image:1"}, "no.such/image:1 is not pulled"),
        ({"DOCKER_HOST": "unix:///no/such.sock"}, "no Docker engine answers"),
    ):
        done = run(*command, **variables)
        assert f"engine local ...\n  ({why}" in done.stderr
        assert run(*REPO_BUILDER, "stop").returncode == 0


def test_no_engine(repository: Path, run: Run) -> None:
    done = run(*serve("any", repository), DOCKER_HOST="unix:///no/such.sock")
    assert only_error(done) == "error: no Docker engine answers at unix:///no/such.sock"
    assert "hint: DOCKER_HOST says where: correct it, unset it, or serve without: --engine local" in done.stderr


def test_socket_of_others(repository: Path, run: Run, tmp_path: Path) -> None:
    if shutil.which("setpriv") is None or os.getuid():
        pytest.skip("needs root, to be someone else")
    path = Path("/var/run/docker.sock")
    if not path.exists() or path.stat().st_mode & 0o006:
        pytest.skip("every user may use the engine here")
    state = tmp_path / "other"
    state.mkdir()
    state.chmod(0o777)
    let_everyone_into(tmp_path)
    other = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    done = run(*other, *serve("any", repository), XDG_STATE_HOME=str(state))
    assert only_error(done) == "error: this user may not use the Docker engine"
    assert "usermod -aG docker" in done.stderr


@pytest.mark.usefixtures("engine")
def test_image_that_can_t_be_had(repository: Path, run: Run) -> None:
    name = "127.0.0.1:1/tritonserver:x"
    error = only_error(run(*serve(name, repository)))
    assert error.startswith(f"error: {name} is not here and can't be pulled: ")


@pytest.mark.usefixtures("engine")
def test_image_whose_name_can_t_be_one(repository: Path, run: Run) -> None:
    told = "error: 'Bad Image!!' is not the name of an image"
    assert only_error(run(*serve("Bad Image!!", repository))) == told
    assert only_error(run(*serve("", repository))) == "error: '' is not the name of an image"
    command = (*REPO_BUILDER, "serve", "--engine", "docker", "-r", str(repository), *FREE_PORTS)
    assert only_error(run(*command, TRITON_IMAGE="Bad Image!!")) == told
    add = (*REPO_BUILDER, "add", "examples/efficientnet-lite0/model.onnx", "-r", str(repository), "--name", "other")
    build = ("--build-in-container", "--target", "tensorrt-rtx", "--container-image", "Bad Image!!")
    assert only_error(run(*add, *build)) == told


def test_gpus_without_nvidia_s_toolkit(image: str, engine: Any, repository: Path, run: Run) -> None:
    if "nvidia" in engine.info()["Runtimes"] or shutil.which("nvidia-container-runtime-hook"):
        pytest.skip("NVIDIA's container toolkit is installed")
    done = run(*serve(image, repository), "--gpus", "all")
    assert only_error(done).startswith("error: the Docker engine can't give containers a GPU: ")
    assert "nvidia-ctk" in done.stderr


def test_image_without_tritonserver(image: str, engine: Any, repository: Path, run: Run) -> None:
    base = make_base(engine)
    assert only_error(run(*serve(base, repository))) == f"error: {base} has no tritonserver"


def test_port_in_use(image: str, repository: Path, run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(*serve(image, repository), "--http-port", str(port))
    assert only_error(done).startswith(f"error: port {port} is in use by ")


def test_container_that_ends_at_once(image: str, engine: Any, repository: Path, run: Run, tmp_path: Path) -> None:
    script = tmp_path / "tritonserver"
    script.write_text("#!/bin/sh\necho 'boom: libfoo.so missing'\nexit 7\n")
    script.chmod(0o755)
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nCOPY tritonserver /usr/local/bin/\n")
    engine.images.build(path=str(tmp_path), tag="repo-builder-test-broken", rm=True)
    try:
        error = only_error(run(*serve("repo-builder-test-broken", repository)))
    finally:
        engine.images.remove("repo-builder-test-broken", force=True)
    assert error == "error: tritonserver ended at its start with exit status 7: boom: libfoo.so missing"
    assert run(*REPO_BUILDER, "logs").stdout == "boom: libfoo.so missing\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", "lots"), "--gpus 'lots' is nothing Docker knows"),
        (("--shm-size", "lots"), "--shm-size 'lots' is not a size"),
        (("--engine", "local"), "--image, --gpus and --shm-size are for containers"),
    ],
)
def test_misuse(image: str, repository: Path, run: Run, options: tuple[str, ...], message: str) -> None:
    done = run(*serve(image, repository), *options)
    assert only_error(done) == f"error: {message}"
    assert done.returncode == 2


def write_plan(root: Path, tensorrt: tuple[int, ...]) -> None:
    """The head of a plan, as a model named det."""
    folder = root / "det/1"
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(b"ftrt" + bytes(20) + bytes(tensorrt) + bytes(8))
    (folder.parent / "config.pbtxt").write_text('platform: "tensorrt_plan"\n')


def test_plan_that_the_image_can_t_load(engine: Any, tmp_path: Path, run: Run) -> None:
    write_plan(tmp_path / "models", (10, 13, 2, 6))
    done = run(*serve("nvcr.io/nvidia/tritonserver:25.11-py3", tmp_path / "models"))
    assert only_error(done) == (
        "error: nvcr.io/nvidia/tritonserver:25.11-py3 has TensorRT 10.14.1.48 and can't load det/1: TensorRT 10.13.2.6"
    )
    assert "--image nvcr.io/nvidia/tritonserver:25.08-py3" in done.stderr


@pytest.mark.parametrize(
    ("tag", "variables", "message"),
    [
        (
            "repo-builder-test-own",
            "TRT_VERSION=10.14.1.48 NVIDIA_TRITON_SERVER_VERSION=25.11",
            "repo-builder-test-own has TensorRT 10.14.1.48 and can't load det/1: TensorRT 10.13.2.6",
        ),
        (  # built from 25.11, with another TensorRT
            "repo-builder-test/tritonserver:25.11-py3",
            "TRT_VERSION=10.13.2.6 NVIDIA_TRITON_SERVER_VERSION=25.11",
            "no model could be loaded: det: ",
        ),
    ],
)
def test_an_image_of_one_s_own_is_judged_by_what_it_says(
    image: str, engine: Any, tmp_path: Path, run: Run, tag: str, variables: str, message: str
) -> None:
    root = tmp_path / "models"
    write_plan(root, (10, 13, 2, 6))
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nENV {variables}\n")
    engine.images.build(path=str(tmp_path), tag=tag, rm=True)
    try:
        error = only_error(run(*serve(tag, root)))
    finally:
        engine.images.remove(tag, force=True)
    assert error.startswith(f"error: {message}")


def test_pull_shows_layers_and_bytes(engine: Any, repository: Path, run: Run, tmp_path: Path) -> None:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    if is_rootless(engine.info()):
        pytest.skip("a rootless engine has a 127.0.0.1 of its own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = tmp_path / "registry.yml"
    configuration.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    context = tmp_path / "context"
    context.mkdir()
    (context / "ballast").write_bytes(os.urandom(3_000_000))  # no tritonserver: what follows the pull fails
    (context / "Dockerfile").write_text("FROM scratch\nCOPY ballast /\n")
    name = f"127.0.0.1:{port}/tritonserver"
    registry = subprocess.Popen(["docker-registry", "serve", configuration], stderr=subprocess.DEVNULL)
    try:
        engine.images.build(path=str(context), tag=f"{name}:x", rm=True)
        wait_for(lambda: "error" not in engine.images.push(name, tag="x"))
        engine.images.remove(f"{name}:x", force=True)
        done = run(*serve(f"{name}:x", repository))
        assert only_error(done) == f"error: {name}:x has no tritonserver"
        assert re.search(
            rf"^  pulling {name}:x: \d of 1 layers(, [\d.]+ of [1-9][\d.]* MB.*)?$", done.stderr, re.MULTILINE
        )
        assert engine.images.get(f"{name}:x")
    finally:
        registry.kill()
        registry.wait()
        engine.images.remove(f"{name}:x", force=True)
