"""Which engine serves when nobody says."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from repo_builder.errors import ServerError, UsageError
from repo_builder.servers.docker import DockerOptions, gpu_requests
from repo_builder.servers.docker_client import DEFAULT_ADDRESS, connect, engine_address
from repo_builder.servers.engine import Engine, choose_engine


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
