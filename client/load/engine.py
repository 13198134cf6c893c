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
import os
import select
import signal
import socket
import sys
import time
from array import array
from multiprocessing.connection import Connection
from typing import Final

from client.load.answers import CHUNKED, Head, join_chunks, parse_head
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
_BUFFER_BYTES: Final = 256 * 1024
_CONNECT_S: Final = 5.0
_PR_SET_TIMERSLACK: Final = 29

_now = time.perf_counter_ns


class _Channel:
    """A connection to the server, and the request that is on it while ``sent`` is not 0."""

    __slots__ = (
        "connected", "due", "first", "head", "kept", "missing", "open", "out", "sent", "socket", "waited", "writing",
    )  # fmt: skip

    socket: socket.socket

    def __init__(self) -> None:
        self.open = False  # there is a socket
        self.connected = False  # the server has accepted it
        self.writing = False  # epoll tells when it can take more
        self.out: memoryview | None = None  # what of the request is still to be sent
        self.head: Head | None = None
        self.kept: bytearray | None = None  # of the answer: a head that isn't complete, chunks, a sample
        self.missing = 0
        self.due = self.sent = self.first = self.waited = 0


class Engine:
    """Carries out phases and sends the records of their requests to the parent."""

    def __init__(self, setup: Setup, control: Connection) -> None:
        self._setup = setup
        self._control = control
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._channels: dict[int, _Channel] = {}
        self._free: list[_Channel] = []
        self._resting: list[tuple[int, int, _Channel]] = []
        self._requests = itertools.cycle([memoryview(request) for request in setup.requests])
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._heads: dict[bytes, Head] = {}
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
            self._close(self._free.pop())
        self._free += [_Channel() for _ in range(wanted - len(self._free))]
        for channel in self._free:
            if not channel.open:
                try:
                    self._connect(channel, blocking=True)
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
        self._control.send(PhaseEnd(self._send_ns, self._receive_ns, cpu, wall, len(self._channels), unsent))

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
        late = [channel for channel in self._channels.values() if 0 < channel.sent < oldest]
        for channel in late:
            self._fail(channel, Outcome.TIMEOUT, f"no answer within {self._setup.timeout_ns / 1e9:g} s")

    # A request

    def _take(self, most: int) -> _Channel | None:
        if self._free:
            return self._free.pop()
        return _Channel() if self._in_flight < most else None

    def _next(self, channel: _Channel) -> None:
        """Use a channel that is free again."""
        now = _now()
        if self._again and self._budget and now < self._end and not self._stopped:
            self._budget -= 1
            self._start(channel, now, 0)
        else:
            self._free.append(channel)

    def _start(self, channel: _Channel, due: int, waited: int) -> None:
        self._in_flight += 1
        channel.due, channel.waited = due, waited
        channel.first = channel.missing = 0
        channel.head = channel.kept = None
        channel.out = next(self._requests)
        channel.sent = _now()
        if channel.open:
            self._push(channel, channel.out)
            return
        try:
            self._connect(channel, blocking=False)
        except OSError as error:
            self._fail(channel, Outcome.NO_CONNECTION, _reason(error))

    def _push(self, channel: _Channel, out: memoryview) -> None:
        """Send as much as the socket takes; epoll tells when it takes more."""
        before = _now()
        try:
            count = channel.socket.send(out)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._broken(channel, error)
            return
        self._send_ns += _now() - before
        channel.connected = True
        left = count < len(out)
        channel.out = out[count:] if left else None
        if left is not channel.writing:
            channel.writing = left
            self._epoll.modify(channel.socket, select.EPOLLIN | (select.EPOLLOUT if left else 0))

    def _handle(self, fd: int, mask: int) -> None:
        channel = self._channels.get(fd)
        if channel is None:
            if fd == self._control.fileno():
                self._control.recv()  # EOFError: the parent is gone, and so is the reason to go on
                self._stopped = True
        elif channel.out is None or mask & select.EPOLLIN:
            self._receive(channel)
        else:
            self._push(channel, channel.out)

    def _receive(self, channel: _Channel) -> None:
        before = _now()
        try:
            count = channel.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(channel, error)
            return
        if not count or not channel.sent:
            self._broken(channel, None)
            return
        channel.first = channel.first or before
        try:
            head = self._complete(channel, count)
        except ValueError as error:
            self._fail(channel, Outcome.NOT_HTTP, str(error))
        else:
            if head is not None:
                self._finish(channel, head)

    def _complete(self, channel: _Channel, count: int) -> Head | None:
        """Take in ``count`` bytes of the buffer; the answer's head when they are its end."""
        head, body = channel.head, 0
        if head is None:
            if channel.kept is not None:  # the first part of a head came alone
                count = self._unread(channel.kept, count)
            body = self._buffer.find(b"\r\n\r\n", 0, count) + 4
            if body == 3:
                channel.kept = bytearray(self._view[:count])
                return None
            text = bytes(self._view[:body])
            head = self._heads.get(text)
            if head is None:
                head = parse_head(text)
                if len(self._heads) > 1000:  # a proxy may put something of its own into every head
                    self._heads.clear()
                self._heads[text] = head
            channel.head = head
            channel.missing = head.length
            keep = head.length == CHUNKED or head.status != 200 or channel.first >= self._next_sample
            channel.kept = bytearray() if keep else None
        if channel.kept is not None:
            channel.kept += self._view[body:count]
        if head.length == CHUNKED:
            whole = join_chunks(channel.kept or b"")
            if whole is None:
                return None
            channel.kept = bytearray(whole)
            return head
        channel.missing -= count - body
        if channel.missing < 0:
            raise ValueError("the answer is longer than it says")
        return None if channel.missing else head

    def _unread(self, kept: bytearray, count: int) -> int:
        """Put what came before in front of the buffer's ``count`` bytes, of which there may be fewer then."""
        whole = kept + self._view[:count]
        if len(whole) > _BUFFER_BYTES:
            raise ValueError("the answer's head is too long")
        self._view[: len(whole)] = whole
        return len(whole)

    def _finish(self, channel: _Channel, head: Head) -> None:
        """An answer is complete."""
        kept = channel.kept
        if head.status == 200:
            self._record(channel, Outcome.OK)
            if kept is not None and channel.first >= self._next_sample:
                self._next_sample = channel.first + _SAMPLE_NS
                self._control.send(Sample(head.header_length, bytes(kept)))
        else:
            outcome = Outcome.SERVER_ERROR if head.status >= 500 else Outcome.REFUSED
            self._record(channel, outcome)
            self._tell(outcome, f"HTTP {head.status}: {bytes(kept or b'')[:500].decode(errors='replace')}")
        if head.close or channel.out is not None:
            self._close(channel)
        self._next(channel)

    def _broken(self, channel: _Channel, error: OSError | None) -> None:
        if not channel.sent:
            self._close(channel)  # it was idle: another one is opened when it is needed
        elif not channel.connected:
            self._fail(channel, Outcome.NO_CONNECTION, _reason(error))
        elif error is not None:
            self._fail(channel, Outcome.CONNECTION_BROKE, _reason(error))
        else:
            place = "in the middle of an answer" if channel.first else "without an answer"
            self._fail(channel, Outcome.CONNECTION_BROKE, f"the server closed the connection {place}")

    def _fail(self, channel: _Channel, outcome: Outcome, message: str) -> None:
        self._record(channel, outcome)
        self._tell(outcome, message)
        self._close(channel)
        if self._again:
            heapq.heappush(self._resting, (_now() + REST_NS, id(channel), channel))
        else:
            self._free.append(channel)

    def _record(self, channel: _Channel, outcome: int) -> None:
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

    # A connection

    def _connect(self, channel: _Channel, *, blocking: bool) -> None:
        connection = socket.socket(self._setup.family, socket.SOCK_STREAM)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(_CONNECT_S if blocking else 0)
            with contextlib.suppress(BlockingIOError):
                connection.connect(self._setup.address)
            connection.setblocking(False)
        except BaseException:
            connection.close()
            raise
        channel.socket, channel.open = connection, True
        channel.connected, channel.writing = blocking, not blocking
        self._channels[connection.fileno()] = channel
        self._epoll.register(connection, select.EPOLLIN | (0 if blocking else select.EPOLLOUT))

    def _close(self, channel: _Channel) -> None:
        if channel.open:
            del self._channels[channel.socket.fileno()]
            channel.socket.close()
        channel.open, channel.out = False, None


def _reason(error: OSError | None) -> str:
    if error is None:
        return "the server closed the connection before it was used"
    return os.strerror(error.errno) if error.errno else str(error)


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
