"""The model repository on disk: read it, and change it by one atomic step or not at all.

::

    <root>/<model>/config.pbtxt             what Triton reads; a copy of the latest version's own
    <root>/<model>/labels.txt  warmup/      files that the config names
    <root>/<model>/<version>/model.onnx     the artifact
    <root>/<model>/<version>/manifest.json  where it came from; config.pbtxt, labels.txt: as published with it

A changed model is put together whole in a folder beside the repository (Triton polls the repository itself and takes
any folder in it for a model), its untouched files as hard links, and then changes places with the old one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from repo_builder.errors import RepositoryError, UsageError

CONFIG = "config.pbtxt"
MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def check_name(name: str) -> str:
    """Return ``name`` if it is fit for a folder, a URL and a config; raises UsageError if not."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a model name",
            "letters, digits, '_', '-' and '.', not first '-' or '.': choose one with --name",
        )
    return name


def parse_reference(text: str) -> tuple[str, int | None]:
    """Split ``NAME[@VERSION]``; raises UsageError."""
    name, at, version = text.partition("@")
    if at and not (version.isascii() and version.isdigit() and int(version) > 0):
        raise UsageError(f"{text!r}: {version!r} is not a version", "NAME or NAME@NUMBER, as in resnet50@2")
    return check_name(name), int(version) if at else None


@dataclass(frozen=True)
class Model:
    """One model of a repository.  ``versions`` are ascending."""

    name: str
    folder: Path
    versions: tuple[int, ...]

    @property
    def latest(self) -> int | None:
        return self.versions[-1] if self.versions else None

    @cached_property
    def config_text(self) -> str | None:
        """config.pbtxt as it is on disk, None without one."""
        try:
            return (self.folder / CONFIG).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def manifest(self, version: int) -> dict[str, Any] | None:
        """The manifest of a version, None where another tool made it."""
        try:
            manifest = json.loads((self.folder / str(version) / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) else None

    def size(self, version: int) -> int:
        """Bytes of a version's files."""
        return sum(file.stat().st_size for file in (self.folder / str(version)).rglob("*") if file.is_file())

    @property
    def edited_by_hand(self) -> bool:
        """Whether config.pbtxt is not what the latest version was published with."""
        if self.latest is None or self.config_text is None:
            return False
        try:
            published = (self.folder / str(self.latest) / CONFIG).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return True  # another tool's, or a person's
        return published != self.config_text


class Repository:
    """A folder of models.  It need not exist before the first model is published."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if self.root.exists() and not self.root.is_dir():
            raise RepositoryError(f"{self.root} is not a folder", "name a folder with --repository")

    def models(self) -> list[Model]:
        """All models, by name."""
        if not self.root.is_dir():
            return []
        folders = sorted(entry for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        return [self._read(folder) for folder in folders]

    def get(self, name: str) -> Model | None:
        folder = self.root / check_name(name)
        return self._read(folder) if folder.is_dir() else None

    def find(self, name: str, version: int | None = None) -> Model:
        """The model, if it has that version; raises RepositoryError with what there is."""
        model = self.get(name)
        if model is None:
            names = ", ".join(model.name for model in self.models()) or "none yet"
            raise RepositoryError(f"there is no model {name!r} in {self.root}", f"models there: {names}")
        if version is not None and version not in model.versions:
            versions = ", ".join(map(str, model.versions)) or "none"
            raise RepositoryError(f"model {name!r} has no version {version}", f"its versions: {versions}")
        return model

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder beside the repository, on its filesystem, gone afterwards whatever happens.

        What a killed process left there is cleared away.
        """
        parent = self.root.absolute().parent
        prefix = f".{self.root.absolute().name}.staging-"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if self.root.is_dir() and self.root.stat().st_dev != parent.stat().st_dev:
                raise RepositoryError(
                    f"{self.root} is a mount point, so nothing can be renamed into it from beside it",
                    f"use a folder below it: --repository {self.root / 'models'}",
                )
            _clear_abandoned(parent, prefix)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError as error:
            why = f"can't write beside {self.root}: {error.strerror}"
            raise RepositoryError(why, "choose another --repository") from None
        try:
            with _locked(folder):
                yield folder
        except OSError as error:
            raise _write_error(self.root, error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, name: str, staged: Path, finish: Callable[[int, Path], None]) -> int:
        """Make the files in ``staged`` the next version of a model, and return its number.

        Args:
            name: the model.
            staged: a folder made by :meth:`staging`; its ``version`` subfolder becomes the version, its ``model``
                subfolder holds the model-level files (config.pbtxt, labels.txt, warmup/).
            finish: called with the number and the version's folder before it is published.
        """
        with self._lock():
            model = self.get(name)
            number = (model.latest or 0) + 1 if model else 1
            finish(number, staged / "version")
            tree = staged / "tree"
            shutil.copytree(staged / "model", tree)
            for version in model.versions if model else ():
                _link_tree(model.folder / str(version), tree / str(version))  # type: ignore[union-attr]
            (staged / "version").rename(tree / str(number))
            _put(tree, self.root / name)
        return number

    def remove(self, name: str, version: int | None = None, *, force: bool = False) -> None:
        """Remove a model or one version of it; without its latest, the config of the one before comes back.

        Raises:
            RepositoryError: there is no such model or version, or the config to be replaced was edited by hand.
        """
        with self.staging() as staged, self._lock():
            model = self.find(name, version)
            rest = tuple(number for number in model.versions if number != version) if version else ()
            if not rest:
                model.folder.rename(staged / name)
                return
            tree = staged / "tree"
            tree.mkdir()
            previous = model.folder / str(rest[-1])
            if version == model.latest and (previous / CONFIG).is_file():
                if model.edited_by_hand and not force:
                    raise RepositoryError(
                        f"config.pbtxt of {name!r} was edited by hand; version {rest[-1]} would bring its own back",
                        "--force goes back all the same",
                    )
                _copy_model_files(previous, tree)
            else:
                _copy_model_files(model.folder, tree)
            for number in rest:
                _link_tree(model.folder / str(number), tree / str(number))
            _put(tree, model.folder)

    def _read(self, folder: Path) -> Model:
        versions = (int(entry.name) for entry in folder.iterdir() if entry.name.isascii() and entry.name.isdigit())
        return Model(folder.name, folder, tuple(sorted(versions)))

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other writers out; readers are never in the way."""
        self.root.mkdir(parents=True, exist_ok=True)
        with _locked(self.root):
            yield


MODEL_FILES = (CONFIG, "labels.txt", "warmup")
"""What lies beside the versions, and again inside each as it was published."""


def _copy_model_files(source: Path, target: Path) -> None:
    for name in MODEL_FILES:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).is_file():
            shutil.copy2(source / name, target / name)


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder as hard links, or as bytes where the filesystem has none; times stay as they are."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    shutil.copytree(source, target, copy_function=link)


def _put(tree: Path, target: Path) -> None:
    """Put ``tree`` in the place of ``target`` in one step; the old folder ends up at ``tree``."""
    tree.chmod(0o755)
    if not target.exists():
        tree.rename(target)
    elif not _exchange(tree, target):
        aside = tree.with_name("old")
        target.rename(aside)
        try:
            tree.rename(target)
        except BaseException:
            aside.rename(target)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically with Linux's renameat2; False where kernel or filesystem can't."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    if renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _clear_abandoned(parent: Path, prefix: str) -> None:
    """Delete staging folders that no living process holds."""
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _write_error(root: Path, error: OSError) -> RepositoryError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return RepositoryError(f"the disk of {root} is full; nothing was published", "free some space and run it again")
    what = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
    return RepositoryError(f"can't write to {root}: {what}; nothing was published", "check permissions and disk")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
