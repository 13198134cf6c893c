"""``doctor`` on machines made up of stand-ins for nvidia-smi and docker, with real repositories and ports."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from repo_builder.compatibility import find_plans
from repo_builder.doctor import examine
from repo_builder.errors import RepositoryError, UsageError
from repo_builder.findings import Finding, Level
from repo_builder.host import check_image_name, image_for_dotenv, write_image
from repo_builder.repository import MANIFEST, MANIFEST_SCHEMA, Repository
from repo_builder.servers.base import ServerOptions
from repo_builder.servers.images import choose_image
from repo_builder.servers.local import start
from tests.conftest import SmallDisk
from tests.servers.test_ports import listening

CONFIG = 'name: "{name}"\nplatform: "{platform}"\nmax_batch_size: 8\n'
DOCKER = """\
case "$1 $2" in
"info --format")
  echo '{{"ServerVersion": "28.2.2", "Runtimes": {{"runc": {{}}, {runtime}}}, "DockerRootDir": "/",'
  echo '"SecurityOptions": [{security}]}}'
  ;;
"compose version") echo {compose} ;;
"image inspect") {image} ;;
"ps --filter") printf '{servers}\\n' ;;
esac
"""


class Machine:
    """A PATH of its own with the programs it is given; not this machine's."""

    def __init__(self, root: Path) -> None:
        self.programs = root / "bin"
        self.repository = root / "models"
        self.programs.mkdir()
        self.repository.mkdir()

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def gpu(self, driver: str = "580.95.05", capability: str = "9.0") -> None:
        self.program("nvidia-smi", f"echo 'NVIDIA H100 80GB HBM3, {driver}, {capability}'")

    def docker(
        self,
        *,
        runtime: str = '"nvidia": {}',
        compose: str = "2.39.1",
        image: str = "echo sha256:1",
        security: str = '"name=seccomp"',
        servers: str = "",
    ) -> None:
        script = DOCKER.format(runtime=runtime, compose=compose, image=image, security=security, servers=servers)
        self.program("docker", script)

    def model(self, name: str, platform: str = "onnxruntime_onnx", more: str = "") -> Path:
        version = self.repository / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(CONFIG.format(name=name, platform=platform) + more)
        (version / "model.onnx").touch()
        return version

    def plan(
        self, name: str, version: tuple[int, ...], capability: str = "9.0", tag: bytes = b"ftrt", *plugins: str
    ) -> None:
        shutil.rmtree(self.repository / name, ignore_errors=True)
        folder = self.model(name, "tensorrt_plan")
        plan = tag + bytes(20) + bytes(version) + bytes(8)
        (folder / "model.plan").write_bytes(plan)
        engine = {"gpu": {"compute_capability": capability}, "plugins": plugins}
        manifest = {"schema": MANIFEST_SCHEMA, "engine": engine, "files": {"model.plan": len(plan)}}
        (folder / MANIFEST).write_text(json.dumps(manifest))

    def examine(self) -> tuple[Finding, ...]:
        return examine(self.repository, self.repository.parent)

    def find(self, subject: str) -> Finding:
        return next(finding for finding in self.examine() if finding.subject == subject)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.programs))
    monkeypatch.setattr("repo_builder.host.PROC", tmp_path / "proc")
    ports = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
    for variable in (*ports, "TRITON_IMAGE", "TRITON_USER", "TRITON_MEMLOCK", "DOCKER_HOST"):
        monkeypatch.delenv(variable, raising=False)
    return made


def test_gpu_and_driver(machine: Machine) -> None:
    assert machine.find("GPU").text.startswith(
        "none: ONNX models are served on the CPU, by Compose with -f compose.yaml"
    )
    machine.gpu()
    assert machine.find("GPU").text == "NVIDIA H100 80GB HBM3, compute capability 9.0"
    assert machine.find("driver") == Finding(
        "driver", Level.OK, "580.95.5, which runs Triton containers up to 25.11", None
    )
    machine.gpu(driver="390.12")
    assert machine.find("driver").level is Level.WRONG


def test_broken_driver(machine: Machine) -> None:
    machine.program("nvidia-smi", 'echo "couldn\'t communicate with the NVIDIA driver" >&2; exit 9')
    found = machine.find("GPU")
    assert (found.level, found.text) == (
        Level.WRONG,
        "nvidia-smi fails: couldn't communicate with the NVIDIA driver",
    )


def test_docker_missing_refused_or_down(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.find("docker").text == "not installed"
    machine.program("docker", "echo 'permission denied while trying to connect to the Docker daemon' >&2; exit 1")
    refused = machine.find("docker")
    assert refused.text == "this user may not use the engine"
    assert "usermod -aG docker" in str(refused.mend)
    machine.program("docker", "echo 'Cannot connect to the Docker daemon at unix:///x' >&2; exit 1")
    assert machine.find("docker").mend == "start the engine: sudo systemctl start docker (or Docker Desktop)"
    assert machine.find("compose").level is machine.find("image").level is Level.WARNING
    assert machine.find("image").text.endswith("; whether it is here can't be told without the engine")
    monkeypatch.setenv("DOCKER_HOST", "unix:///x")
    assert str(machine.find("docker").mend).startswith("DOCKER_HOST says where: ")


def test_docker_that_hangs_does_not_hold_the_report_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.program("docker", "exec /bin/sleep 30")
    monkeypatch.setattr("repo_builder.host.TIMEOUT_S", 0.2)
    assert "does not answer within 0.2 s" in machine.find("docker").text


def test_what_only_takes_long_is_told_as_such(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repo_builder.host.TIMEOUT_S", 0.05)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) or find("json"))
    monkeypatch.setattr(sys, "executable", str(machine.programs / "python"))
    for name in ("nvidia-smi", "docker", "python"):
        machine.program(name, "exec /bin/sleep 30")
    levels = {finding.subject: finding.level for finding in machine.examine()}
    assert levels["TensorRT"] is levels["TensorRT-RTX"] is levels["compose"] is Level.WARNING
    assert str(machine.find("GPU").mend).startswith("sudo nvidia-smi -pm 1, ")


def test_container_toolkit_matters_only_with_a_gpu(machine: Machine) -> None:
    machine.docker(runtime='"other": {}')
    assert not [finding for finding in machine.examine() if finding.subject == "container toolkit"]
    machine.gpu()
    assert machine.find("container toolkit").level is Level.WRONG
    machine.docker()
    assert machine.find("container toolkit").level is Level.OK


def test_locked_memory_that_the_engine_can_t_give(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    process = machine.repository.parent / "proc/12"
    process.mkdir(parents=True)
    (process / "limits").write_text("Max locked memory         65536                8388608              bytes     \n")
    machine.docker()

    def found(name: str, user: int, capabilities: int) -> list[Finding]:
        status = f"Name:\t{name}\nUid:\t{user}\t{user}\t{user}\t{user}\nCapEff:\t{capabilities:016x}\n"
        (process / "status").write_text(status)
        return [finding for finding in machine.examine() if finding.subject == "locked memory"]

    every = (1 << 41) - 1
    (refused,) = found("dockerd", 0, every & ~(1 << 24))
    assert refused == Finding(
        "locked memory",
        Level.WRONG,
        "the engine lets containers lock 8388608 bytes at most, and compose.yaml asks for no limit",
        "TRITON_MEMLOCK=8388608 in .env, or serve --engine docker",
    )
    assert found("dockerd", 0, every) == found("other", 0, 0) == found("dockerd", 12345, 0) == []
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
    machine.docker(security='"name=rootless"')
    assert found("containerd", os.getuid(), every) == [refused]  # root in a namespace only
    assert found("dockerd", 12345, every) == []  # someone else's
    monkeypatch.setenv("TRITON_MEMLOCK", "8388608")
    assert found("dockerd", os.getuid(), every) == []


def test_compose_too_old(machine: Machine) -> None:
    machine.docker(compose="v2.20.2")
    assert machine.find("compose").level is Level.WARNING
    machine.docker(compose="2.26.1-4")
    assert machine.find("compose").level is Level.OK


def test_image_is_compose_s_or_the_one_of_dotenv(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    compose = (Path(__file__).parents[1] / "compose.yaml").read_text()
    machine.docker(image="exit 1")
    image = machine.find("image").text.split()[0]
    assert f"${{TRITON_IMAGE:-{image}}}" in compose
    (machine.repository.parent / ".env").write_text("# mine\nTRITON_IMAGE='nvcr.io/nvidia/tritonserver:23.06-py3'\n")
    assert machine.find("image").mend == "docker pull nvcr.io/nvidia/tritonserver:23.06-py3"
    monkeypatch.setenv("TRITON_IMAGE", "mine:1")
    assert machine.find("image").text == "mine:1 is not pulled yet"


def test_image_needs_a_newer_driver(machine: Machine) -> None:
    machine.docker()
    machine.gpu(driver="535.104.05")
    found = machine.find("image")
    assert found.level is Level.WRONG
    assert "needs driver 580.95, here is 535.104.5" in found.text
    assert "TRITON_IMAGE=nvcr.io/nvidia/tritonserver:23.10-py3" in str(found.mend)


def test_port_in_use_names_the_holder(machine: Machine) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8001))
        except OSError:
            pytest.skip("something else listens on port 8001 here")
        taken.listen()
        found = machine.find("port 8001")
    assert found.level is Level.WRONG
    assert f"(pid {os.getpid()})" in found.text
    assert "--grpc-port 0" in str(found.mend)


def test_a_container_s_port_is_told_as_such(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening("docker-proxy", tmp_path) as port:
        monkeypatch.setenv("TRITON_HTTP_PORT", str(port))
        found = machine.find(f"port {port}")
    assert found.text.startswith("HTTP would need it, and docker-proxy (pid ")
    assert str(found.mend).startswith(
        f"docker ps --filter publish={port} names the container: stop that, or serve with"
    )


def test_a_server_of_compose_s_may_have_its_ports(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("TRITON_GRPC_PORT", str(port))
        for folder, level in ((machine.repository, Level.WRONG), (machine.repository.parent, Level.OK)):
            for published in (f"127.0.0.1:{port - 1}-{port + 1}->8000-8002/tcp", f"8000/tcp, 0.0.0.0:{port}->8001/tcp"):
                machine.docker(servers=f"{folder}\\t{published}")
                assert machine.find(f"port {port}").level is level


def test_the_ports_are_those_that_compose_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (machine.repository.parent / ".env").write_text(f"TRITON_GRPC_PORT={port}\n")
        monkeypatch.setenv("TRITON_METRICS_PORT", "many")
        found = {finding.subject: finding for finding in machine.examine() if finding.subject.startswith("port ")}
    assert list(found)[1:] == [f"port {port}", "port many"]
    assert "gRPC would need it" in found[f"port {port}"].text
    assert (found["port many"].level, found["port many"].text) == (Level.WRONG, "TRITON_METRICS_PORT is no port")


def test_good_model(machine: Machine) -> None:
    machine.model("resnet")
    assert machine.find("model resnet") == Finding("model resnet", Level.OK, "onnxruntime_onnx, version 1")


@pytest.mark.parametrize(
    ("config", "text"),
    [(None, "has no readable config.pbtxt"), ("name: [", "config.pbtxt"), ('name: "x"', "has no version")],
)
def test_broken_models(machine: Machine, config: str | None, text: str) -> None:
    folder = machine.repository / "x"
    folder.mkdir()
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    found = machine.find("model x")
    assert found.level is Level.WRONG
    assert text in found.text


@pytest.mark.parametrize(
    ("more", "level", "text"),
    [
        ("instance_group [{ kind: KIND_GPU }]", Level.WRONG, "asks for a GPU, and there is none here"),
        ('input [{ name: "x" optional: true }]', Level.WRONG, "input 'x' is optional"),
        ('input [{ name: "x" dims: [4] format: FORMAT_NCHW }]', Level.WRONG, "has format FORMAT_NCHW"),
        ('model_warmup [{ name: "w" batch_size: 9 }]', Level.WRONG, "has batch_size 9, more than max_batch_size 8"),
        ("version_policy { specific { versions: [77] } }", Level.WRONG, "takes versions 77, and the model has 1"),
        ("sequence_batching { }", Level.WARNING, "sequence_batching is not served by repo-builder serve"),
        ('output [{ name: "y" label_filename: "l.txt" }]', Level.WRONG, "l.txt is missing, which config.pbtxt names"),
        ('default_model_filename: "net.onnx"', Level.WRONG, "1/net.onnx is missing"),
    ],
)
def test_configurations_that_triton_refuses(machine: Machine, more: str, level: Level, text: str) -> None:
    machine.model("resnet", more=more)
    found = machine.find("model resnet")
    assert text in found.text
    assert found.level is level
    assert found.mend


@pytest.mark.parametrize(
    ("more", "mend"),
    [("", 'backend: "onnxruntime" in its place'), ('backend: "onnxruntime"', "drop platform from config.pbtxt")],
)
def test_a_platform_that_triton_does_not_have(machine: Machine, more: str, mend: str) -> None:
    machine.model("resnet", platform="onnxruntime", more=more)
    found = machine.find("model resnet")
    assert (found.level, found.text) == (Level.WRONG, "platform 'onnxruntime' is none that Triton has")
    assert mend in str(found.mend)


@pytest.mark.parametrize(
    ("dims", "profiles", "text"),
    [
        (4, [], ""),
        (5, [], "input 'x' has dims [4] in the model, [5] in the config"),
        (4, [{"max": {"x": [6, 4]}}], "config.pbtxt has max_batch_size: 8, the plan takes 6 at most"),
        (4, [{}], "the manifest.json of version 1 is not whole"),
    ],
)
def test_a_config_edited_until_it_is_not_the_models(machine: Machine, dims: int, profiles: object, text: str) -> None:
    version = machine.model("net", more=f'input [{{ name: "x" data_type: TYPE_FP32 dims: [{dims}] }}]')
    tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    manifest = {"schema": MANIFEST_SCHEMA, "files": {}, "inputs": tensors, "engine": {"profiles": profiles}}
    (version / MANIFEST).write_text(json.dumps(manifest))
    (version / "config.pbtxt").write_text("as published")
    found = machine.find("model net")
    assert found.level is (Level.WRONG if text else Level.OK)
    assert found.text.endswith(text)


def test_a_warmup_without_its_file(machine: Machine) -> None:
    sample = (
        'name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [4] input_data_file: "x.bin" } }'
    )
    tensor = 'input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]'
    version = machine.model("resnet", more=f"{tensor} model_warmup [{{ {sample} }}]")
    assert machine.find("model resnet").text == "warmup/x.bin is missing, which config.pbtxt names"
    (version.parent / "warmup").mkdir()
    (version.parent / "warmup/x.bin").touch()
    assert machine.find("model resnet").level is Level.OK


def test_a_gpu_asked_for_and_there(machine: Machine) -> None:
    machine.gpu()
    machine.model("resnet", more="instance_group [{ kind: KIND_GPU }]")
    assert machine.find("model resnet").level is Level.OK


def test_a_config_for_another_folder(machine: Machine) -> None:
    machine.model("resnet").parent.rename(machine.repository / "other")
    assert machine.find("model other").text == "config.pbtxt is for a model named 'resnet'"


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ('{"schema": 1, "files": {"model.onnx": 12}}', "model.onnx is 3 bytes long instead of 12"),
        ('{"schema": 1, "files": {"model.onnx": 3, "weights": 5}}', "weights is missing"),
        ('{"schema": 1', "manifest.json can't be read"),
    ],
)
def test_damaged_versions(machine: Machine, manifest: str, text: str) -> None:
    version = machine.model("resnet")
    (version / "model.onnx").write_text("cut")
    (version / MANIFEST).write_text(manifest)
    mend = "publish it again with repo-builder add, or repo-builder remove resnet@1"
    assert machine.find("model resnet") == Finding("model resnet", Level.WRONG, f"version 1 is damaged: {text}", mend)
    (version.parent / "2").mkdir()
    assert machine.find("model resnet").level is Level.WARNING  # the one that Triton takes is good


def test_plan_without_gpu(machine: Machine) -> None:
    machine.plan("det", (10, 14, 1, 48))
    assert "needs an NVIDIA GPU" in machine.find("model det").text


def test_plan_of_another_gpu(machine: Machine) -> None:
    machine.gpu(capability="8.6")
    machine.plan("det", (10, 14, 1, 48), capability="7.5")
    assert machine.find("model det").text == ("1/model.plan was built for compute capability 7.5, here is 8.6")


def test_plans_for_several_gpus(machine: Machine) -> None:
    machine.gpu(capability="9.0")
    folder = machine.model("det", "tensorrt_plan")
    plans = {}
    for capability in ("9.0", "8.6", "12.0"):
        file = f"model_cc{capability.replace('.', '')}.plan"
        (folder / file).write_bytes(b"ftrt" + bytes(20) + bytes((10, 14, 1, 48)) + bytes(8))
        plans[capability] = {"file": file, "engine": {"gpu": {"compute_capability": capability}}}
    manifest = {"schema": MANIFEST_SCHEMA, "files": {}, "plans": plans}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert machine.find("model det") == Finding("model det", Level.OK, "tensorrt_plan, version 1")
    machine.gpu(capability="8.9")
    found = machine.find("model det")
    assert found.level is Level.WRONG
    assert found.text == "version 1 has plans for compute capability 8.6, 9.0, 12.0, none for 8.9"
    assert "--cc-plan" in str(found.mend)
    assert machine.find("container").level is Level.OK


def test_plan_of_another_tensorrt_than_the_image_s(machine: Machine) -> None:
    machine.gpu()
    machine.plan("det", (10, 13, 2, 6))
    found = machine.find("model det")
    assert found.text == (
        "1/model.plan is of TensorRT 10.13.2.6, and nvcr.io/nvidia/tritonserver:25.11-py3 has 10.14.1.48"
    )
    assert found.mend == "TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.08-py3 in .env"


def test_plan_that_fits(machine: Machine) -> None:
    machine.gpu()
    machine.plan("det", (10, 14, 1, 48))
    assert machine.find("model det").level is Level.OK
    assert machine.find("container").text == "nvcr.io/nvidia/tritonserver:25.11-py3 loads every plan"
    machine.gpu("590.48.01")
    assert machine.find("container").text == "nvcr.io/nvidia/tritonserver:26.01-py3 loads every plan"


@pytest.mark.parametrize("image", ["25.11", "26.01", "24.12"])
def test_an_image_for_both_the_plan_and_the_driver(machine: Machine, image: str) -> None:
    machine.docker()
    machine.gpu("580.95.05")
    machine.plan("det", (10, 14, 1, 48))
    (machine.repository.parent / ".env").write_text(f"TRITON_IMAGE=nvcr.io/nvidia/tritonserver:{image}-py3\n")
    mends = {finding.mend for finding in machine.examine() if "TRITON_IMAGE" in str(finding.mend)}
    assert mends == ({"TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.11-py3 in .env"} if image != "25.11" else set())
    assert machine.find("container").text == "nvcr.io/nvidia/tritonserver:25.11-py3 loads every plan"


@pytest.mark.parametrize("image", ["23.10", "26.01"])
def test_no_image_for_both_the_plan_and_the_driver(machine: Machine, image: str) -> None:
    machine.docker()
    machine.gpu("535.104.05")
    machine.plan("det", (10, 14, 1, 48))
    (machine.repository.parent / ".env").write_text(f"TRITON_IMAGE=nvcr.io/nvidia/tritonserver:{image}-py3\n")
    assert machine.find("container") == Finding(
        "container",
        Level.WRONG,
        "no Triton container that driver 535.104.5 runs loads det/1: TensorRT 10.14.1.48",
        "install driver 580.95 or newer, for nvcr.io/nvidia/tritonserver:25.11-py3, which forward compatibility may "
        "run on a data-centre GPU as it is, where it is named; or build with TensorRT 8.6.1.6, as "
        "nvcr.io/nvidia/tritonserver:23.10-py3 has",
    )
    assert not [finding for finding in machine.examine() if "TRITON_IMAGE" in str(finding.mend)]
    done = doctor(machine, "--write-env")
    assert "error: no Triton container that driver 535.104.5 runs loads det/1" in done.stderr
    assert image in (machine.repository.parent / ".env").read_text()


def test_an_image_of_one_s_own_is_judged_by_what_it_says_of_itself(machine: Machine) -> None:
    machine.gpu()
    machine.docker(image="""echo '["TRT_VERSION=10.13.2.6", "NVIDIA_TRITON_SERVER_VERSION=25.08"]'""")
    (machine.repository.parent / ".env").write_text("TRITON_IMAGE=mine:1\n")
    machine.plan("det", (10, 13, 2, 6))
    assert machine.find("container") == Finding("container", Level.OK, "mine:1 loads every plan")
    assert machine.find("model det").level is Level.OK
    machine.plan("det", (10, 14, 1, 48))
    assert machine.find("model det").text == "1/model.plan is of TensorRT 10.14.1.48, and mine:1 has 10.13.2.6"
    machine.gpu(driver="570.124.06")
    assert machine.find("image").text == "mine:1 needs driver 580.65, here is 570.124.6"


@pytest.mark.usefixtures("file_modes_hold")
def test_a_repository_that_can_not_be_read(machine: Machine) -> None:
    machine.plan("det", (10, 14, 1, 48))
    for folder in (machine.repository / "det", machine.repository):
        folder.chmod(0)
        found = machine.find("repository")
        assert (found.level, found.text) == (Level.WRONG, f"{folder} can't be read: Permission denied")
        assert found.mend


def test_what_is_no_repository(machine: Machine) -> None:
    machine.repository.rmdir()
    assert machine.find("repository").text == f"{machine.repository} does not exist"
    machine.repository.touch()
    assert machine.find("repository").text == f"{machine.repository} is not a folder"


def test_custom_layers_that_compose_does_not_load(machine: Machine) -> None:
    machine.gpu()
    machine.plan("cat", (10, 14, 1, 48), "9.0", b"ftrt", "plugins/layers.so")
    found = machine.find("model cat")
    assert found.level is Level.WARNING
    assert "--backend-config=tensorrt,plugins=/models/cat/1/plugins/layers.so" in (found.mend or "")


def test_plans_of_two_versions(machine: Machine) -> None:
    machine.gpu()
    machine.plan("new", (10, 14, 1, 48))
    machine.plan("old", (8, 6, 1, 2))
    found = machine.find("container")
    assert found.level is Level.WRONG
    assert "old/1: TensorRT 8.6.1.2; new/1: TensorRT 10.14.1.48" in found.text
    (machine.repository.parent / ".env").write_text("TRITON_IMAGE=mine:1\n")  # nor is there an image that has both
    assert machine.find("container") == found


def test_an_image_that_was_named_is_the_one_that_is_judged(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpu()
    machine.plan("old", (8, 6, 0, 12))  # no container of NVIDIA's is known to have it
    assert machine.find("container").level is Level.WRONG
    monkeypatch.setenv("TRITON_IMAGE", "mine:1")
    named = machine.find("container")
    assert named == Finding(
        "container",
        Level.WARNING,
        "which TensorRT mine:1 has is not known here, and the plans are of 8.6.0.12",
        "see that it has it: no container of NVIDIA's that runs here is known to",
    )
    machine.plan("old", (10, 14, 1, 48))
    assert machine.find("container").mend == (
        "if it has another: TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.11-py3 in .env"
    )
    machine.gpu("590.48.01")
    monkeypatch.setenv("TRITON_IMAGE", "nvcr.io/nvidia/tritonserver:25.11-py3")  # not the newest that has it
    assert machine.find("container").text == "nvcr.io/nvidia/tritonserver:25.11-py3 loads every plan"
    report = json.loads(doctor(machine, "--json", "--image", "nvcr.io/nvidia/tritonserver:25.08-py3").stdout)
    (model,) = [finding for finding in report["findings"] if finding["subject"] == "model old"]
    assert "nvcr.io/nvidia/tritonserver:25.08-py3 has 10.13.2.6" in model["text"]


def test_links_that_a_container_can_t_follow(machine: Machine, tmp_path: Path) -> None:
    model = machine.model("resnet").parent
    model.rename(tmp_path / "resnet")
    (machine.repository / "resnet").symlink_to("../resnet")
    (machine.repository / "loop").symlink_to("loop")
    lost, outside = [finding for finding in machine.examine() if finding.subject == "repository"][:2]
    assert (lost.level, outside.level) == (Level.WRONG, Level.WARNING)
    assert lost.text.startswith(f"{machine.repository}/loop leads to loop, which is not there")
    assert outside.text.startswith(f"{machine.repository}/resnet leads to ../resnet, which a container does not have")


def test_files_the_container_s_user_can_t_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    file = machine.model("secret") / "model.onnx"
    file.chmod(0o600)
    found = machine.find("repository")
    assert found.level is Level.WARNING
    assert "model.onnx is not readable by user 1000, whom Triton's container runs as" in found.text
    assert f"or TRITON_USER={file.stat().st_uid}:{file.stat().st_gid} in .env" in str(found.mend)
    machine.docker()
    assert machine.find("repository") == replace(found, level=Level.WRONG)
    file.chmod(0o640)  # which may be a group of the container's user
    assert machine.find("repository") == found
    file.chmod(0o600)
    monkeypatch.setenv("TRITON_USER", f"{os.getuid()}:{os.getgid()}")
    assert machine.find("repository").level is Level.OK
    monkeypatch.delenv("TRITON_USER")
    machine.docker(security='"name=rootless"')  # users of its containers are no users of this machine
    assert str(machine.find("repository").mend).endswith(" or TRITON_USER=0:0 in .env")
    monkeypatch.setenv("TRITON_USER", "0:0")
    assert machine.find("repository").level is Level.OK


def test_command(machine: Machine, tmp_path: Path) -> None:
    machine.model("resnet")
    command = [sys.executable, "-m", "repo_builder", "doctor", "--json", "--repository", str(machine.repository)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    report = json.loads(done.stdout)
    wrong = [finding for finding in report["findings"] if finding["level"] == "wrong"]
    assert report["ok"] is not bool(wrong)
    assert done.returncode == (1 if wrong else 0)
    (machine.repository / "resnet/config.pbtxt").unlink()
    done = subprocess.run(command[:-3] + command[-2:], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "wrong    model resnet" in done.stdout
    assert done.stderr == ""


def doctor(machine: Machine, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "repo_builder", "doctor", "--repository", str(machine.repository), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=machine.repository.parent)


def test_write_env_changes_its_own_line_only(machine: Machine) -> None:
    machine.plan("det", (10, 14, 1, 48))
    dotenv = machine.repository.parent / ".env"
    dotenv.write_text("TRITON_IMAGE=old\nGRAFANA_PORT=3001\n")
    alone = doctor(machine, "--write-env").stderr
    assert "26.01-py3" in alone
    assert "there is no compose.yaml here" in alone
    (dotenv.parent / "compose.yaml").touch()
    assert "compose.yaml" not in doctor(machine, "--write-env").stderr
    kept = (
        "GRAFANA_PORT=3001\n# TRITON_IMAGE is kept by repo-builder\nTRITON_IMAGE=nvcr.io/nvidia/tritonserver:{}-py3\n"
    )
    assert dotenv.read_text() == kept.format("26.01")
    image = "nvcr.io/nvidia/tritonserver:25.11-py3"
    assert write_image(dotenv.parent, image, asked=False) == dotenv
    assert dotenv.read_text() == kept.format("25.11")
    assert not list(dotenv.parent.glob(".env.*"))


def test_an_image_that_serves_the_plans_stays(machine: Machine) -> None:
    machine.plan("det", (10, 14, 1, 48))
    plans, folder = find_plans(Repository(machine.repository)), machine.repository.parent
    newest, r580, mirrored = (
        f"{host}/tritonserver:{release}-py3"
        for host, release in (("nvcr.io/nvidia", "26.01"), ("nvcr.io/nvidia", "25.11"), ("mirror.example", "25.12"))
    )
    assert image_for_dotenv(plans, folder) == (newest, None)
    write_image(folder, mirrored, asked=True)
    assert image_for_dotenv(plans, folder) == (mirrored, None)
    machine.gpu("580.95.05")  # too old for that
    assert image_for_dotenv(plans, folder) == (r580, None)
    assert choose_image(None, plans, folder.parent) == r580
    assert f"wrote TRITON_IMAGE={r580} to .env, instead of {mirrored}" in doctor(machine, "--write-env").stderr
    machine.gpu("595.58")
    assert image_for_dotenv(plans, folder) == (r580, None)


def test_an_env_of_others_is_left_alone_unless_asked(tmp_path: Path) -> None:
    assert write_image(tmp_path, "a:1", asked=False) is None
    assert not (tmp_path / ".env").exists()
    (tmp_path / ".env").write_text("TRITON_IMAGE=mine\n")
    assert write_image(tmp_path, "a:1", asked=False) is None
    assert (tmp_path / ".env").read_text() == "TRITON_IMAGE=mine\n"


def test_write_env_that_can_t_choose_shows_the_findings_all_the_same(machine: Machine) -> None:
    machine.model("resnet")
    dotenv = machine.repository.parent / ".env"
    done = doctor(machine, "--write-env")
    assert done.returncode == 2
    assert "ok       model resnet " in done.stdout
    assert done.stderr.startswith(f"error: {machine.repository} has no plans, so any image serves it\n\nhint: ")
    machine.plan("new", (10, 14, 1, 48))
    machine.plan("old", (8, 6, 1, 2))
    done = doctor(machine, "--write-env")
    assert done.returncode == 1
    assert "wrong    container " in done.stdout
    assert done.stderr.startswith("error: no one container loads all of these plans")
    assert len(json.loads(doctor(machine, "--write-env", "--json").stdout)["findings"]) > 5
    assert not dotenv.exists()


def test_write_env_writes_the_image_that_is_named(machine: Machine) -> None:
    machine.plan("old", (8, 6, 0, 12))
    dotenv = machine.repository.parent / ".env"
    refused = doctor(machine, "--write-env", "--image", "nvcr.io/nvidia/tritonserver:25.11-py3")
    assert refused.returncode == 1
    assert "error: nvcr.io/nvidia/tritonserver:25.11-py3 has TensorRT 10.14.1.48 and can't load old/1" in refused.stderr
    assert not dotenv.exists()
    assert "wrote TRITON_IMAGE=mine:1" in doctor(machine, "--write-env", "--image", "mine:1").stderr
    assert dotenv.read_text().endswith("\nTRITON_IMAGE=mine:1\n")
    machine.plan("new", (10, 14, 1, 48))
    refused = doctor(machine, "--write-env", "--image", "mine:3")  # whichever TensorRT it has
    assert refused.stderr.startswith("error: no one container loads all of these plans: old/1")
    shutil.rmtree(machine.repository / "new")
    machine.docker(image="""echo '["TRT_VERSION=10.13.2.6", "NVIDIA_TRITON_SERVER_VERSION=25.08"]'""")
    refused = doctor(machine, "--write-env", "--image", "mine:2")
    assert "error: mine:2 has TensorRT 10.13.2.6 and can't load old/1: TensorRT 8.6.0.12\n\nhint: " in refused.stderr
    assert dotenv.read_text().endswith("\nTRITON_IMAGE=mine:1\n")


@pytest.mark.parametrize("image", ["Bad Image!!\nX=1", "", "Capitals:x", "a:b:c", "x@sha256:0", "mine:1\n"])
def test_what_can_t_be_the_name_of_an_image_is_refused(
    machine: Machine, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = doctor(machine, "--write-env", "--image", image)
    assert done.returncode == 2
    assert "is not the name of an image\n\nhint: --image" in done.stderr
    assert not (machine.repository.parent / ".env").exists()
    monkeypatch.setenv("TRITON_IMAGE", image or "A")
    machine.docker()
    assert machine.find("image").level is Level.WRONG


def test_names_of_images_that_docker_takes() -> None:
    digest = "sha256:" + "0" * 64
    for name in ("triton", "nvcr.io/nvidia/tritonserver:25.11-py3", "localhost:5000/a__b/c-d.e:X_1", f"a/b:1@{digest}"):
        check_image_name(name)


def test_write_env_tells_what_it_replaces_and_writes_where_a_link_leads(machine: Machine, tmp_path: Path) -> None:
    shared = tmp_path / "shared.env"
    shared.write_text('export TRITON_IMAGE="other:1" # mine\nA=1\n')
    shared.chmod(0o600)
    dotenv = machine.repository.parent / ".env"
    dotenv.symlink_to(shared)
    assert (
        "wrote TRITON_IMAGE=mine:1 to .env, instead of other:1\n"
        in doctor(machine, "--write-env", "--image", "mine:1").stderr
    )
    assert dotenv.is_symlink()
    assert shared.read_text() == "A=1\n# TRITON_IMAGE is kept by repo-builder\nTRITON_IMAGE=mine:1\n"
    assert shared.stat().st_mode & 0o777 == 0o600


def test_full_disks_are_wrong_and_left_as_they_are(
    machine: Machine, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"] + ":/usr/sbin:/usr/bin:/sbin:/bin")
    disk = small_disk(64)
    with contextlib.suppress(OSError):
        (disk / "ballast").write_bytes(bytes(1 << 20))
    with pytest.raises(RepositoryError, match="No space left"):
        write_image(disk, "mine:1", asked=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(disk))
    machine.model("resnet")
    found = machine.find("disk of logs")
    assert (found.level, found.text) == (Level.WRONG, f"only 0.0 GB free at {disk}/repo-builder")
    assert "XDG_STATE_HOME" in str(found.mend)
    with pytest.raises(UsageError, match=f"the log can't go to {disk}/.*: No space left on device"):
        start(machine.repository, ServerOptions(0, 0, 0))
    assert sorted(path.name for path in disk.rglob("*") if path.is_file()) == ["ballast"]


def test_a_plan_without_a_gpu_is_one_line(machine: Machine) -> None:
    machine.plan("det", (10, 14, 1, 48))
    config = machine.repository / "det/config.pbtxt"
    config.write_text(config.read_text() + "instance_group [{ count: 1 kind: KIND_GPU }]\n")
    (found,) = [finding for finding in machine.examine() if finding.subject == "model det"]
    assert found.text == "1/model.plan needs an NVIDIA GPU, and there is none here"
