"""What a container sees of a repository that is mounted in it."""

from __future__ import annotations

import os
from pathlib import Path

from repo_builder.errors import RepositoryError


def links_outside(root: Path) -> list[Path]:
    """Links among the models that a container can't follow: it has nothing but ``root``, and that at another path."""
    links = sorted(entry for entry in root.iterdir() if entry.is_symlink() and entry.exists())
    inside = root.resolve()
    return [link for link in links if link.readlink().is_absolute() or not link.resolve().is_relative_to(inside)]


def check_mountable(root: Path, user: int) -> None:
    """Raise RepositoryError where Triton, as ``user`` in a container, would read no model of ``root`` at all."""
    for link in links_outside(root):
        what = f"{link} leads to {link.readlink()}, which a container does not have"
        raise RepositoryError(what, "copy the model into the repository, or --engine local")
    facts = root.stat()
    wanted = 0o500 if facts.st_uid == user else 0o005
    if facts.st_mode & wanted != wanted and user != os.getuid():
        what = f"{root} can't be read by the container, which runs as user {user}"
        raise RepositoryError(what, f"chmod -R a+rX {root}, or --engine local")
