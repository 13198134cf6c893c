"""The model repository on disk: read it, and change it by one atomic step or not at all.

::

    <root>/<model>/config.pbtxt             what Triton reads; a copy of the latest version's own
    <root>/<model>/labels.txt  warmup/      files that the config names
    <root>/<model>/<version>/model.onnx     the artifact
    <root>/<model>/<version>/manifest.json  where it came from; config.pbtxt, labels.txt: as published with it

A changed model is put together whole in a folder beside the repository (Triton polls the repository itself and takes
any folder in it for a model), its untouched files as hard links, and then changes places with the old one.  Nothing can
be renamed from one mount into another, so in a repository that is a mount point that folder is a hidden one inside: for
as long as it is there, Triton logs that it can't load it, and serves the others undisturbed.
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
MANIFEST_SCHEMA = 1
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # Triton passes over a leading zero
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def check_name(name: str) -> str:
    """Return ``name`` if it is fit for a folder, a URL and a config; raises UsageError if not."""
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
    if at and not (version.isascii() and version.isdigit() and int(version) > 0):
        raise UsageError(f"{text!r}: {version!r} is not a version", "NAME or NAME@NUMBER, as in resnet50@2")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a model name", "NAME or NAME@NUMBER; repo-builder list shows the names")
    return name, int(version) if at else None


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
            return self._read_manifest(version)
        except (OSError, ValueError):
            return None

    def damage(self, version: int) -> str | None:
        """What became of a version's files since it was published; None if nothing, or if another tool made it.

        Files are told by their sizes alone: hashing engines of gigabytes takes too long for a look.
        """
        try:
            manifest = self._read_manifest(version)
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
                return f"{file} is missing"
            if found != size:
                return f"{file} is {found} bytes long instead of {size}"
        return None

    def _read_manifest(self, version: int) -> dict[str, Any] | None:
        manifest = json.loads((self.folder / str(version) / MANIFEST).read_text(encoding="utf-8"))
        ours = isinstance(manifest, dict) and manifest.get("schema") == MANIFEST_SCHEMA
        return manifest if ours else None

    def size(self, version: int) -> int:
        """Bytes of a version's files."""
        return sum(file.stat().st_size for file in (self.folder / str(version)).rglob("*") if file.is_file())

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
            folders = [entry for entry in self.root.iterdir() if entry.is_dir() and not is_stray(entry.name)]
        return [self._read(folder) for folder in sorted(folders)]

    def get(self, name: str) -> Model | None:
        """The model of that name, None if there is none; raises RepositoryError when a file is in its place."""
        folder = self.root / check_name(name)
        if model := self._existing(name):
            return model
        if os.path.lexists(folder):
            raise RepositoryError(f"{folder} is in the way: it is not a folder", "move it, or choose another --name")
        return None

    def find(self, name: str, version: int | None = None) -> Model:
        """The model, if it has that version; raises RepositoryError with what there is."""
        model = self._existing(check_name(name))
        if model is None:
            names = ", ".join(model.name for model in self.models()) or "none yet"
            raise RepositoryError(f"there is no model {name!r} in {self.root}", f"models there: {names}")
        if version is not None and version not in model.versions:
            versions = ", ".join(map(str, model.versions)) or "none"
            raise RepositoryError(f"model {name!r} has no version {version}", f"its versions: {versions}")
        return model

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder beside the repository, on its mount, gone afterwards whatever happens.

        What a killed process left there is cleared away.

        Raises:
            RepositoryError: something can't be written, in the body too.
        """
        root = self.root.resolve()
        try:
            with _made(root.parent):
                with self._lock():
                    home, prefix = _staging_home(root), f".{root.name}.staging-"
                    _clear_abandoned(root, home, prefix)
                    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
                    handle = _lock_file(folder / LOCK)
                try:
                    yield folder
                finally:
                    os.close(handle)  # NFS would keep the folder for the sake of a file that is open
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise _write_error(self.root, error) from error

    def publish(self, name: str, staged: Path, finish: Callable[[int, Path], None]) -> int:
        """Make the files in ``staged`` the next version of a model, and return its number.

        Args:
            name: the model.
            staged: a folder made by :meth:`staging`; its ``version`` subfolder becomes the version, its ``model``
                subfolder holds the model-level files (config.pbtxt, labels.txt, warmup/).
            finish: called with the number and the version's folder before it is published.
        """
        with self._lock(), _made(self.root):
            model = self.get(name)
            number = (model.latest or 0) + 1 if model else 1
            finish(number, staged / "version")
            tree = staged / "tree"
            shutil.copytree(staged / "model", tree)
            if model:
                _keep(model, tree, model.versions)
            (staged / "version").rename(tree / str(number))
            _put(tree, self.root / name)
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
        with self._lock():
            model = self.find(name, number)
            finish(model)
            tree = staged / "tree"
            shutil.copytree(staged / "model", tree)
            _keep(model, tree, model.versions)
            for file in [path for path in (staged / "version").rglob("*") if path.is_file()]:
                target = tree / str(number) / file.relative_to(staged / "version")
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)  # takes the place of a link: what it led to stays as it is
            _put(tree, self.root / name)

    def remove(self, name: str, version: int | None = None, *, force: bool = False) -> None:
        """Remove a model or one version of it; without its latest, the config of the one before comes back.

        Raises:
            RepositoryError: there is no such model or version, or the config to be replaced was edited by hand.
        """
        self.find(name, version)
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
            _keep(model, tree, rest)
            _put(tree, model.folder)

    def _existing(self, name: str) -> Model | None:
        folder = self.root / name
        with _readable(folder):
            return self._read(folder) if folder.is_dir() else None

    def _read(self, folder: Path) -> Model:
        with _readable(folder):
            versions = (int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))
            return Model(folder.name, folder, tuple(sorted(v for v in versions if (folder / str(v)).is_dir())))

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other writers out; readers are never in the way."""
        root = self.root.resolve()
        path = _staging_home(root) / f".{root.name}.lock"
        handle = _lock_file(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked: who waits for it makes another
            os.close(handle)


def _staging_home(root: Path) -> Path:
    """The folder that staging folders are in, and the lock that keeps other writers out."""
    mounted = root.is_dir() and _mount(root) != _mount(root.parent)
    return root if mounted else root.parent


def _mount(folder: Path) -> tuple[int, str]:
    """What a folder shares with those that files can be renamed to: its filesystem, and the mount that shows it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        facts = Path(f"/proc/self/fdinfo/{handle}").read_text(encoding="ascii").split()
        return os.fstat(handle).st_dev, facts[facts.index("mnt_id:") + 1]
    finally:
        os.close(handle)


MODEL_FILES = (CONFIG, "labels.txt", "warmup")
"""What lies beside the versions, and again inside each as it was published."""


def _keep(model: Model, tree: Path, versions: tuple[int, ...]) -> None:
    """Link ``versions`` of a model into ``tree``, and what lies beside them that is not ours."""
    shutil.copymode(model.folder, tree)
    gone = {*MODEL_FILES, *map(str, model.versions)} - {*map(str, versions)}
    for entry in model.folder.iterdir():
        if entry.name not in gone:
            _link(entry, tree / entry.name)


def _copy_model_files(source: Path, target: Path) -> None:
    for name in MODEL_FILES:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).is_file():
            shutil.copy2(source / name, target / name)


def _link(source: Path, target: Path) -> None:
    """Copy a file or folder as hard links, or as bytes where there can be none; links and times stay as they are."""

    def link(old: str | Path, new: str | Path) -> None:
        try:
            os.link(old, new, follow_symlinks=False)
        except OSError:
            shutil.copy2(old, new, follow_symlinks=False)

    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, copy_function=link, symlinks=True)
    else:
        link(source, target)


def _put(tree: Path, target: Path) -> None:
    """Put ``tree`` in the place of ``target`` in one step; the old folder ends up in the staging folder."""
    if not target.exists():
        tree.rename(target)
    elif not _exchange(tree, target):
        aside = tree.with_name(ASIDE) / target.name
        aside.parent.mkdir()
        target.rename(aside)
        try:
            tree.rename(target)
        except BaseException:
            aside.rename(target)
            raise


ASIDE = "aside"
"""Under a staging folder: the old model for a moment, where the filesystem can't exchange two folders."""

LOCK = "lock"
"""In a staging folder: the file that is locked as long as its process lives."""


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


def _lock_file(path: Path, *, wait: bool = True) -> int:
    """A handle that holds the lock of ``path``, a file made for that, until it is closed.

    A folder could be locked too, but over NFS machines see each other's locks only of files open for writing.

    Raises:
        BlockingIOError: another holds it, and ``wait`` is False.
    """
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = False
        try:
            fcntl.flock(handle, how)
            locked = os.path.samestat(os.fstat(handle), path.stat())
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ESTALE}:  # not one that was deleted meanwhile
                raise
        finally:
            if not locked:
                os.close(handle)
        if locked:
            return handle


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make ``folder`` and those above it; when the body fails, those made go again, unless others used them."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepositoryError(f"{folder} can't be read: {error.strerror}", "check its permissions") from None


def _clear_abandoned(root: Path, home: Path, prefix: str) -> None:
    """Delete staging folders that no living process holds, and bring back a model that one had moved aside."""
    for folder in home.iterdir():
        if not folder.name.startswith(prefix):
            continue
        with contextlib.suppress(OSError):
            handle = _lock_file(folder / LOCK, wait=False)
            try:
                for model in folder.glob(f"{ASIDE}/*"):
                    if not (root / model.name).exists():
                        model.rename(root / model.name)
            finally:
                os.close(handle)
            shutil.rmtree(folder, ignore_errors=True)


def _write_error(root: Path, error: OSError) -> RepositoryError:
    if isinstance(error, shutil.Error):  # what copying a folder gathered: (source, target, reason)
        what = str(error.args[0][0][2])
    else:
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if any(os.strerror(number) in what for number in (errno.ENOSPC, errno.EDQUOT)):
        return RepositoryError(f"the disk of {root} is full; nothing was changed", "free some space and run it again")
    return RepositoryError(f"can't write to {root}: {what}; nothing was changed", "check permissions and disk")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
