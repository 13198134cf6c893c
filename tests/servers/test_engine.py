"""Which engine serves when nobody says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from repo_builder.servers.docker import DockerOptions
from repo_builder.servers.engine import Engine, choose_engine


def test_without_docker_s_sdk_the_local_server_is_chosen_and_the_sdk_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)  # as if it were not installed
    chosen = choose_engine(Engine.AUTO, repository, DockerOptions())
    assert chosen == (Engine.LOCAL, "Docker's Python SDK is not installed")
