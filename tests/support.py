"""What tests share: folders compared byte for byte, the command line run in this process, rights taken away."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from repo_builder.compilers.base import Target
from repo_builder.trt.library import is_installed

rtx = pytest.mark.skipif(
    not is_installed(Target.TENSORRT_RTX), reason="TensorRT-RTX is not installed: pip install 'repo-builder[rtx]'"
)
T = TypeVar("T")
Tree = dict[str, tuple[str, int, bytes]]


def snapshot(root: Path) -> Tree:
    """Kind, mode and bytes of everything below ``root``; two are equal if nobody can tell the folders apart."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            entry = ("link", 0, os.fsencode(path.readlink()))
        elif stat.S_ISDIR(mode):
            entry = ("folder", stat.S_IMODE(mode), b"")
        else:
            entry = ("file", stat.S_IMODE(mode), path.read_bytes())
        found[str(path.relative_to(root))] = entry
    return found


def let_everyone_into(path: Path) -> None:
    """Open the temporary folder ``path`` to other users, such as a container's: pytest keeps its folders to itself."""
    for folder in (path, *path.parents):
        if folder.is_relative_to(tempfile.gettempdir()) and folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(0o755)


def fill(disk: Path) -> None:
    """Leave no byte of a small filesystem free."""
    with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@contextlib.contextmanager
def untouched(root: Path) -> Iterator[None]:
    """The body must leave everything below ``root`` as it was, staging folders included."""
    before = snapshot(root)
    yield
    assert snapshot(root) == before


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The message, after checking that the error is told as every error must be."""
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        hints = [line for line in lines if line.startswith("hint: ")]
        assert self.code in {1, 2}, self
        assert self.out == ""
        assert len(errors) == 1, self.err
        assert len(hints) == 1, self.err
        assert lines[lines.index(errors[0]) :] == [errors[0], "", hints[0]]
        assert "Traceback" not in self.err
        assert not errors[0].startswith("error: unexpected")
        return errors[0].removeprefix("error: ")

    @property
    def hint(self) -> str:
        return self.err.rpartition("\nhint: ")[2].rstrip("\n")


def compile_c(path: Path, code: str) -> Path:
    """A shared library at ``path``; needs a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".c")
    source.write_text(code)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
    return path


def compile_library(folder: Path, name: str, code: str = "") -> Path:
    """A shared library with ``code`` that says by :func:`was_loaded` that it has been loaded; needs a C compiler."""
    note = f'static void __attribute__((constructor)) note(void) {{ setenv("LOADED_{name}", "1", 1); }}'
    return compile_c(folder / f"{name}.so", f"#include <stdlib.h>\n{code}\n{note}\n")


def was_loaded(name: str) -> bool:
    """Whether the constructor of that library has run in this process; ``os.environ`` does not show what it set."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    return bool(getenv(f"LOADED_{name}".encode()))


def wait_for(condition: Callable[[], T | None], within_s: float = 20) -> T:
    """What ``condition`` returns as soon as that is true."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def steady_port() -> int:
    """A free port that no outgoing connection is given meanwhile: for a server that comes back to it."""
    given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(1024, given_away)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


_CAPABILITY_VERSION_3 = 0x20080522
_FILE_RIGHTS = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextlib.contextmanager
def without_root_rights() -> Iterator[None]:
    """Make the modes of files hold for root too, in this thread: capset(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low words, then high ones
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] = effective & ~_FILE_RIGHTS
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0


def assert_all_are(expected: Mapping[str, npt.NDArray[Any]], answers: Sequence[Mapping[str, npt.NDArray[Any]]]) -> None:
    """Every one of several answers has the expected outputs, in their order, to the bit."""
    assert len(answers) >= 2
    for answer in answers:
        assert list(answer) == list(expected)
        for name, array in answer.items():
            np.testing.assert_array_equal(array, expected[name])
