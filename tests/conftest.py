from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repo_builder.cli import main
from repo_builder.servers.records import running_servers, stop_server
from tests.support import Result, without_root_rights

Cli = Callable[..., Result]
SmallDisk = Callable[[int], Path]


@pytest.fixture(autouse=True, scope="session")
def own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' servers out of the user's list of running servers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of servers, logs and caches that nobody but the test has seen."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_servers_left(own_folders: None) -> Iterator[None]:
    """Stop what a test that failed left running."""
    yield
    for record in running_servers():
        stop_server(record)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Where a repository may be made; nothing is there yet."""
    return tmp_path / "model_repository"


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run ``repo-builder`` with these arguments in ``tmp_path``; what native code writes is caught too."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["repo-builder", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Makes a real filesystem of so many kB; only root can mount one."""
    mounted: list[Path] = []

    def mount(size_kb: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("can't mount a filesystem here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def file_modes_hold() -> Iterator[None]:
    """Tests of unreadable files mean something when root runs them too."""
    with without_root_rights():
        yield
