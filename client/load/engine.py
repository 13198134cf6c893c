"""A worker process: one thread, one epoll loop, and a connection for each request in flight, or a few of them.

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
import sys
import time
from array import array
from multiprocessing.connection import Connection
from typing import Final

from client.load.channel import Answer, Call, Channel
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
    Waiting,
)

REST_NS: Final = 10_000_000
"""A call of a closed loop rests after its connection broke: a dead server would be asked 20,000 times a second."""

_SPIN_NS: Final = 60_000
"""How long before a request is due the loop stops waiting and looks at the clock: a wake-up takes that long."""

_FLUSH_NS: Final = 50_000_000
_CHECK_NS: Final = 1_000_000
"""The least time from one look for what takes too long to the next: each of them goes through all that is in flight."""

_WAITING_NS: Final = 1_000_000_000
_POLL_NS: Final = 10_000_000
_SAMPLE_NS: Final = 100_000_000
_FAR: Final = 2**62
_PR_SET_TIMERSLACK: Final = 29

_now = time.perf_counter_ns


class Engine:
    """Carries out phases and sends the records of their requests to the parent."""

    def __init__(self, setup: Setup, control: Connection) -> None:
        self._setup = setup
        self._control = control
        self._too_late = f"no answer within {setup.timeout_ns / 1e9:g} s"
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._connections = Connections(setup, self._epoll)
        self._free: list[Call] = []
        self._resting: list[tuple[int, int, Call]] = []
        self._reading: Channel | None = None  # whose answers are being looked at: it is sent to afterwards
        self._columns = (array("q"), array("q"), array("q"), array("B"))
        self._reset()

    def _reset(self) -> None:
        self._told: set[Outcome] = set()
        self._stopped = False
        self._in_flight = self._send_ns = self._receive_ns = 0
        self._next_sample = self._next_check = self._next_flush = self._next_waiting = 0
        self._again = False  # a call sends its next request when the last one is answered
        self._budget = self._end = _FAR  # of requests, 0 when all are sent; the time of the last

    # A phase

    def prepare(self, wanted: int) -> None:
        """Open the connections of ``wanted`` calls; those that can't be opened are tried again when they are needed."""
        while len(self._free) > wanted:
            self._connections.discard(self._free.pop())
        self._free += [self._connections.new() for _ in range(wanted - len(self._free))]
        for call in self._free:
            if call.channel is None or call.channel.spoiled:
                try:
                    self._connections.send(self._connections.attach(call, blocking=True))
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
        calls, self._free = self._free, []
        for call in calls:
            self._next(call)
        now = _now()
        while self._in_flight or self._resting:
            for fd, mask in self._epoll.poll(max(0, min(self._next_check - now, _POLL_NS)) / 1e9):
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
                call = self._take(loop.most)
                if call is None:
                    blocked, blocked_until = True, now
                    break
                self._start(call, due, WAITED if due < blocked_until else 0)
                due = next(dues, _FAR) + start
                sending = due < self._end
                now = _now()
            if due >= _FAR:
                self._budget = 0
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
        """Hand the records on, a few times a second; end what takes too long, when its time is over."""
        if now >= self._next_flush:
            self._flush()
            self._tell_waiting(now)
            self._next_flush = now + _FLUSH_NS
        limit, oldest = self._setup.timeout_ns, now
        calls = itertools.chain.from_iterable(channel.calls for channel in self._connections.by_fd.values())
        for call in [call for call in calls if call.sent]:
            if now - call.sent > limit:
                self._fail(call, Outcome.TIMEOUT, self._too_late)
            else:
                oldest = min(oldest, call.sent)
        self._next_check = min(self._next_flush, max(oldest + limit + 1, now + _CHECK_NS))

    def _tell_waiting(self, now: int) -> None:
        if self._budget and now < self._end and not self._stopped:
            self._next_waiting = now + _WAITING_NS
        elif now >= self._next_waiting and self._in_flight:
            self._control.send(Waiting(self._in_flight))
            self._next_waiting = now + _WAITING_NS

    # A request

    def _take(self, most: int) -> Call | None:
        if self._free:
            return self._free.pop()
        return self._connections.new() if self._in_flight < most else None

    def _next(self, call: Call) -> None:
        """Use a call that is free again."""
        now = _now()
        if self._again and self._budget and now < self._end and not self._stopped:
            self._budget -= 1
            self._start(call, now, 0)
        else:
            self._free.append(call)

    def _start(self, call: Call, due: int, waited: int) -> None:
        self._in_flight += 1
        call.due, call.waited, call.first = due, waited, 0
        call.sent = sent = _now()
        call.keep = sent >= self._next_sample
        if call.keep:
            self._next_sample = sent + _SAMPLE_NS
        channel = call.channel
        if channel is None or channel.spoiled:
            try:
                channel = self._connections.attach(call, blocking=False)
            except OSError as error:
                self._fail(call, Outcome.NO_CONNECTION, _reason(error))
                return
        channel.begin(call, self._connections.next_request(call))
        if channel is not self._reading and not channel.writing:
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
            answers = channel.take(self._connections.buffer, count, before)
        except OSError as error:
            self._broken(channel, error)
        except ValueError as error:
            self._close(channel, Outcome.NOT_UNDERSTOOD, str(error))
        else:
            done = _now()
            self._reading = channel
            for call, answer in answers:
                self._finish(call, answer, done)
            self._reading = None
            if channel.out is not None:
                self._send(channel)

    def _finish(self, call: Call, answer: Answer, done: int) -> None:
        late = done - call.sent > self._setup.timeout_ns
        outcome = Outcome.TIMEOUT if late else answer.outcome
        self._record(call, outcome, done)
        if outcome:
            self._tell(outcome, self._too_late if late else answer.message)
            self._next_sample = 0
        elif call.kept is not None and call.keep:
            self._control.send(self._sample(call, answer, bytes(call.kept)))
        if call.channel is not None and call.channel.spoiled:
            self._connections.detach(call)
        self._next(call)

    def _sample(self, call: Call, answer: Answer, body: bytes) -> Sample:
        outputs, problem = None, ""
        try:
            outputs = self._connections.outputs(call)
        except OSError as error:
            problem = f"its outputs can't be read from shared memory ({_reason(error)})"
        return Sample(answer.header_length, body, answer.encoding, outputs, problem)

    def _broken(self, channel: Channel, error: OSError | None) -> None:
        if not channel.connected:
            self._close(channel, Outcome.NO_CONNECTION, _reason(error))
        else:
            self._close(channel, Outcome.CONNECTION_BROKE, _reason(error) if error else None)

    def _close(self, channel: Channel, outcome: Outcome, message: str | None) -> None:
        """Close a connection; what is in flight on it fails.  If that is nothing, another is opened when needed."""
        calls = [call for call in channel.calls if call.sent]
        self._connections.close(channel)
        for call in calls:
            self._fail(call, outcome, message or _ended(call))

    def _fail(self, call: Call, outcome: Outcome, message: str) -> None:
        self._record(call, outcome, _now())
        self._tell(outcome, message)
        if call.channel is not None:
            call.channel.spoiled = True
            self._connections.detach(call)
        if self._again:
            heapq.heappush(self._resting, (_now() + REST_NS, id(call), call))
        else:
            self._free.append(call)

    def _record(self, call: Call, outcome: int, done: int) -> None:
        finished, response, service, status = self._columns
        finished.append(done)
        response.append(done - call.due)
        service.append(done - call.sent)
        status.append(outcome | call.waited)
        if not outcome:
            self._receive_ns += done - call.first
        call.sent = 0
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


def _ended(call: Call) -> str:
    place = "in the middle of an answer" if call.first else "without an answer"
    return f"the server closed the connection {place}"


def main(fd: int) -> None:
    """Serve the parent's commands on the socket ``fd``: a Setup, then a Phase and its start time, again and again."""
    # A timer of Linux may be 50 us late to save wake-ups; a schedule of microseconds can't be.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.disable()  # nothing here makes cycles
    with Connection(fd) as control, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        engine = Engine(control.recv(), control)
        while True:
            command = control.recv()
            if isinstance(command, Phase):
                engine.prepare(command.loop.in_flight)
                control.send(Ready())
                start = control.recv()
                if isinstance(start, int):
                    engine.run(command, start)


if __name__ == "__main__":
    main(int(sys.argv[1]))
