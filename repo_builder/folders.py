"""Where this user's state and caches are kept, as the XDG Base Directory Specification has it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def state_folder() -> Path:
    """$XDG_STATE_HOME/repo-builder, made if missing, or a folder in the temporary one where that can't be made."""
    return _folder("XDG_STATE_HOME", "~/.local/state", "state")


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/repo-builder, made if missing, or a folder in the temporary one where that can't be made."""
    return _folder("XDG_CACHE_HOME", "~/.cache", "cache")


def _folder(variable: str, default: str, kind: str) -> Path:
    base = os.environ.get(variable) or os.path.expanduser(default)  # noqa: PTH111  (no error without a home)
    folder = Path(base, "repo-builder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir(), f"repo-builder-{kind}-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder
