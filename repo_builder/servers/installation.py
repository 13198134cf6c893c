"""The genuine tritonserver that the nvidia-pytriton wheel carries, and the folder it finds its backends in."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from repo_builder.errors import MissingExtraError, ServerError
from repo_builder.servers import supervisor

_BACKENDS = Path(__file__).parent / "backends"
_SERVED = ("onnxruntime", "tensorrt", "tensorrt_rtx")
_SAFE_PATH = re.compile(r"[\w./+@=-]+", re.ASCII)
_PREFIX, _LOCK = "repo-builder-", "server.lock"
_SHM_PREFIX = re.compile(r"repo_builder_[0-9a-f]{16}_")

# What Triton imports as a backend; repo_builder.servers.backends says why it is no more.
BACKEND_MODEL = """\
import sys

sys.path.insert(0, {folder!r})

from repo_builder_backends.{name} import TritonPythonModel
"""

# Triton 24.10 starts a stub with `bash -c " exec STUB MODEL_PATH SHM_NAME ..."` and quotes nothing, so a space in the
# path of the repository breaks every model and a `;` in a model's name or default_model_filename is a command of its
# own.  This script, found on PATH under that name, takes the line apart at what only we know (the stub's path, the
# random prefix of the shared memory) and starts the stub without a shell.  It lets the stub's heap, the weights and
# activations of the model, have huge pages where the kernel gives them on request: 4 % less time in ONNX Runtime.  Its
# heap keeps up to 256 MiB that are free: the stub copies every input into memory of its own, and getting the pages for
# it anew each time takes longer than the copy.  The stub imports a module `model` and looks for it in its working
# directory first, in the backend's folder last: so it starts in that folder, unless the repository's path is relative.
_BASH = """\
#!/bin/sh
line=${{2#" exec "{stub}" "}}
model=${{line%%" "{shm_prefix}*}}
if [ "$1" != -c ] || [ "$line" = "$2" ] || [ "$model" = "$line" ]; then
    echo "refused to run in a shell: $*" >&2
    exit 126
fi
IFS=' ' read -r shm initial growth parent library control rest <<END
${{line#"$model "}}
END
heap=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456
export GLIBC_TUNABLES="$heap${{GLIBC_TUNABLES:+:$GLIBC_TUNABLES}}"
case $model in /*) [ -d "${{rest##* }}" ] && cd "${{rest##* }}" ;; esac
PATH=${{PATH#*:}} exec {stub} "$model" "$shm" "$initial" "$growth" "$parent" "$library" "$control" \\
    "${{rest% *}}" "${{rest##* }}"
"""


@dataclass(frozen=True)
class Installation:
    """Where the server's files are, inside site-packages."""

    binary: Path
    libraries: Path
    python_backend: Path
    stub: Path


def find_installation() -> Installation:
    """Find the files without importing pytriton, which would start ZeroMQ and gevent.

    Raises:
        MissingExtraError: nvidia-pytriton or onnxruntime is not installed.
        ServerError: nvidia-pytriton has no stub for this Python.
    """
    package = importlib.util.find_spec("pytriton")
    if package is None or package.origin is None:
        raise MissingExtraError("server", "nvidia-pytriton")
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError("server", "onnxruntime")
    root = Path(package.origin).parent
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = Installation(
        binary=root / "tritonserver/bin/tritonserver",
        libraries=root.parent / "nvidia_pytriton.libs",
        python_backend=root / "tritonserver/backends/python",
        stub=root / f"tritonserver/python_backend_stubs/{python}/triton_python_backend_stub",
    )
    if not found.stub.is_file():
        raise ServerError(f"nvidia-pytriton has no backend for Python {python}", "use Python 3.10, 3.11 or 3.12")
    if not found.binary.is_file():
        raise ServerError(f"{found.binary} is missing", "pip install --force-reinstall nvidia-pytriton==0.7.0")
    return found


def new_shm_prefix() -> str:
    """What the names of a server's shared-memory segments begin with."""
    return f"repo_builder_{secrets.token_hex(8)}_"


@dataclass(frozen=True)
class RunDirectory:
    """A server's temporary folder: its backends, and the `bash` that starts stubs safely.

    ``lock`` is a file descriptor, for the server's processes to hold: without a holder the folder is abandoned.
    """

    path: Path
    environment: dict[str, str]
    lock: int

    @property
    def backends(self) -> Path:
        return self.path / "backends"


def make_run_directory(installation: Installation, shm_prefix: str) -> RunDirectory:
    """Lay out a new server's folder, after clearing away those that killed servers left.

    Raises:
        ServerError: the stub can't run here, because this Python has no shared library; or the folder can't be written.
    """
    clear_abandoned()
    try:
        return _make_run_directory(installation, shm_prefix)
    except OSError as error:
        what = f"{_base()} can't be written, where the server's programs are laid out: {error.strerror}"
        raise ServerError(what, "free some space there, or set TMPDIR to a folder elsewhere") from None


def _make_run_directory(installation: Installation, shm_prefix: str) -> RunDirectory:
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base()))
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, shm_prefix.encode())
        return RunDirectory(path, _fill(path, installation, shm_prefix), lock)
    except BaseException:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)
        raise


def clear_abandoned() -> None:
    """Remove what servers of this user left whose supervisor was killed: their folders and shared memory."""
    for path in _base().glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shm_prefix = os.read(lock, 100).decode(errors="replace")
                if os.fstat(lock).st_uid == os.getuid() and _SHM_PREFIX.fullmatch(shm_prefix):
                    supervisor.remove_run_directory(path.parent, shm_prefix)
            finally:
                os.close(lock)
    supervisor.remove_environments(supervisor.TRITON_TMP)


def _base() -> Path:
    temporary = tempfile.gettempdir()
    return Path(temporary if _SAFE_PATH.fullmatch(temporary) else "/tmp")  # noqa: S108  (Triton passes it through a shell)


def _fill(path: Path, installation: Installation, shm_prefix: str) -> dict[str, str]:
    """Put the backends and the `bash` in place; return the environment to start the server with."""
    python_backend = path / "backends/python"
    python_backend.mkdir(parents=True)
    # Copies, 3 MB: Triton refuses backends behind links that leave its folder, and may change the stub's mode.
    for file in (*installation.python_backend.glob("*.*"), installation.stub):
        shutil.copy(file, python_backend)
    stub = python_backend / installation.stub.name
    package = path / "lib/repo_builder_backends"
    package.mkdir(parents=True)
    for file in _BACKENDS.glob("*.py"):
        shutil.copy(file, package)
    for name in _SERVED:
        backend = path / "backends" / name
        backend.mkdir()
        text = BACKEND_MODEL.format(folder=str(package.parent), name=name)
        (backend / "model.py").write_text(text, encoding="utf-8")
    bash = path / "bin/bash"
    bash.parent.mkdir()
    bash.write_text(_BASH.format(stub=shlex.quote(str(stub)), shm_prefix=shlex.quote(shm_prefix)), encoding="utf-8")
    bash.chmod(0o700)
    environment = _environment(installation, bash.parent)
    _check_stub(stub, environment)
    return environment


def _environment(installation: Installation, programs: Path) -> dict[str, str]:
    """The variables by which a stub finds this Python: its library, and `python3` first on PATH."""
    libraries = [str(installation.libraries), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    search = [str(programs), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(part for part in libraries if part),
        "PATH": ":".join(search),
    }


def _check_stub(stub: Path, environment: dict[str, str]) -> None:
    """Run the stub without arguments, which it answers with exit status 1 when it can run at all."""
    try:
        outcome = subprocess.run([stub], env=environment, capture_output=True, text=True, check=False)
    except PermissionError:
        raise ServerError(
            f"programs can't be run in {_base()}, where the server's are laid out: it is mounted with noexec",
            "set TMPDIR to a folder elsewhere",
        ) from None
    if outcome.returncode != 1:
        library = sysconfig.get_config_var("INSTSONAME") or "libpython"
        raise ServerError(
            f"Triton's Python backend can't start: {outcome.stderr.strip() or f'exit status {outcome.returncode}'}",
            f"this Python needs its shared library {library}: install the system's package for it "
            "(libpython3.X) or use a Python that has one, such as uv's or python.org's images",
        )
