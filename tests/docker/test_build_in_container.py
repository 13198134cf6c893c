"""``add --build-in-container``: real TensorRT-RTX engines out of a container, and every failure in one line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from repo_builder.add import BuildOptions, add_model
from repo_builder.compilers import container as container_module
from repo_builder.compilers.base import Target
from repo_builder.compilers.build_container import BuildContainer, connect_for_build
from repo_builder.compilers.container import ContainerOptions, open_container
from repo_builder.config.proto import read_config
from repo_builder.errors import CompileError, ServerError, UsageError
from repo_builder.repository import Repository
from repo_builder.servers.docker import gpu_requests
from repo_builder.trt.options import TensorRTOptions
from tests.conftest import SmallDisk
from tests.docker.build_image import make_bare_image, make_build_image, with_file
from tests.docker.conftest import ROOT, Containers, Run
from tests.docker.make_image import CannotMakeError
from tests.docker.test_serve_docker import only_error
from tests.models import convolution, save
from tests.support import compile_c, let_everyone_into, rtx, untouched, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("no_containers")]

ADD = (sys.executable, "-m", "repo_builder", "add")
RTX = ("--target", "tensorrt-rtx", "--build-in-container")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The caller's caches, where the packages of a container are kept from one test to the next."""
    folder = tmp_path_factory.mktemp("build-cache")
    let_everyone_into(folder)
    return folder


@pytest.fixture(autouse=True)
def kept_cache(own_folders: None, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="session")
def build_image(engine: Any) -> str:
    try:
        return make_build_image(engine)
    except CannotMakeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def bare_image(engine: Any) -> str:
    try:
        return make_bare_image(engine)
    except CannotMakeError as error:
        pytest.skip(str(error))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(convolution(), tmp_path / "net.onnx")


def test_engine_is_built_in_the_container_and_published_here(
    build_image: str, source: Path, tmp_path: Path, cache: Path, run: Run
) -> None:
    folder = tmp_path / "models"
    command = (*ADD, source, "-r", folder, *RTX, "--container-image", build_image, "--fp16", "--json")
    first = run(*command, XDG_CACHE_HOME=str(cache))
    assert first.returncode == 0, first.stderr
    manifest = json.loads(first.stdout)
    assert manifest["engine"]["container"]["image"] == build_image
    assert manifest["engine"]["container"]["id"].startswith("sha256:")
    assert manifest["target_reason"] == f"built in {build_image}"
    assert (folder / "net/1/model.plan").read_bytes()[:4] == b"vtrt"
    assert Path(manifest["engine"]["log"]).read_text(encoding="utf-8")  # in the container and here at one path
    assert sorted(file.name for file in (folder / "net/1").iterdir()) == ["config.pbtxt", "manifest.json", "model.plan"]
    for step in ("compiling for tensorrt-rtx", "converting the graph to FP16", "building the engine", "verifying"):
        assert f"  {step}" in first.stderr
    assert 0 < manifest["verification"]["outputs"][0]["max_absolute_error"] < 0.05  # FP16, by the container's runtime
    again = run(*command, XDG_CACHE_HOME=str(cache))
    assert json.loads(again.stdout)["unchanged"] is True
    assert "installing" not in again.stderr


@rtx
def test_manifest_and_config_are_those_of_a_build_here(build_image: str, source: Path, tmp_path: Path) -> None:
    options = TensorRTOptions(bf16=True, half_outputs=True, compute_capabilities=("8.6",))
    builds = [
        BuildOptions(Target.TENSORRT_RTX, tensorrt=options, container=container)
        for container in (ContainerOptions(build_image), None)
    ]
    there, here = (
        add_model(source, repository=tmp_path / f"models{number}", build=build) for number, build in enumerate(builds)
    )
    assert list(there.manifest) == list(here.manifest)
    assert there.manifest["engine"].keys() - {"container"} == here.manifest["engine"].keys()
    same = ("fingerprint", "platform", "inputs", "outputs", "max_batch_size", "batching", "verification", "unverified")
    for key in (*same, "options"):
        assert there.manifest[key] == here.manifest[key], key
    assert there.manifest["engine"]["layers_by_precision"] == here.manifest["engine"]["layers_by_precision"]
    assert there.hints == here.hints
    assert str(read_config(there.folder / "config.pbtxt")) == str(read_config(here.folder / "config.pbtxt"))


def test_external_data_goes_in_and_does_not_stay(build_image: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(convolution(), path, save_as_external_data=True, location="net.weights", size_threshold=0)
    build = BuildOptions(Target.TENSORRT_RTX, container=ContainerOptions(build_image))
    published = add_model(path, repository=tmp_path / "models", build=build)
    assert "net.weights" not in published.manifest["files"]
    assert published.manifest["files"]["model.plan"] > 1000


def test_plugins_and_a_timing_cache_are_there(build_image: str, source: Path, tmp_path: Path) -> None:
    library = compile_c(tmp_path / "libcustom.so", "int custom(void) { return 1; }\n")
    build = BuildOptions(Target.TENSORRT_RTX, container=ContainerOptions(build_image))
    options = TensorRTOptions(plugins=(library,))
    published = add_model(source, repository=tmp_path / "models", build=replace(build, tensorrt=options))
    [file] = published.manifest["engine"]["plugins"]
    assert (published.folder / "1" / file).read_bytes() == library.read_bytes()
    options = TensorRTOptions(timing_cache=tmp_path / "timing/a.cache")  # refused in the container: RTX has none
    with pytest.raises(UsageError, match="--timing-cache: TensorRT-RTX measures no tactics"):
        add_model(source, repository=tmp_path / "models", build=replace(build, tensorrt=options), force=True)


def test_files_belong_to_the_caller(build_image: str, source: Path, tmp_path: Path, run: Run) -> None:
    socket = Path("/var/run/docker.sock")
    if os.getuid() or shutil.which("setpriv") is None or not socket.exists():
        pytest.skip("needs root, to be someone else, and the engine's socket")
    own = tmp_path / "own"
    own.mkdir()
    os.chown(own, 12345, 12345)
    let_everyone_into(tmp_path)
    # This Python may lie in root's home: the right to read there goes along.
    rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    other = ("setpriv", "--reuid=12345", "--regid=12345", f"--groups={socket.stat().st_gid}", *rights)
    folders = {"XDG_STATE_HOME": str(own / "state"), "XDG_CACHE_HOME": str(own / "cache")}
    done = run(*other, *ADD, source, "-r", own / "models", *RTX, "--container-image", build_image, **folders)
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in own.rglob("*")} == {12345}


@pytest.fixture
def building(build_image: str, source: Path, tmp_path: Path, containers: Containers) -> Iterator[subprocess.Popen[str]]:
    """An ``add`` whose first container runs: it installs, for its cache is a new one."""
    command = (*ADD, str(source), "-r", str(tmp_path / "models"), *RTX, "--container-image", build_image)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: [each for each in containers() if each.status == "running"])
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_removes_the_container(building: subprocess.Popen[str], containers: Containers, tmp_path: Path) -> None:
    building.send_signal(signal.SIGINT)
    _, errors = building.communicate(timeout=10)
    assert building.returncode == 130
    assert errors.endswith("interrupted\n")
    assert containers() == []
    assert not (tmp_path / "models").exists()
    assert list((tmp_path / "cache/repo-builder/containers").iterdir()) == []


def test_a_killed_add_leaves_no_container(building: subprocess.Popen[str], containers: Containers) -> None:
    building.kill()
    wait_for(lambda: not containers())


def test_a_killed_container_is_one_line(
    building: subprocess.Popen[str], containers: Containers, tmp_path: Path
) -> None:
    containers()[0].kill()
    _, errors = building.communicate(timeout=20)
    assert building.returncode == 1
    assert "\nerror: the build container was killed\n\nhint: it may have run out of memory" in errors
    assert not (tmp_path / "models").exists()


def test_a_worker_that_is_killed_while_it_builds(
    build_image: str, source: Path, tmp_path: Path, containers: Containers
) -> None:
    def kill(line: str) -> None:
        if line.startswith("building the engine"):
            with contextlib.suppress(Exception):  # the second time it is gone already
                containers()[0].kill()

    build = BuildOptions(Target.TENSORRT_RTX, container=ContainerOptions(build_image))
    add_model(source, repository=tmp_path / "warm", build=build)
    with untouched(tmp_path / "warm"), pytest.raises(CompileError, match="the build container was killed"):
        add_model(source, repository=tmp_path / "warm", build=build, force=True, progress=kill)


def test_an_engine_that_the_worker_refuses(build_image: str, source: Path, tmp_path: Path, run: Run) -> None:
    done = run(
        *ADD, source, "-r", tmp_path / "models", *RTX, "--container-image", build_image, "--compute-capability", "9.0"
    )
    assert "--compute-capability 9.0" in only_error(done)
    assert done.returncode == 2
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "onnxruntime", "--build-in-container"), "--build-in-container: --target onnxruntime"),
        (("--container-image", "x"), "--container-image without --build-in-container"),
        ((*RTX, "--container-image", "no.such/image:1"), "no.such/image:1 is not here and can't be pulled"),
    ],
)
def test_misuse_and_an_image_that_is_not_there(
    engine: Any, source: Path, run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in only_error(run(*ADD, source, "-r", tmp_path / "models", *options))
    assert not (tmp_path / "models").exists()


def test_no_engine(source: Path, run: Run, tmp_path: Path) -> None:
    done = run(*ADD, source, "-r", tmp_path / "models", *RTX, DOCKER_HOST="unix:///no/such.sock")
    assert only_error(done) == "error: no Docker engine answers at unix:///no/such.sock"
    assert "drop --build-in-container" in done.stderr


def test_packages_that_can_t_be_had(bare_image: str, source: Path, run: Run, tmp_path: Path) -> None:
    done = run(*ADD, source, "-r", tmp_path / "models", *RTX, "--container-image", bare_image)
    error = only_error(done)
    assert error.startswith(f"error: {bare_image} lacks cuda-python")
    assert error.endswith("and no package index has it for Python 3.11")


def test_a_package_index_that_is_not_reached(bare_image: str, source: Path, tmp_path: Path, engine: Any) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://no.such.index.invalid/simple\nretries = 0\n")
    image = with_file(engine, bare_image, tmp_path / "pip.conf", "/etc/pip.conf", "repo-builder-test-offline")
    build = BuildOptions(Target.TENSORRT_RTX, container=ContainerOptions(image))
    with pytest.raises(CompileError, match="reaches no package index") as caught:
        add_model(source, repository=tmp_path / "models", build=build)
    assert caught.value.hint is not None
    assert "https_proxy" in caught.value.hint


def test_a_full_disk_for_the_packages(build_image: str, source: Path, run: Run, small_disk: SmallDisk) -> None:
    disk = small_disk(3_000)
    done = run(*ADD, source, "-r", source.parent / "models", *RTX, "--container-image", build_image,
               XDG_CACHE_HOME=str(disk))  # fmt: skip
    assert only_error(done).endswith("lacks packages, and the disk is full where they are kept")
    assert "XDG_CACHE_HOME" in done.stderr


def test_a_full_disk_for_the_plan(build_image: str, source: Path, run: Run, small_disk: SmallDisk) -> None:
    disk = small_disk(150)
    done = run(*ADD, source, "-r", disk / "models", *RTX, "--container-image", build_image)
    assert only_error(done) == f"error: the disk of {disk / 'models'} is full; nothing was changed"
    assert list(disk.iterdir()) == []


@pytest.mark.skipif(any(Path(path).exists() for path in container_module.GPU_DEVICES), reason="there is a GPU here")
def test_no_gpu(source: Path, run: Run, tmp_path: Path, build_image: str) -> None:
    done = run(*ADD, source, "-r", tmp_path / "models", "--build-in-container", "--container-image", build_image)
    assert only_error(done).startswith("error: building for TensorRT needs an NVIDIA GPU, and this host has none")
    assert "--target tensorrt-rtx builds without one" in done.stderr
    with pytest.raises(ServerError, match="the Docker engine can't give containers a GPU") as caught:
        BuildContainer(connect_for_build(), build_image, ["true"], {}, {}, gpus=gpu_requests("all"))
    assert "nvidia-container-toolkit" in str(caught.value.hint)


def identify(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as TensorRT itself comes without a GPU: what the image lacks is looked for and installed."""
    monkeypatch.setattr(container_module, "GPU_DEVICES", (os.devnull,))
    options = ContainerOptions(image)
    compiler, _ = open_container(
        Target.AUTO, TensorRTOptions(), options, Repository(tmp_path / "models"), lambda _: None
    )
    compiler.identity()


def test_an_image_without_tensorrt(build_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match="has no TensorRT: there is no libnvinfer in it"):
        identify(build_image, tmp_path, monkeypatch)


def test_bindings_of_the_version_that_the_image_has(
    build_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    """With a fake libnvinfer that only tells its version."""
    text = "int getInferLibVersion(void) { return 10 * 10000 + 13 * 100 + 3; }\n"
    library = compile_c(tmp_path / "libnvinfer.so.10", text)
    image = with_file(engine, build_image, library, "/lib/x86_64-linux-gnu/", "repo-builder-test-fake-nvinfer")
    with pytest.raises(CompileError, match=r"lacks tensorrt-cu12-bindings==10\.13\.3\.\*, and no package index"):
        identify(image, tmp_path, monkeypatch)
