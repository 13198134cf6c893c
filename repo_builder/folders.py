"""Where this user's state and caches are kept, as the XDG Base Directory Specification has it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from repo_builder.errors import RepoBuilderError


def state_folder() -> Path:
    """$XDG_STATE_HOME/repo-builder, made if missing, or one of our own in the temporary folder where that can't be."""
    return _folder("XDG_STATE_HOME", "~/.local/state", "state")


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/repo-builder, made if missing, or one of our own in the temporary folder where that can't be."""
    return _folder("XDG_CACHE_HOME", "~/.cache", "cache")


def _folder(variable: str, default: str, kind: str) -> Path:
    base = os.environ.get(variable) or os.path.expanduser(default)  # noqa: PTH111  (no error without a home)
    folder = Path(base, "repo-builder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir(), f"repo-builder-{kind}-{os.getuid()}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():  # anyone may have made it there
            hint = f"set {variable} to a folder that you may write to"
            raise RepoBuilderError(f"{folder} is no folder of your own", hint) from None
    return folder
