"""A worker process: one thread, one epoll loop, one connection for each request in flight.

It is written on bare sockets because of what a request then costs: bodies are built before, an answer is one
``recv`` and one search, and no coroutine or future is made on the way.  Nothing sleeps between the moment
that a request is due and its send, and no request is ever sent a second time.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import heapq
import itertools
import select
import signal
import sys
import time
from array import array
from multiprocessing.connection import Connection
from typing import Final

from client.load.channel import Answer, Channel
from client.load.connections import Connections
from client.load.records import (
    WAITED,
    ClosedLoop,
    Failure,
    OpenLoop,
    Outcome,
    Phase,
    PhaseEnd,
    Ready,
    Records,
    Sample,
    Setup,
)

REST_NS: Final = 10_000_000
"""A connection of a closed loop rests after it broke: a dead server would be asked 20,000 times a second."""

_SPIN_NS: Final = 60_000
"""How long before a request is due the loop stops waiting and looks at the clock: a wake-up takes that long."""

_FLUSH_NS: Final = 50_000_000
_SAMPLE_NS: Final = 100_000_000
_FAR: Final = 2**62
_PR_SET_TIMERSLACK: Final = 29

_now = time.perf_counter_ns


class Engine:
    """Carries out phases and sends the records of their requests to the parent."""

    def __init__(self, setup: Setup, control: Connection) -> None:
        self._setup = setup
        self._control = control
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._connections = Connections(setup, self._epoll)
        self._free: list[Channel] = []
        self._resting: list[tuple[int, int, Channel]] = []
        self._columns = (array("q"), array("q"), array("q"), array("B"))
        self._reset()

    def _reset(self) -> None:
        self._told: set[Outcome] = set()
        self._stopped = False
        self._in_flight = self._send_ns = self._receive_ns = 0
        self._next_sample = self._next_check = 0
        self._again = False  # a channel sends its next request when the last one is answered
        self._budget = self._end = _FAR

    # A phase

    def prepare(self, wanted: int) -> None:
        """Open ``wanted`` connections; those that can't be opened are tried again when they are needed."""
        while len(self._free) > wanted:
            self._connections.discard(self._free.pop())
        self._free += [self._connections.new() for _ in range(wanted - len(self._free))]
        for channel in self._free:
            if not channel.open:
                try:
                    self._connections.connect(channel, blocking=True)
                    self._connections.send(channel)
                except OSError:
                    return

    def run(self, phase: Phase, start: int) -> None:
        """Send what ``phase`` says from the clock's ``start`` on, until every request is answered or failed."""
        self._reset()
        self._end = start + phase.duration_ns if phase.duration_ns else _FAR
        while (left := start - _now()) > 0:
            select.select([], [], [], left / 1e9)
        cpu = time.process_time_ns()
        if isinstance(phase.loop, ClosedLoop):
            unsent = self._run_closed(phase.loop)
        else:
            unsent = self._run_open(phase.loop, start)
        cpu, wall = time.process_time_ns() - cpu, _now() - start
        self._flush()
        self._control.send(PhaseEnd(self._send_ns, self._receive_ns, cpu, wall, len(self._connections.by_fd), unsent))

    def _run_closed(self, loop: ClosedLoop) -> int:
        self._budget = _FAR if loop.requests is None else loop.requests
        self._again = True
        channels, self._free = self._free, []
        for channel in channels:
            self._next(channel)
        while self._in_flight or self._resting:
            for fd, mask in self._epoll.poll(0.01):
                self._handle(fd, mask)
            now = _now()
            while self._resting and (self._resting[0][0] <= now or self._stopped):
                self._next(heapq.heappop(self._resting)[2])
            if now >= self._next_check:
                self._check(now)
        return 0

    def _run_open(self, loop: OpenLoop, start: int) -> int:
        dues = itertools.islice(loop.due, loop.first, loop.requests, loop.stride)
        due = next(dues, _FAR) + start
        blocked_until = 0
        while True:
            now = _now()
            sending = due < self._end and now < self._end and not self._stopped
            if not (sending or self._in_flight):
                break
            blocked = False
            while sending and due <= now:
                channel = self._take(loop.max_connections)
                if channel is None:
                    blocked, blocked_until = True, now
                    break
                self._start(channel, due, WAITED if due < blocked_until else 0)
                due = next(dues, _FAR) + start
                sending = due < self._end
                now = _now()
            wake = due if sending and not blocked else _FAR
            for fd, mask in self._wait(min(wake, self._next_check)):
                self._handle(fd, mask)
            if now >= self._next_check:
                self._check(now)
        # What was due and never sent: leaving it out would flatter a server that fell behind.
        limit = min(self._end, _now())
        return 0 if due >= limit else 1 + sum(1 for _ in itertools.takewhile((limit - start).__gt__, dues))

    def _wait(self, until: int) -> list[tuple[int, int]]:
        events = self._epoll.poll(0)
        while not events and (left := until - _now()) > 0:
            if left > _SPIN_NS:
                # epoll's timeout counts in whole milliseconds; but an epoll is itself a file that select can wait for.
                select.select([self._epoll], [], [], (left - _SPIN_NS) / 1e9)
            events = self._epoll.poll(0)
        return events

    def _check(self, now: int) -> None:
        """What is done a few times a second: hand the records on, end what takes too long."""
        self._flush()
        self._next_check = now + _FLUSH_NS
        oldest = now - self._setup.timeout_ns
        late = [channel for channel in self._connections.by_fd.values() if 0 < channel.sent < oldest]
        for channel in late:
            self._fail(channel, Outcome.TIMEOUT, f"no answer within {self._setup.timeout_ns / 1e9:g} s")

    # A request

    def _take(self, most: int) -> Channel | None:
        if self._free:
            return self._free.pop()
        return self._connections.new() if self._in_flight < most else None

    def _next(self, channel: Channel) -> None:
        """Use a channel that is free again."""
        now = _now()
        if self._again and self._budget and now < self._end and not self._stopped:
            self._budget -= 1
            self._start(channel, now, 0)
        else:
            self._free.append(channel)

    def _start(self, channel: Channel, due: int, waited: int) -> None:
        self._in_flight += 1
        channel.due, channel.waited, channel.first = due, waited, 0
        channel.sent = sent = _now()
        channel.keep = sent >= self._next_sample
        if channel.keep:
            self._next_sample = sent + _SAMPLE_NS
        is_new = not channel.open
        if is_new:
            try:
                self._connections.connect(channel, blocking=False)
            except OSError as error:
                self._fail(channel, Outcome.NO_CONNECTION, _reason(error))
                return
        channel.begin(self._connections.next_request(channel))
        if not is_new:
            self._send(channel)

    def _send(self, channel: Channel) -> None:
        before = _now()
        try:
            self._connections.send(channel)
        except OSError as error:
            self._broken(channel, error)
        else:
            self._send_ns += _now() - before

    def _handle(self, fd: int, mask: int) -> None:
        channel = self._connections.by_fd.get(fd)
        if channel is None:
            if fd == self._control.fileno():
                self._control.recv()  # EOFError: the parent is gone, and so is the reason to go on
                self._stopped = True
        elif channel.shaking or not (channel.out is None or mask & select.EPOLLIN):
            self._send(channel)
        else:
            self._receive(channel)

    def _receive(self, channel: Channel) -> None:
        before = _now()
        try:
            count = self._connections.receive(channel)
            if count <= 0:
                if count == 0:
                    self._broken(channel, None)
                return
            answer = channel.take(self._connections.buffer, count, before)
        except OSError as error:
            self._broken(channel, error)
        except ValueError as error:
            if channel.sent:
                self._fail(channel, Outcome.NOT_UNDERSTOOD, str(error))
            else:
                self._connections.close(channel)
        else:
            if answer is not None:
                self._finish(channel, answer)
            if channel.out is not None and not channel.writing:
                self._send(channel)  # what HTTP/2 has to say besides requests

    def _finish(self, channel: Channel, answer: Answer) -> None:
        self._record(channel, answer.outcome)
        if answer.outcome:
            self._tell(answer.outcome, answer.message)
            self._next_sample = 0
        elif channel.kept is not None and channel.keep:
            outputs = self._connections.outputs(channel)
            self._control.send(Sample(answer.header_length, bytes(channel.kept), answer.encoding, outputs))
        if channel.spoiled:
            self._connections.close(channel)
        self._next(channel)

    def _broken(self, channel: Channel, error: OSError | None) -> None:
        if not channel.sent:
            self._connections.close(channel)  # it was idle: another one is opened when it is needed
        elif not channel.connected:
            self._fail(channel, Outcome.NO_CONNECTION, _reason(error))
        elif error is not None:
            self._fail(channel, Outcome.CONNECTION_BROKE, _reason(error))
        else:
            place = "in the middle of an answer" if channel.first else "without an answer"
            self._fail(channel, Outcome.CONNECTION_BROKE, f"the server closed the connection {place}")

    def _fail(self, channel: Channel, outcome: Outcome, message: str) -> None:
        self._record(channel, outcome)
        self._tell(outcome, message)
        self._connections.close(channel)
        if self._again:
            heapq.heappush(self._resting, (_now() + REST_NS, id(channel), channel))
        else:
            self._free.append(channel)

    def _record(self, channel: Channel, outcome: int) -> None:
        done = _now()
        finished, response, service, status = self._columns
        finished.append(done)
        response.append(done - channel.due)
        service.append(done - channel.sent)
        status.append(outcome | channel.waited)
        if not outcome:
            self._receive_ns += done - channel.first
        channel.sent = 0
        self._in_flight -= 1

    def _tell(self, outcome: Outcome, message: str) -> None:
        if outcome not in self._told:
            self._told.add(outcome)
            self._control.send(Failure(outcome, message))

    def _flush(self) -> None:
        if self._columns[0]:
            self._control.send(Records(*(column.tobytes() for column in self._columns)))
            self._columns = (array("q"), array("q"), array("q"), array("B"))


def _reason(error: OSError | None) -> str:
    if error is None:
        return "the server closed the connection before it was used"
    return error.strerror or str(error)


def main(fd: int) -> None:
    """Serve the parent's commands on the socket ``fd``: a Setup, then a Phase and its start time, again and again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    # A timer of Linux may be 50 us late to save wake-ups; a schedule of microseconds can't be.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.disable()  # nothing here makes cycles
    with Connection(fd) as control, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        engine = Engine(control.recv(), control)
        while True:
            command = control.recv()
            if isinstance(command, Phase):
                engine.prepare(command.loop.connections)
                control.send(Ready())
                start = control.recv()
                if isinstance(start, int):
                    engine.run(command, start)


if __name__ == "__main__":
    main(int(sys.argv[1]))
