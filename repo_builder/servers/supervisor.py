"""A process of its own that runs one tritonserver and sees to it that nothing of it is left behind.

    python -I -S supervisor.py PARENT_PID RUN_DIRECTORY SHM_PREFIX RECORD COMMAND...

tritonserver must not outlive the process that asked for it, even when that one is killed with SIGKILL.  A parent-death
signal alone can't do it: the kernel ties it to the *thread* that forked, Triton's stub processes don't inherit it, and
SIGKILL leaves shared-memory segments in /dev/shm.  So this process stands between: it has one thread, so the
parent-death signal it gives tritonserver fires when this process dies and not earlier; it adopts orphaned stubs; and it
watches its own parent by process id, which no thread of the parent can disturb.

SIGTERM, SIGINT  stop tritonserver: it finishes the requests in flight and is killed when they are done, or after
                 GRACE_S seconds; clean up, exit 0
SIGUSR1          the server is detached: stop watching the parent
parent gone      kill everything at once, clean up
tritonserver ends  kill what it left, clean up, note in the record of a detached server how it ended, exit with its
                 status (128 + N after signal N)
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import shutil
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

GRACE_S = 3.5  # a stop promises that everything is gone within 5 s
WATCH_S = 0.2
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36
STOPPING_S = 0.02
# Triton's words once every request in flight is answered.  Unloading models, which follows, only frees memory and
# takes a second a model.
REQUESTS_DONE = b"unloading models"
CLOCK_SLACK_S = 10  # between the clocks of processes and of files
TRITON_TMP = Path("/tmp")  # noqa: S108  (Triton does not ask TMPDIR)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def spawn(command: list[str]) -> int:
    """Start ``command`` in a process group of its own that dies with this process; return its process id."""
    supervisor = os.getpid()
    child = os.fork()
    if child:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(child, child)  # whoever of the two is first: a kill may come right away
        return child
    try:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr, flush=True)  # noqa: T201  (goes to the server's log)
    os._exit(127)


def reap(child: int) -> int | None:
    """Collect ended children, adopted ones too; return the wait status of ``child`` if it is among them."""
    result = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                result = ended[1]
    return result


def requests_done(log_offset: int) -> bool:
    """Whether Triton has written since ``log_offset`` that no request is in flight any more."""
    with contextlib.suppress(OSError), Path("/proc/self/fd/2").open("rb") as log:
        log.seek(log_offset)
        return REQUESTS_DONE in log.read()
    return False


def run(child: int, parent: int) -> int | None:
    """Wait until the server ends by itself, and return its exit status, or has to end, and return None."""
    deadline, log_offset = None, 0
    while True:
        received = signal.sigtimedwait(SIGNALS, WATCH_S if deadline is None else STOPPING_S)
        number = received.si_signo if received else None
        status = reap(child)
        if status is not None:
            if deadline is not None:
                return None
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        if number == signal.SIGUSR1:
            parent = 0
        elif number in (signal.SIGTERM, signal.SIGINT) and deadline is None:
            deadline, log_offset = time.monotonic() + GRACE_S, os.fstat(2).st_size
            os.kill(child, signal.SIGTERM)
        if parent and os.getppid() != parent:
            return None
        if deadline is not None and (time.monotonic() > deadline or requests_done(log_offset)):
            return None


def clean_up(child: int, run_directory: Path, shm_prefix: str, record: Path, status: int | None) -> None:
    """Kill what is left of the server's process group, wait for it, and remove the server's files."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    deadline = time.monotonic() + 1
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
    remove_files(run_directory, shm_prefix, record, os.getpid(), status)


def remove_files(
    run_directory: Path, shm_prefix: str, record: Path, supervisor: int, status: int | None = None
) -> None:
    """Remove what a server whose supervisor had the given process id has in the file system."""
    remove_run_directory(run_directory, shm_prefix)
    remove_environments(TRITON_TMP)
    close_record(record, supervisor, status)


def close_record(record: Path, supervisor: int, status: int | None) -> None:
    """Remove a server's record, or note in that of a detached one that it ended by itself with ``status``."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        facts = json.loads(record.read_text(encoding="utf-8"))
        if facts["pid"] != supervisor:
            return
        if status is None or not facts["detached"]:
            record.unlink()
            return
        ended = {"exit_status": status, "ended_at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        written = record.with_suffix(f".{supervisor}")
        written.write_text(json.dumps({**facts, **ended}, indent=2), encoding="utf-8")
        written.replace(record)


def remove_run_directory(run_directory: Path, shm_prefix: str) -> None:
    for segment in Path("/dev/shm").glob(f"{shm_prefix}*"):  # noqa: S108  (where shm_open puts them)
        segment.unlink(missing_ok=True)
    shutil.rmtree(run_directory, ignore_errors=True)


def remove_environments(folder: Path, processes: Path = Path("/proc")) -> None:
    """Remove the empty folders that Triton's Python backend makes at its start and only a slow end would remove.

    Nothing tells which server made one, so those stay that are younger than the oldest server among ``processes``.
    """
    made = list(folder.glob("python_env_??????"))
    if not made:
        return
    oldest = min((start_of_server(process, folder) for process in processes.glob("[0-9]*")), default=math.inf)
    for path in made:
        with contextlib.suppress(OSError):
            facts = path.stat()
            if facts.st_uid == os.getuid() and facts.st_ctime < oldest - CLOCK_SLACK_S:
                path.rmdir()


def start_of_server(process: Path, folder: Path) -> float:
    """When a process, given by its folder in /proc, started, if it has the backend loaded and sees ``folder``.

    In seconds since the epoch; infinite for any other process.
    """
    with contextlib.suppress(OSError):
        seen = process / "root" / folder.relative_to("/")
        if b"/libtriton_python.so" in (process / "maps").read_bytes() and seen.samefile(folder):
            fields = (process / "stat").read_bytes().rpartition(b")")[2].split()  # proc(5): starttime is field 22
            boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
            return boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return math.inf


def main() -> int:
    parent, run_directory, shm_prefix, record, *command = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = spawn(command)
    status = None
    try:
        status = run(child, int(parent))
    finally:
        clean_up(child, Path(run_directory), shm_prefix, Path(record), status)
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
