"""Which engine serves when nobody says."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repo_builder.errors import ServerError, UsageError
from repo_builder.servers.docker import DockerOptions, gpu_requests
from repo_builder.servers.docker_client import DEFAULT_ADDRESS, connect, engine_address
from repo_builder.servers.engine import Engine, choose_engine
from repo_builder.servers.images import ensure_image


def test_without_docker_s_sdk_the_local_server_is_chosen_and_the_sdk_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)  # as if it were not installed
    chosen = choose_engine(Engine.AUTO, repository, DockerOptions())
    assert chosen == (Engine.LOCAL, "Docker's Python SDK is not installed")


@pytest.mark.parametrize(
    ("gpus", "count", "ids"),
    [
        ("all", -1, []),
        ("2", 2, []),
        ("0,2", 0, ["0", "2"]),
        ("device=0", 0, ["0"]),
        ("device=0, 2", 0, ["0", "2"]),
        ('"device=GPU-8c1b,MIG-3e4f"', 0, ["GPU-8c1b", "MIG-3e4f"]),
    ],
)
def test_what_docker_is_asked_for_gpus(gpus: str, count: int, ids: list[str]) -> None:
    pytest.importorskip("docker")
    (request,) = gpu_requests(gpus)
    asked = {"Driver": "nvidia", "Count": count, "DeviceIDs": ids, "Capabilities": [["gpu"]], "Options": {}}
    assert request == asked


@pytest.mark.parametrize("gpus", ["", "0", "-1", "GPU-8c1b", "device=", "device=0,", "0,", "device=0 1", "gpus=0"])
def test_what_names_no_gpus_is_refused(gpus: str) -> None:
    pytest.importorskip("docker")
    with pytest.raises(UsageError, match="nothing Docker knows") as caught:
        gpu_requests(gpus)
    assert "device=0, device=0,2, device=GPU-8c1b" in str(caught.value.hint)


class Registry:
    """An engine that has no image and pulls any with these events."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self._events = events
        self.images = self.api = self

    def get(self, image: str) -> None:
        raise pytest.importorskip("docker").errors.ImageNotFound(image)

    def pull(self, *_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        return iter(self._events)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (
            [
                {"status": "Pulling from x", "id": "1"},
                {"status": "Pulling fs layer", "id": "a"},
                {"status": "Pulling fs layer", "id": "b"},
                {"status": "Downloading", "id": "a", "progressDetail": {"current": 1_000_000, "total": 3_000_000}},
                {"status": "Pull complete", "id": "a"},
                {"status": "Already exists", "id": "b"},
            ],
            "pulling some/image:1: 2 of 2 layers, 3.0 of 3.0 MB",
        ),
        ([{"status": "Pulling fs layer", "id": "a"}, {"status": "Pull complete", "id": "a"}], "1 of 1 layers"),
        ([{"status": "Pulling fs layer", "id": "a"}], "0 of 1 layers"),
        ([{"status": "Status: Image is up to date"}], "pulled some/image:1"),
    ],
)
def test_a_pull_tells_in_the_end_what_is_known_of_it(events: list[dict[str, Any]], told: str) -> None:
    said: list[str] = []
    ensure_image(Registry(*events), "some/image:1", said.append)
    assert said[-1].endswith(told)


@pytest.mark.parametrize("image", ["UPPER/case", "some/Image:1", "Bad Image!!"])
def test_a_name_that_no_image_has_is_not_asked_for(image: str) -> None:
    pytest.importorskip("docker")
    with pytest.raises(UsageError, match=f"'{image}' is not the name of an image"):
        ensure_image(Registry(), image, print)
    ensure_image(Registry(), "Registry.local:5000/name", print)


def test_the_engine_is_where_docker_s_own_client_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker")
    for variable in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert engine_address() == DEFAULT_ADDRESS
    for name in ("rootless", "other"):
        folder = tmp_path / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
        folder.mkdir(parents=True)
        endpoint = {"Host": f"unix:///no/{name}.sock", "SkipTLSVerify": False}
        (folder / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}))
    (tmp_path / "config.json").write_text('{"currentContext": "rootless"}')
    assert engine_address() == "unix:///no/rootless.sock"
    with pytest.raises(ServerError, match=r"no Docker engine answers at unix:///no/rootless\.sock") as caught:
        connect()
    assert str(caught.value.hint).startswith("docker context says where: ")
    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    assert engine_address() == "unix:///no/other.sock"
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/host.sock")
    assert engine_address() == "unix:///no/host.sock"
