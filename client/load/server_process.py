"""The server's processes, when it runs on this machine: found by the port that it listens on, read through /proc.

A tritonserver with Python-based backends is a process for itself and one for each instance of a model, its children;
all of them count.  The files are described in proc(5); times in them are in clock ticks, resident memory in pages.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_LISTENING: Final = "0A"
_FORWARDERS: Final = frozenset({"docker-proxy", "rootlessport", "slirp4netns", "ssh", "kubectl"})
"""Programs that listen in the place of a server that is elsewhere."""

_PSS: Final = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MEMORY_EVERY: Final = 10
"""Readings from one of the memory to the next: a process's share of pages takes its server 2 to 4 ms."""


@dataclass(frozen=True)
class ServerProcess:
    """The process that listens on a port: its short name and its command line."""

    pid: int
    name: str
    arguments: tuple[str, ...]

    def flags(self, name: str) -> list[str]:
        """Every value of ``--name=VALUE`` or ``--name VALUE`` on its command line."""
        found = []
        for argument, following in zip(self.arguments, (*self.arguments[1:], ""), strict=True):
            if argument.startswith(f"--{name}="):
                found.append(argument.partition("=")[2])
            elif argument == f"--{name}":
                found.append(following)
        return found

    def path(self, path: str) -> Path:
        """A path of the process, which may have another root folder (a container's), as this process can open it."""
        inside = os.path.join(_link(_PROC / str(self.pid) / "cwd") or "/", path)  # noqa: PTH118  (an absolute one wins)
        return _PROC / str(self.pid) / "root" / inside.lstrip("/")


class MemoryKind(str, Enum):
    """What counts as a process's memory: its share of the pages that it is in, or, where that can't be read, all.

    The sum of what is resident has the pages that processes share, such as those of libraries, once for each.
    """

    PROPORTIONAL = "PSS"
    RESIDENT = "RSS"


@dataclass(frozen=True)
class ProcessUsage:
    """What the server's processes used over a window.

    ``cpu_s`` is CPU time, user and system; ``cores`` that by the window's seconds.  Memory is of all of them, in
    ``memory_kind``.
    """

    pid: int
    name: str
    processes: int
    cpu_s: float
    cores: float
    memory_kind: MemoryKind
    memory_mean_bytes: int
    memory_peak_bytes: int


@dataclass(frozen=True)
class _Stat:
    """A process at one moment; ``started`` tells it from a later one of the same number."""

    pid: int
    name: str
    parent: int
    cpu_ticks: int
    started: int
    resident_bytes: int


def is_local(family: int, host: str) -> bool:
    """Whether an IP address is one of this machine's: only those can be bound."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def find_server(family: int, host: str, port: int) -> ServerProcess | None:
    """The process that listens on a local IP address and port; None if it can't be seen.

    It can't when it is another user's, or in a container whose port is forwarded.
    """
    for inode in _listeners(family, host, port):
        holders = {pid for pid in _pids() if inode in _sockets(pid)}
        parents = {stat.pid: stat.parent for stat in filter(None, map(_stat, holders))}
        first = [pid for pid, parent in parents.items() if parent not in parents]  # a fork holds its parent's sockets
        for pid in first:
            found = _describe(pid)
            if found is not None and found.name not in _FORWARDERS:
                return found
    return None


class ProcessMeter:
    """Adds up what a process and its descendants use, those that begin after the first reading too.

    ``ended``: the process was there at the first reading and not at a later one, as when a server is started anew.
    """

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._ticks: dict[tuple[int, int], tuple[int, int]] = {}  # at the first and at the last reading
        self._memory: dict[MemoryKind, list[int | None]] = {kind: [] for kind in MemoryKind}
        self._readings = 0
        self._most = 0
        self._started: int | None = None
        self.ended = False

    def read(self, *, search: bool) -> None:
        """Take a reading; a server that has ended adds nothing.

        To ``search`` for descendants takes 10 ms of CPU, a hundredth of a second's p99: without it, those known count,
        and memory only now and then.
        """
        first = not self._readings
        root = _stat(self._server.pid)
        if self._started is None:
            self._started = root.started if root else None
        elif root is None or root.started != self._started:
            self.ended = True
        if search:
            found = list(_family(self._server.pid))
        else:
            known = [stat for stat in (_stat(pid) for pid, _ in self._ticks) if stat is not None]
            found = [stat for stat in known if (stat.pid, stat.started) in self._ticks]
        for stat in found:
            key = stat.pid, stat.started
            # A process that wasn't there at the first reading has used all its time in the window.
            begin = self._ticks[key][0] if key in self._ticks else stat.cpu_ticks if first else 0
            self._ticks[key] = begin, stat.cpu_ticks
        if found:
            if search or self._readings % _MEMORY_EVERY == 0:
                self._memory[MemoryKind.RESIDENT].append(sum(stat.resident_bytes for stat in found))
                self._memory[MemoryKind.PROPORTIONAL].append(_proportional(found))
            self._readings += 1
        self._most = max(self._most, len(found))

    def usage(self, seconds: float) -> ProcessUsage | None:
        """What was used between the first reading and the last, ``seconds`` apart; None if nothing was seen."""
        if not self._readings:
            return None
        ticks = sum(end - begin for begin, end in self._ticks.values())
        cpu_s = ticks / os.sysconf("SC_CLK_TCK")
        kind = MemoryKind.PROPORTIONAL
        if None in self._memory[kind]:
            kind = MemoryKind.RESIDENT
        memory = [value for value in self._memory[kind] if value is not None]
        return ProcessUsage(
            pid=self._server.pid,
            name=self._server.name,
            processes=self._most,
            cpu_s=cpu_s,
            cores=cpu_s / seconds,
            memory_kind=kind,
            memory_mean_bytes=sum(memory) // len(memory),
            memory_peak_bytes=max(memory),
        )


def _listeners(family: int, host: str, port: int) -> list[str]:
    """Inodes of the sockets that listen there: on this very address first, on every address of the machine then."""
    exact = _hexadecimal(socket.inet_pton(family, host))
    tables = [("tcp6", {exact: 0, "0" * 32: 1})]
    if family == socket.AF_INET:
        tables = [("tcp", {exact: 0, "0" * 8: 1}), ("tcp6", {"0" * 32: 1})]  # a socket of IPv6 may take IPv4, too
    found: list[tuple[int, str]] = []
    for table, ranks in tables:
        for line in _read(_PROC / "net" / table).splitlines()[1:]:
            fields = line.split()
            address, _, at = fields[1].partition(":")
            if fields[3] == _LISTENING and int(at, 16) == port and address in ranks:
                found.append((ranks[address], fields[9]))
    return [inode for _, inode in sorted(found)]


def _hexadecimal(address: bytes) -> str:
    """An address as the kernel prints it: words of 32 bits, each in this machine's byte order."""
    return "".join(address[at : at + 4][::-1].hex().upper() for at in range(0, len(address), 4))


def _describe(pid: int) -> ServerProcess | None:
    stat = _stat(pid)
    if stat is None:
        return None
    return ServerProcess(pid, stat.name, tuple(_read(_PROC / str(pid) / "cmdline").split("\0")[:-1]))


def _family(root: int) -> Iterator[_Stat]:
    """The process and its descendants."""
    stats = {stat.pid: stat for stat in filter(None, map(_stat, _pids()))}
    members = _descendants(root, {pid: stat.parent for pid, stat in stats.items()})
    yield from (stats[pid] for pid in members if pid in stats)


def _descendants(root: int, parents: Mapping[int, int]) -> Sequence[int]:
    members = [root]
    for member in members:
        members += [pid for pid, parent in parents.items() if parent == member]
    return members


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]


def _stat(pid: int) -> _Stat | None:
    name, _, rest = _read(_PROC / str(pid) / "stat").partition("(")[2].rpartition(")")
    fields = rest.split()
    if len(fields) < 22 or fields[0] == "Z":
        return None
    # The numbers of proc(5) less three: the pid and the name are cut off, and it counts from 1.
    return _Stat(pid, name, int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[19]), int(fields[21]) * _PAGE)


def _proportional(found: Sequence[_Stat]) -> int | None:
    """Bytes of all of them, of a page that n processes share an n-th in each; None if it can't be read."""
    total = 0
    for stat in found:
        match = _PSS.search(_read(_PROC / str(stat.pid) / "smaps_rollup"))
        if match is not None:
            total += int(match.group(1)) << 10
        elif _stat(stat.pid) is not None:  # it hasn't ended meanwhile
            return None
    return total


def _sockets(pid: int) -> set[str]:
    """Inodes of a process's sockets; none of another user's."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(_PROC / str(pid) / "fd"):
            target = _link(Path(entry.path))
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
