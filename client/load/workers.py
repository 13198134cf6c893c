"""The worker processes as the parent sees them: started, given phases, listened to."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

import client
from client.errors import ClientError
from client.load.interrupts import Interrupts
from client.load.records import Failure, Outcome, Phase, PhaseEnd, Ready, Records, Sample, Setup, Stop, Waiting

_START_DELAY_NS: Final = 20_000_000
_STOP_S: Final = 5.0
_POLL_S: Final = 0.1
MAX_SAMPLES: Final = 1000
MAX_SAMPLE_BYTES: Final = 64 * 2**20
"""Of a phase; the first sample is kept however large it is."""

Integers = npt.NDArray[np.int64]
_OnRecords = Callable[[Records], None]


@dataclass
class Store:
    """Every finished request of a phase, in the order in which workers told of them: 25 bytes each.

    ``done`` is on the clock of ``perf_counter_ns``; ``response`` counts from the moment the request was due,
    ``service`` from the moment it was sent; ``status`` is an :class:`Outcome` and perhaps ``WAITED``.
    """

    _columns: tuple[bytearray, bytearray, bytearray, bytearray] = field(
        default_factory=lambda: (bytearray(), bytearray(), bytearray(), bytearray())
    )

    def add(self, records: Records) -> None:
        # A bytearray grows by an eighth and in place, where joining arrays would hold everything twice.
        new = (records.done, records.response, records.service, records.status)
        for column, data in zip(self._columns, new, strict=True):
            column.extend(data)

    def __len__(self) -> int:
        return len(self._columns[3])

    @property
    def done(self) -> Integers:
        return np.frombuffer(self._columns[0], np.int64)

    @property
    def response(self) -> Integers:
        return np.frombuffer(self._columns[1], np.int64)

    @property
    def service(self) -> Integers:
        return np.frombuffer(self._columns[2], np.int64)

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._columns[3], np.uint8)


@dataclass
class PhaseResult:
    """What the workers told of a phase; ``start_ns`` is on the clock of ``perf_counter_ns``."""

    start_ns: int = 0
    store: Store = field(default_factory=Store)
    samples: list[Sample] = field(default_factory=list)
    sample_bytes: int = 0
    messages: dict[Outcome, str] = field(default_factory=dict)
    ends: list[PhaseEnd] = field(default_factory=list)
    waiting: dict[int, int] = field(default_factory=dict)  # requests without an answer, by worker
    interrupted: bool = False
    lost_workers: int = 0

    @property
    def broken_off(self) -> bool:
        """Whether it has no regular end: not all requests need have been told of, and no other phase can follow."""
        return self.interrupted or self.lost_workers > 0


class Workers:
    """A number of worker processes that live as long as the ``with`` block."""

    def __init__(self, setup: Setup, count: int, interrupts: Interrupts | None = None) -> None:
        self._interrupts = interrupts or Interrupts()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._controls: list[Connection] = []
        try:
            for index in range(count):
                slots = setup.slots and replace(setup.slots, first=index, stride=count)
                self._start(replace(setup, slots=slots))
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids."""
        return tuple(process.pid for process in self._processes)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; a worker ends when its control connection does."""
        for control in self._controls:
            control.close()
        for process in self._processes:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._controls, self._processes = [], []

    def run(
        self,
        phases: Sequence[Phase],
        on_records: _OnRecords | None = None,
        on_waiting: Callable[[int], None] | None = None,
    ) -> PhaseResult:
        """Let every worker carry out its phase, and return when the last one has.

        When all connections are open, interrupts are held: the first ends the sending, and a second one the waiting
        for answers; what was measured until then is returned with ``interrupted`` set.
        While nothing more is sent, ``on_waiting`` is told every second how many answers are still to come.
        """
        if self._interrupts.count > 0:
            return PhaseResult(interrupted=True)
        result = PhaseResult()
        for control, phase in zip(self._controls, phases, strict=True):
            self._tell(control, phase)
        for control in self._controls:
            _await_ready(control)
        self._interrupts.hold()
        result.start_ns = time.perf_counter_ns() + _START_DELAY_NS
        for control in self._controls:
            self._tell(control, result.start_ns)
        left = list(self._controls)
        while left and self._interrupts.count < 2:
            if self._interrupts.count and not result.interrupted:
                result.interrupted = True
                for control in left:
                    self._tell(control, Stop())
            heard = wait(left, _POLL_S)
            for control in [control for control in left if control in heard]:
                self._hear(control, left, result, on_records)
            if on_waiting is not None and len(result.waiting) == len(left) > 0:
                on_waiting(sum(result.waiting.values()))
                result.waiting.clear()
        result.interrupted = self._interrupts.count > 0
        return result

    def _start(self, setup: Setup) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._processes.append(start_child("client.load.engine", theirs.fileno()))
        self._controls.append(Connection(ours.detach()))
        self._tell(self._controls[-1], setup)

    def _hear(
        self, control: Connection, left: list[Connection], result: PhaseResult, on_records: _OnRecords | None
    ) -> None:
        try:
            message = control.recv()
        except (EOFError, OSError):
            result.lost_workers += 1
            left.remove(control)
            return
        if isinstance(message, Records):
            result.store.add(message)
            if on_records is not None:
                on_records(message)
        elif isinstance(message, Sample):
            result.sample_bytes += len(message.body) + len(message.outputs or b"")
            within = len(result.samples) < MAX_SAMPLES and result.sample_bytes <= MAX_SAMPLE_BYTES
            if within or not result.samples:
                result.samples.append(message)
        elif isinstance(message, Failure):
            result.messages.setdefault(message.outcome, message.message)
        elif isinstance(message, Waiting):
            result.waiting[control.fileno()] = message.requests
        elif isinstance(message, PhaseEnd):
            result.ends.append(message)
            result.waiting.pop(control.fileno(), None)
            left.remove(control)

    def _tell(self, control: Connection, message: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            control.send(message)  # a worker that is gone is found when it is listened to


def _await_ready(control: Connection) -> None:
    try:
        while not isinstance(control.recv(), Ready):
            pass
    except (EOFError, OSError):
        raise ClientError(
            "a worker process ended before its first request",
            "is there memory left, and does the script that calls run_load guard it with if __name__ == '__main__'?",
        ) from None


def start_child(module: str, fd: int, *arguments: str) -> subprocess.Popen[bytes]:
    """Start ``python -m module FD ...``, which is to be told by ``fd`` alone when to end.

    Ctrl-C and ``timeout`` signal the whole group: those signals are blocked in the child from its first instruction.
    It may open as many files as the system lets it, as each connection is one: shells begin with 1024.
    """
    # The child must find this very package, wherever this process found it.
    path = os.pathsep.join([str(Path(client.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(fd), *arguments],
            pass_fds=[fd],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (most, most))
    return child
