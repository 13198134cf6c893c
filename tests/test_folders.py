"""Where state and caches are kept, also where the user's own folders can't be written to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from repo_builder.errors import RepoBuilderError
from repo_builder.folders import cache_folder, state_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder left to write to."""
    for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, "/dev/null")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("kept", "variable"), [(state_folder, "XDG_STATE_HOME"), (cache_folder, "XDG_CACHE_HOME")])
def test_where_the_user_says(
    kept: Callable[[], Path], variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "deep/own"))

    assert kept() == tmp_path / "deep/own/repo-builder"
    assert kept().is_dir()


def test_in_the_temporary_folder(temporary: Path) -> None:
    folder = state_folder()

    assert folder == temporary / f"repo-builder-state-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert state_folder() == folder
    assert cache_folder() != folder


@pytest.mark.parametrize("what", ["link", "file", "another user"])
def test_never_in_one_that_somebody_else_put_there(what: str, temporary: Path) -> None:
    place = temporary / f"repo-builder-state-{os.getuid()}"
    if what == "link":
        (temporary / "theirs").mkdir()
        place.symlink_to("theirs")
    elif what == "file":
        place.touch()
    elif os.getuid():
        pytest.skip("only root can give a folder away")
    else:
        place.mkdir()
        os.chown(place, 12345, -1)

    with pytest.raises(RepoBuilderError, match="is no folder of your own") as caught:
        state_folder()
    assert "XDG_STATE_HOME" in str(caught.value.hint)
