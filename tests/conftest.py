from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repo_builder.cli import main
from tests.support import Result, without_root_rights

Cli = Callable[..., Result]


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
def file_modes_hold() -> Iterator[None]:
    """Tests of unreadable files mean something when root runs them too."""
    with without_root_rights():
        yield
