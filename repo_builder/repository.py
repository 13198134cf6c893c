"""The model repository on disk: what a model and its versions are, and every change to them.

::

    <root>/<model>/config.pbtxt             what Triton reads; a copy of the latest version's own
    <root>/<model>/labels.txt  warmup/      files that the config names
    <root>/<model>/<version>/model.onnx     the artifact
    <root>/<model>/<version>/manifest.json  where it came from; config.pbtxt, labels.txt: as published with it

A changed model is put together whole in a staging folder, its untouched files as hard links, and then changes places
with the old one (:mod:`repo_builder.staging`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from repo_builder.errors import RepositoryError, UsageError
from repo_builder.model import DataType, TensorSpec
from repo_builder.staging import discard, link_or_copy, locked, made, open_staging, put, writing

CONFIG = "config.pbtxt"
MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # Triton passes over a leading zero
LONGEST_NAME = 200
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")


def check_name(name: str) -> str:
    """Return ``name`` if it is fit for a folder, a URL and a config; raises UsageError if not."""
    if len(name) > LONGEST_NAME:
        why = f"{name[:20] + '...'!r} is not a model name: it is {len(name)} characters long"
        raise UsageError(why, f"{LONGEST_NAME} at most: choose one with --name")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a model name",
            "letters, digits, '_', '-' and '.', not first '-' or '.': choose one with --name",
        )
    return name


def is_stray(name: str) -> bool:
    """Whether a folder of that name in a repository is sure to be no model: a hidden one, or the filesystem's own."""
    return name.startswith(".") or name == "lost+found"


def parse_reference(text: str) -> tuple[str, int | None]:
    """Split ``NAME[@VERSION]``; raises UsageError."""
    name, at, version = text.partition("@")
    if at and not _VERSION.fullmatch(version.lstrip("0")):
        raise UsageError(f"{text!r}: {version!r} is not a version", "NAME or NAME@NUMBER, as in resnet50@2")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a model name", "NAME or NAME@NUMBER; repo-builder list shows the names")
    return name, int(version) if at else None


def read_tensors(entries: Iterable[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """What a manifest lists as inputs or outputs; raises KeyError, TypeError or ValueError where it is damaged."""
    return tuple(
        TensorSpec(
            entry["name"],
            DataType[entry["datatype"]],
            tuple(None if size < 0 else int(size) for size in entry["shape"]),
        )
        for entry in entries
    )


def batch_limit(manifest: Mapping[str, Any]) -> int | None:
    """The largest batch that every profile of a version's engine takes; None where nothing is noted of it."""
    profiles = (manifest.get("engine") or {}).get("profiles", ())
    return min((shape[0] for profile in profiles for shape in profile["max"].values() if shape), default=None)


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
        return manifest_in(self.folder / str(version))

    def damage(self, version: int) -> str | None:
        """What became of a version's files since it was published; None if nothing, or if it is gone or another tool's.

        Files are told by their sizes alone: hashing engines of gigabytes takes too long for a look.
        """
        try:
            manifest = _read_manifest(self.folder / str(version))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return f"{MANIFEST} can't be read"
        if manifest is None:
            return None
        files = manifest.get("files")
        if not isinstance(files, dict):
            return f"{MANIFEST} is not whole"
        for file, size in files.items():
            try:
                found = (self.folder / str(version) / file).stat().st_size
            except (OSError, ValueError):
                return f"{file} is missing" if (self.folder / str(version)).is_dir() else None
            if found != size:
                return f"{file} is {found} bytes long instead of {size}"
        return None

    def change(self, version: int) -> str | None:
        """What became of a version's files, by their SHA-256 as far as the manifest has them; None if nothing.

        Raises:
            RepositoryError: one can't be read.
        """
        for file, digest in ((self.manifest(version) or {}).get("sha256") or {}).items():
            path = self.folder / str(version) / file
            try:
                if file_sha256(path) != digest:
                    return f"{file} is another file than the one published"
            except OSError as error:
                raise RepositoryError(f"{path} can't be read: {error.strerror}", "check its permissions") from None
        return None

    def size(self, version: int) -> int:
        """Bytes of a version's files, as far as they can be looked at."""
        total = 0
        for folder, _, files in os.walk(self.folder / str(version)):
            for file in files:
                with contextlib.suppress(OSError):
                    total += Path(folder, file).stat().st_size
        return total

    @property
    def edited_by_hand(self) -> bool:
        """Whether there is a config.pbtxt that is not what the latest version was published with."""
        try:
            config = (self.folder / CONFIG).read_bytes()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            return config != (self.folder / str(self.latest) / CONFIG).read_bytes()
        except OSError:
            return True  # another tool's, or a person's


def manifest_in(folder: Path) -> dict[str, Any] | None:
    """The manifest in the folder of a version, None where there is none of ours."""
    try:
        return _read_manifest(folder)
    except (OSError, ValueError):
        return None


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    ours = isinstance(manifest, dict) and manifest.get("schema") == MANIFEST_SCHEMA
    return manifest if ours else None


class Repository:
    """A folder of models.  It need not exist before the first model is published."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        with _readable(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise RepositoryError(f"{self.root} is not a folder", "name a folder with --repository")

    def models(self) -> list[Model]:
        """All models, by name."""
        if not self.root.is_dir():
            return []
        with _readable(self.root):
            folders = sorted(entry for entry in self.root.iterdir() if not is_stray(entry.name))
        return [model for folder in folders if (model := self._read(folder))]

    def dangling(self) -> list[Path]:
        """Links beside the models that lead nowhere: where one is, Triton reads no model of the repository."""
        if not self.root.is_dir():
            return []
        with _readable(self.root):
            return sorted(entry for entry in self.root.iterdir() if entry.is_symlink() and not entry.exists())

    def get(self, name: str) -> Model | None:
        """The model of that name, None if there is none; raises RepositoryError when a file is in its place."""
        folder = self.root / check_name(name)
        if model := self._read(folder):
            return model
        if os.path.lexists(folder) and not folder.is_dir():
            raise RepositoryError(f"{folder} is in the way: it is not a folder", "move it, or choose another --name")
        return None

    def find(self, name: str, version: int | None = None) -> Model:
        """The model, if it has that version; raises RepositoryError with what there is."""
        model = self._read(self.root / check_name(name))
        if model is None:
            names = ", ".join(model.name for model in self.models()) or "none yet"
            raise RepositoryError(f"there is no model {name!r} in {self.root}", f"models there: {names}")
        if version is not None and version not in model.versions:
            versions = ", ".join(map(str, model.versions)) or "none"
            raise RepositoryError(f"model {name!r} has no version {version}", f"its versions: {versions}")
        return model

    def staging(self) -> AbstractContextManager[Path]:
        """A folder to make the files of a version in; see :func:`~repo_builder.staging.open_staging`."""
        return open_staging(self.root)

    def publish(self, name: str, staged: Path, finish: Callable[[int, Path], None]) -> int:
        """Make the files in ``staged`` the next version of a model, and return its number.

        Args:
            name: the model.
            staged: a folder made by :meth:`staging`; its ``version`` subfolder becomes the version, its ``model``
                subfolder holds the model-level files (config.pbtxt, labels.txt, warmup/).
            finish: called with the number and the version's folder before it is published.
        """
        with locked(self.root), made(self.root):
            model = self.get(name)
            number = (model.latest or 0) + 1 if model else 1
            finish(number, staged / "version")
            tree = staged / "tree"
            shutil.copytree(staged / "model", tree)
            if model:
                _keep(model, tree, model.versions)
                _give_config(model, tree)
            (staged / "version").rename(tree / str(number))
            put(tree, self.root / name)
        return number

    def extend(self, name: str, number: int, staged: Path, finish: Callable[[Model], None]) -> None:
        """Put the files in ``staged`` into a version that is there, in place of those of the same name.

        Args:
            name: the model.
            number: its latest version.
            staged: as for :meth:`publish`; ``version`` holds what is new, ``model`` all model-level files.
            finish: called with the model as it is, before it is changed.

        Raises:
            RepositoryError: the version is gone.
        """
        with locked(self.root):
            model = self.find(name, number)
            finish(model)
            tree = staged / "tree"
            shutil.copytree(staged / "model", tree)
            _keep(model, tree, model.versions)
            for file in [path for path in (staged / "version").rglob("*") if path.is_file()]:
                target = tree / str(number) / file.relative_to(staged / "version")
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)  # takes the place of a link: what it led to stays as it is
            put(tree, self.root / name)

    def remove(self, name: str, version: int | None = None, *, force: bool = False) -> None:
        """Remove a model or one version of it; without its latest, the config of the one before comes back.

        Raises:
            RepositoryError: there is no such model or version, or the config to be replaced was edited by hand.
        """
        self.find(name, version)
        with writing(self.root), locked(self.root):
            model = self.find(name, version)
            whole = version is None or model.versions == (version,)
            if whole or version != model.latest:
                discard(model.folder if whole else model.folder / str(version), self.root)
                return
        with self.staging() as staged, locked(self.root):
            model = self.find(name, version)
            *rest, latest = model.versions
            if version != latest or not rest:
                raise RepositoryError(f"{name!r} was changed meanwhile", "run it again")
            tree, previous = staged / "tree", model.folder / str(rest[-1])
            tree.mkdir()
            if (previous / CONFIG).is_file():
                if model.edited_by_hand and not force:
                    raise RepositoryError(
                        f"config.pbtxt of {name!r} was edited by hand; version {rest[-1]} would bring its own back",
                        "--force goes back all the same",
                    )
                _copy_model_files(previous, tree)
            else:
                _copy_model_files(model.folder, tree)
            _keep(model, tree, tuple(rest))
            put(tree, model.folder)

    def _read(self, folder: Path) -> Model | None:
        """The model in ``folder``; None if it is no folder, or none any more: another process may take it away."""
        with _readable(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if folder.is_dir():  # a link that leads in a circle is none, and can't be listed
                versions = (int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))
                return Model(folder.name, folder, tuple(sorted(v for v in versions if (folder / str(v)).is_dir())))
        return None


MODEL_FILES = (CONFIG, "labels.txt", "warmup")
"""What lies beside the versions, and again inside each as it was published."""


def _keep(model: Model, tree: Path, versions: tuple[int, ...]) -> None:
    """Link ``versions`` of a model into ``tree``, and what lies beside them that is not ours."""
    shutil.copymode(model.folder, tree)
    gone = {*MODEL_FILES, *map(str, model.versions)} - {*map(str, versions)}
    for entry in model.folder.iterdir():
        if entry.name not in gone:
            link_or_copy(entry, tree / entry.name)


def _give_config(model: Model, tree: Path) -> None:
    """Where the latest version is another tool's, put its config.pbtxt inside as in ours: ``remove`` brings it back."""
    latest = tree / str(model.latest)
    taken = latest.is_symlink() or any((latest / name).exists() for name in (MANIFEST, *MODEL_FILES))
    if latest.is_dir() and not taken:
        _copy_model_files(model.folder, latest)


def _copy_model_files(source: Path, target: Path) -> None:
    for name in MODEL_FILES:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).is_file():
            shutil.copy2(source / name, target / name)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepositoryError(f"{folder} can't be read: {error.strerror}", "check its permissions") from None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
