"""A Docker engine, the image made here, and a repository to serve; without an engine the tests are skipped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repo_builder import add_model
from repo_builder.add import BuildOptions
from repo_builder.compilers import build_container
from repo_builder.config.build import ServingOptions
from repo_builder.config.image import image_preset
from repo_builder.errors import RepoBuilderError
from repo_builder.servers import docker
from repo_builder.servers.docker_client import connect
from tests.docker.make_image import CannotMakeError, make_image
from tests.support import let_everyone_into

ROOT = Path(__file__).resolve().parents[2]
LABELS = {docker.LABEL, build_container.LABEL}
Containers = Callable[[], list[Any]]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    try:
        client = connect()
    except RepoBuilderError as error:
        pytest.skip(f"{error}; tests/docker/engine.sh start can start one")
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: Any) -> str:
    try:
        return make_image(engine)
    except CannotMakeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 as the README adds it, readable by the container's user."""
    root = tmp_path_factory.mktemp("docker") / "models"
    let_everyone_into(root.parent)
    example = ROOT / "examples/efficientnet-lite0"
    serving = ServingOptions(image=image_preset("efficientnet-lite"), labels=example / "labels.txt")
    add_model(example / "model.onnx", repository=root, serving=serving, build=BuildOptions(verify=False))
    return root


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program in the project's folder, with a state folder of its own; stdout and stderr as text."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}

    def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def containers(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Containers:
    """List the containers that serve or build for these tests; the engine may run others for someone else."""
    ours = f"{tmp_path_factory.getbasetemp()}/"

    def containers() -> list[Any]:
        found = engine.containers.list(all=True, ignore_removed=True)
        labelled = [each for each in found if LABELS & each.labels.keys()]
        return [each for each in labelled if any(mount["Source"].startswith(ours) for mount in each.attrs["Mounts"])]

    return containers


@pytest.fixture
def no_containers(containers: Containers) -> Iterator[None]:
    """The test leaves no container of ours."""
    yield
    left = containers()
    for container in left:
        container.remove(force=True)
    assert [container.name for container in left] == []
