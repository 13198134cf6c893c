"""``docker compose`` with this project's files: valid everywhere, and a picture classified by what it brings up."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.conftest import ROOT, Run
from tests.servers.repositories import write_identity
from tests.support import let_everyone_into
from tests.test_host import DOTENV

pytestmark = pytest.mark.docker

GPU = ("-f", "compose.yaml")
CPU = (*GPU, "-f", "compose.cpu.yaml")
PROFILES = ((), ("--profile", "monitoring"), ("--profile", "client"), ("--profile", "*"))


@pytest.fixture(scope="session")
def compose() -> None:
    try:
        done = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("docker is not installed")
    if done.returncode:
        pytest.skip("Docker Compose 2 is not installed")


def config(run: Run, *options: str, **variables: str) -> dict[str, Any]:
    done = run("docker", "compose", *options, "config", "--format", "json", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


@pytest.mark.usefixtures("compose")
@pytest.mark.parametrize("files", [GPU, CPU], ids=["gpu", "cpu"])
@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: "".join(profile[1:]) or "none")
def test_every_file_and_profile_is_valid(run: Run, files: tuple[str, ...], profile: tuple[str, ...]) -> None:
    services = config(run, *files, *profile)["services"]
    expected = {
        (): {"triton"},
        ("--profile", "monitoring"): {"triton", "prometheus", "grafana"},
        ("--profile", "client"): {"triton", "client"},
        ("--profile", "*"): {"triton", "client", "prometheus", "grafana"},
    }
    assert set(services) == expected[profile]


@pytest.mark.usefixtures("compose")
def test_gpus_are_reserved_and_given_up(run: Run) -> None:
    device = {"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}
    assert config(run)["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"] == [device]
    two = config(run, TRITON_GPUS="2")["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert two == [{**device, "count": 2}]
    assert config(run, *CPU)["services"]["triton"].get("deploy") is None


@pytest.mark.usefixtures("compose")
@pytest.mark.parametrize("text", DOTENV)
def test_what_is_known_of_dotenv_is_what_compose_makes_of_it(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "compose.yaml").write_text("services: {triton: {image: '${TRITON_IMAGE:-none}'}}")
    (tmp_path / ".env").write_text(text + "\n", encoding="utf-8")
    done = run("env", "-u", "TRITON_IMAGE", "docker", "compose", "--project-directory", tmp_path, "config", "--images")
    assert done.stdout.strip() == (DOTENV[text] or "none"), done.stderr


class Project:
    """A Compose project with ports of its own."""

    def __init__(self, run: Run, image: str, repository: Path, name: str) -> None:
        self.run, self.name = run, name
        with socket.socket() as http, socket.socket() as grpc, socket.socket() as metrics:
            ports = {"HTTP": http, "GRPC": grpc, "METRICS": metrics}
            for free in ports.values():
                free.bind(("127.0.0.1", 0))
            self.variables = {f"TRITON_{role}_PORT": str(free.getsockname()[1]) for role, free in ports.items()}
        self.url = f"http://127.0.0.1:{self.variables['TRITON_HTTP_PORT']}"
        self.variables |= {
            "TRITON_IMAGE": image,
            "CLIENT_IMAGE": image,
            "MODEL_REPOSITORY": str(repository),
            "TRITON_START_PERIOD": "10s",
            "TRITON_MEMLOCK": "8388608",  # what an engine without CAP_SYS_RESOURCE can give
        }

    def __call__(self, *command: str, files: tuple[str, ...] = CPU) -> subprocess.CompletedProcess[str]:
        return self.run("docker", "compose", "-p", self.name, *files, *command, **self.variables)


@pytest.fixture
def project(
    run: Run, compose: None, engine: Any, image: str, repository: Path, request: pytest.FixtureRequest
) -> Iterator[Project]:
    made = Project(run, image, repository, f"repo-builder-test-{abs(hash(request.node.name)) % 10**6}")
    yield made
    made("down", "--volumes", "--timeout", "5")
    filters = {"label": f"com.docker.compose.project={made.name}"}
    assert engine.containers.list(all=True, filters=filters) == []
    assert engine.networks.list(filters=filters) == []


def test_a_picture_is_classified(project: Project, run: Run) -> None:
    up = project("up", "--detach", "--wait")
    assert up.returncode == 0, up.stderr + project("logs").stdout
    infer = (sys.executable, "-m", "client.infer", "examples/cat.jpg", "--json")
    outside = run(*infer, "--url", project.url)
    assert outside.returncode == 0, outside.stderr
    assert "cat" in json.dumps(json.loads(outside.stdout))
    for files in (CPU, GPU):  # whichever brought the server up, it stays as it is
        inside = project("run", "--rm", "client", "examples/cat.jpg", files=files)
        assert inside.returncode == 0, inside.stderr
        best = [line.split(maxsplit=2)[2] for line in inside.stdout.splitlines()[2:5]]
        assert sorted(best) == ["Egyptian cat", "tabby", "tiger cat"]
    down = project("down")
    assert down.returncode == 0, down.stderr


def test_the_container_is_hardened(project: Project, engine: Any) -> None:
    assert project("up", "--detach", "--wait").returncode == 0
    (container,) = engine.containers.list(filters={"label": f"com.docker.compose.project={project.name}"})
    status = container.exec_run(["cat", "/proc/1/status"]).output.decode()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["1000"] * 4
    assert facts["NoNewPrivs"] == "1"
    assert {facts[key] for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert container.exec_run(["touch", "/opt/x"]).exit_code != 0
    assert container.exec_run(["touch", "/models/x"]).exit_code != 0
    assert container.exec_run(["touch", "/tmp/x"]).exit_code == 0
    addresses = [entry["HostIp"] for bound in container.ports.values() for entry in bound]
    assert addresses == ["127.0.0.1"] * 3


def test_a_server_that_ends_comes_back_and_one_that_is_stopped_ends_well(project: Project, engine: Any) -> None:
    assert project("up", "--detach", "--wait").returncode == 0
    (container,) = engine.containers.list(filters={"label": f"com.docker.compose.project={project.name}"})
    container.exec_run(["sh", "-c", "kill 1"])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        container.attrs["RestartCount"] == 1 and container.attrs["State"].get("Health", {}).get("Status") == "healthy"
    ):
        time.sleep(0.3)
        container.reload()
    assert container.attrs["RestartCount"] == 1
    assert container.health == "healthy"
    assert project("stop").returncode == 0
    container.reload()
    assert container.status == "exited"
    assert container.attrs["State"]["ExitCode"] == 0  # 137, had it been killed after the grace period


def test_one_broken_model_makes_the_container_unhealthy_but_the_others_are_served(
    project: Project, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    write_identity(root, "good")
    write_identity(root, "broken")
    (root / "broken/1/model.onnx").write_bytes(b"not a model")
    let_everyone_into(tmp_path)
    project.variables["MODEL_REPOSITORY"] = str(root)
    up = project("up", "--detach", "--wait")
    assert up.returncode != 0
    assert "unhealthy" in up.stderr
    with urllib.request.urlopen(f"{project.url}/v2/models/good/ready") as answer:
        assert answer.status == 200


def test_a_misspelt_repository_is_an_error(project: Project, tmp_path: Path) -> None:
    project.variables["MODEL_REPOSITORY"] = str(tmp_path / "modles")
    up = project("up", "--detach")
    assert up.returncode != 0
    assert "modles" in up.stderr
    assert not (tmp_path / "modles").exists()


def test_the_small_image_serves_by_itself(engine: Any, image: str, repository: Path) -> None:
    volumes = {str(repository): {"bind": "/work/model_repository", "mode": "ro"}}
    container = engine.containers.run(image, detach=True, volumes=volumes)
    try:
        deadline = time.monotonic() + 30
        while b"READY" not in container.logs() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert b"efficientnet-lite0    1  READY" in container.logs()
        probe = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready').status)"
        assert container.exec_run(["python3", "-c", probe]).output == b"200\n"
        container.stop(timeout=6)
        assert container.wait()["StatusCode"] == 0
    finally:
        container.remove(force=True)


def test_project_files_are_where_compose_mounts_them(run: Run, compose: None) -> None:
    mounted = [
        Path(volume["source"])
        for service in config(run, *GPU, "--profile", "monitoring")["services"].values()
        for volume in service["volumes"]
        if volume["type"] == "bind"
    ]
    assert {path.relative_to(ROOT).as_posix() for path in mounted if path.is_relative_to(ROOT)} >= {
        "monitoring/prometheus.yml",
        "monitoring/grafana/provisioning",
        "monitoring/grafana/dashboards",
    }
    assert all(path.exists() for path in mounted)
