"""How a model in a repository is replaced: prepared beside it, then put in its place by one atomic step or not at all.

Triton polls a repository and takes any folder in it for a model, so the staging folder is a sibling of the repository.
Nothing can be renamed from one mount into another: for a repository that is a mount point it is a hidden folder inside,
and for as long as that is there, Triton logs that it can't load it, and serves the others undisturbed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from repo_builder.errors import RepositoryError

ASIDE = "aside"
"""Under a staging folder: the old model for a moment, where the filesystem can't exchange two folders."""

LOCK = "lock"
"""In a staging folder: the file that is locked as long as its process lives."""


@contextlib.contextmanager
def open_staging(root: Path) -> Iterator[Path]:
    """A folder beside the repository ``root``, on its mount, gone afterwards whatever happens.

    What a killed process left there is cleared away.

    Raises:
        RepositoryError: something can't be written, in the body too.
    """
    place = root.resolve()
    with writing(root), made(place.parent), contextlib.ExitStack() as leaving:
        with locked(root):
            _clear_abandoned(place)
            folder = Path(tempfile.mkdtemp(prefix=_prefix(place), dir=_home(place)))
            leaving.callback(shutil.rmtree, folder, ignore_errors=True)
            # Closed before that: NFS would keep the folder for the sake of a file that is open.
            leaving.callback(os.close, _lock_file(folder / LOCK))
        yield folder


def discard(folder: Path, root: Path) -> None:
    """Take a folder out of the repository ``root``, which is locked, in one step that needs no space, and delete it.

    What a killed process does not delete, the next :func:`open_staging` does.
    """
    place = root.resolve()
    gone = _home(place) / f"{_prefix(place)}{secrets.token_hex(4)}"
    folder.rename(gone)
    if gone.is_symlink():
        gone.unlink()
    shutil.rmtree(gone, ignore_errors=True)


def abandoned(root: Path) -> list[Path]:
    """The staging folders of ``root`` that killed processes left; the next :func:`open_staging` clears them away."""
    place, found = root.resolve(), []
    entries = sorted(_home(place).iterdir()) if place.parent.is_dir() else ()
    for folder in [entry for entry in entries if entry.name.startswith(_prefix(place))]:
        try:
            handle = os.open(folder / LOCK, os.O_RDWR)
        except FileNotFoundError:
            found.append(folder)
            continue
        except OSError:  # another user's
            continue
        with contextlib.suppress(OSError):  # a living process holds it
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(folder)
        os.close(handle)
    return found


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other writers out of the repository ``root``; readers are never in the way."""
    place = root.resolve()
    path = _home(place) / f".{place.name}.lock"
    handle = _lock_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what was written stays written
            path.unlink()  # while it is locked: who waits for it makes another
        os.close(handle)


def put(tree: Path, target: Path) -> None:
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
        aside.rename(tree)  # what is aside would be brought back


def link_or_copy(source: Path, target: Path) -> None:
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


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make ``folder`` and those above it; when the body fails, those made go again, unless others used them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def _prefix(root: Path) -> str:
    """What the names of staging folders begin with."""
    return f".{root.name}.staging-"


def _home(root: Path) -> Path:
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


def _lock_file(path: Path) -> int:
    """A handle that holds the lock of ``path``, a file made for that, until it is closed.

    A folder could be locked too, but over NFS machines see each other's locks only of files open for writing.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = os.path.samestat(os.fstat(handle), path.stat())
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ESTALE}:  # not one that was deleted meanwhile
                raise
        finally:
            if not locked:
                os.close(handle)
        if locked:
            return handle


def _clear_abandoned(root: Path) -> None:
    """Delete what killed processes left, and bring back a model that one had moved aside; ``root`` is locked."""
    for folder in abandoned(root):
        with contextlib.suppress(OSError):
            staging = (folder / LOCK).exists()  # else a model that was discarded
            for model in folder.glob(f"{ASIDE}/*") if staging else ():
                if not (root / model.name).exists():
                    model.rename(root / model.name)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Raise RepositoryError for what can't be written in the body."""
    try:
        yield
    except OSError as error:
        raise _write_error(root, error) from error


def _write_error(root: Path, error: OSError) -> RepositoryError:
    if isinstance(error, shutil.Error):  # what copying a folder gathered: (source, target, reason)
        what = str(error.args[0][0][2])
    else:
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if any(os.strerror(number) in what for number in (errno.ENOSPC, errno.EDQUOT)):
        return RepositoryError(f"the disk of {root} is full; nothing was changed", "free some space and run it again")
    place = root.resolve()
    beside = isinstance(error, PermissionError) and Path(str(error.filename)).parent == place.parent
    hint = f"{place.parent}, which {root} is in, has to be writable too" if beside else "check permissions and disk"
    return RepositoryError(f"can't write to {root}: {what}; nothing was changed", hint)
