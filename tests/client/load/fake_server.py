"""A fake of Triton's HTTP front end with scripted service times, stalls, refusals and deaths.

It is a process of its own, so that it answers on time whatever the tests do, and it times its answers like the
generator times its requests: select with microseconds, the last of them looking at the clock.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import select
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.client.load.child import running

MODEL = "fake"
OUTPUT = (
    b'{"model_name":"fake","outputs":'
    b'[{"name":"y","datatype":"FP32","shape":[1,1],"parameters":{"binary_data_size":4}}]}'
)
TENSORS = (("inputs", "x", 4), ("outputs", "y", 1))
SPIN_NS = 100_000


@dataclass(frozen=True)
class Script:
    """What the fake does; times are seconds, counted from its first inference."""

    delays_s: tuple[float, ...] = (0.0,)  # of one inference after the other, again from the start after the last
    stall: tuple[float, float] | None = None  # from, to: nothing is read or sent
    dead: tuple[float, float] | None = None  # from, to: no listener, connections are reset, counters start anew
    dies_at: float | None = None
    refuse_every: int = 0  # every so-manieth inference gets HTTP 400
    refused_succeed: bool = False  # and counts as a success, as Triton does with an error of the model
    fail_every: int = 0  # or 500
    silent_every: int = 0  # or no answer
    garbage_every: int = 0
    wrong_every: int = 0  # HTTP 200 with a body that is no inference answer
    chunked: bool = False
    close_after: bool = False  # HTTP/1.1 connection: close
    pieces: int = 1  # the answer is sent in so many pieces
    batches: tuple[int, ...] = (1,)  # sizes that the statistics claim, one execution after the other
    config: dict[str, Any] = field(default_factory=dict)  # merged over the model's
    certificate: str | None = None  # a PEM file with its key: TLS is spoken
    shared_memory: bool = True  # regions can be registered
    spins: bool = False  # looks for requests all the time, so that none waits for a wake-up: takes a whole CPU


@contextlib.contextmanager
def fake_server(script: Script | None = None) -> Iterator[str]:
    """The URL of a fake that lives as long as the block."""
    with running("tests.client.load.fake_server", asdict(script or Script())) as address:
        yield address


class _Fake:
    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        self.epoll = select.epoll()
        self.connections: dict[int, tuple[socket.socket, bytearray]] = {}
        # due, number, fd, when its request was read, pieces, close after
        self.answers: list[tuple[int, int, int, int, list[bytes], bool]] = []
        self.took: list[int] = []
        self.first = self.count = self.succeeded = self.failed = self.number = 0
        self.was_dead = False
        self.port = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if script["certificate"] else None
        if self.context is not None:
            self.context.load_cert_chain(script["certificate"])
        self.listen()

    def listen(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.epoll.register(self.listener, select.EPOLLIN)

    def run(self) -> None:
        print(self.port, flush=True)  # noqa: T201
        while True:
            self.misbehave()
            due = self.answers[0][0] if self.answers else time.perf_counter_ns() + 5_000_000
            for fd, _ in self.wait(min(due, time.perf_counter_ns() + 5_000_000)):
                if fd == self.listener.fileno():
                    self.accept()
                else:
                    self.read(fd)
            while self.answers and self.answers[0][0] <= time.perf_counter_ns():
                _, _, fd, read, pieces, close = heapq.heappop(self.answers)
                self.took.append(time.perf_counter_ns() - read)
                self.answer(fd, pieces, close)

    def wait(self, until: int) -> list[tuple[int, int]]:
        events = self.epoll.poll(0)
        while not events and (left := until - time.perf_counter_ns()) > 0:
            if left > SPIN_NS and not self.script["spins"]:
                select.select([self.epoll], [], [], (left - SPIN_NS) / 1e9)
            events = self.epoll.poll(0)
        return events

    def misbehave(self) -> None:
        if not self.first:
            return
        at = (time.perf_counter_ns() - self.first) / 1e9
        if self.script["dies_at"] is not None and at >= self.script["dies_at"]:
            sys.exit(0)
        if (stall := self.script["stall"]) and stall[0] <= at < stall[1]:
            time.sleep(stall[1] - at)
        if (dead := self.script["dead"]) and not self.was_dead and at >= dead[0]:
            self.was_dead = True
            self.listener.close()
            for fd in list(self.connections):
                self.close(fd)
            self.answers.clear()
            time.sleep(dead[1] - at)
            self.succeeded = self.failed = 0
            self.listen()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[connection.fileno()] = (connection, bytearray())
            self.epoll.register(connection, select.EPOLLIN)

    def close(self, fd: int) -> None:
        if fd in self.connections:
            self.connections.pop(fd)[0].close()

    def read(self, fd: int) -> None:
        connection, data = self.connections[fd]
        try:
            received = connection.recv(1 << 20)
        except OSError:
            received = b""
        now = time.perf_counter_ns()
        if not received:
            self.close(fd)
            return
        data += received
        end = data.find(b"\r\n\r\n") + 4
        if end == 3:
            return
        head = bytes(data[:end]).decode()
        length = next((int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
        if len(data) < end + length:
            return
        path = head.split(" ")[1]
        del data[: end + length]
        if path.endswith("/infer"):
            self.infer(fd, now)
        elif path.startswith("/v2/systemsharedmemory") and not self.script["shared_memory"]:
            self.answer(fd, [self.http(400, b'{"error":"Unable to open shared memory region: \'x\'"}')], False)
        else:
            self.answer(fd, [self.http(200, json.dumps(self.resource(path)).encode())], False)

    def infer(self, fd: int, now: int) -> None:
        self.first = self.first or now
        self.count += 1
        script = self.script
        due = now + int(script["delays_s"][(self.count - 1) % len(script["delays_s"])] * 1e9)
        chosen = next((k for k in ("refuse", "fail", "silent", "garbage", "wrong") if self.is_turn(k)), None)
        if chosen == "silent":
            return
        failed = chosen == "fail" or (chosen == "refuse" and not script["refused_succeed"])
        self.failed += failed
        self.succeeded += not failed
        head = f"Inference-Header-Content-Length: {len(OUTPUT)}\r\n"
        answers = {
            "refuse": self.http(400, b'{"error":"refused by the script"}'),
            "fail": self.http(500, b'{"error":"failed by the script"}'),
            "garbage": b"220 mail.example.com ESMTP\r\n\r\n",
            "wrong": self.http(200, b"nonsense"),
            None: self.http(200, OUTPUT + b"\0\0\x80\x3f", head),
        }
        answer = answers[chosen]
        step = -(-len(answer) // script["pieces"])
        pieces = [answer[at : at + step] for at in range(0, len(answer), step)]
        self.number += 1
        heapq.heappush(self.answers, (due, self.number, fd, now, pieces, script["close_after"]))

    def is_turn(self, kind: str) -> bool:
        every = self.script[f"{kind}_every"]
        return bool(every) and self.count % every == 0

    def answer(self, fd: int, pieces: list[bytes], close: bool) -> None:
        if fd not in self.connections:
            return
        with contextlib.suppress(OSError):
            for index, piece in enumerate(pieces):
                if index:
                    time.sleep(0.002)
                self.connections[fd][0].sendall(piece)
        if close:
            self.close(fd)

    def http(self, status: int, body: bytes, head: str = "") -> bytes:
        close = "Connection: close\r\n" if self.script["close_after"] and self.first else ""
        if self.script["chunked"]:
            half = len(body) // 2
            chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part)
            coded = f"HTTP/1.1 {status} X\r\n{head}{close}Transfer-Encoding: chunked\r\n\r\n".encode()
            return coded + chunks + b"0\r\n\r\n"
        return f"HTTP/1.1 {status} X\r\n{head}{close}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def resource(self, path: str) -> Any:
        if path == "/took":  # nanoseconds from request read to answer sent, of every inference
            return self.took
        if path == "/v2":
            return {"name": "fake", "version": "0"}
        if path.endswith("/index"):
            return [{"name": MODEL, "version": "1", "state": "READY"}]
        if path.endswith("/config"):
            config = {
                "name": MODEL,
                "platform": "fake",
                "max_batch_size": 8,
                "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
                "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
                "dynamic_batching": {},
                "instance_group": [{"count": 1}],
            }
            return {**config, **self.script["config"]}
        if path.endswith("/stats"):
            return self.statistics()
        tensors = {name: [{"name": key, "datatype": "FP32", "shape": [-1, size]}] for name, key, size in TENSORS}
        return {"name": MODEL, "versions": ["1"], "platform": "fake", **tensors}

    def statistics(self) -> Any:
        sizes: dict[int, int] = {}
        left, turn = self.succeeded, 0
        while left > 0:
            size = self.script["batches"][turn % len(self.script["batches"])]
            sizes[size] = sizes.get(size, 0) + 1
            left, turn = left - size, turn + 1

        def spent(count: int, ns: int) -> dict[str, int]:
            return {"count": count, "ns": count * ns}

        stats = {"success": spent(self.succeeded, 400_000), "fail": spent(self.failed, 0)}
        stats["queue"] = spent(self.succeeded, 100_000)
        stages = {"compute_input": 10_000, "compute_infer": 200_000, "compute_output": 20_000}
        stats |= {name: spent(self.succeeded, ns) for name, ns in stages.items()}
        batches = [
            {"batch_size": size, **{name: spent(count, ns) for name, ns in stages.items()}}
            for size, count in sizes.items()
        ]
        return {
            "model_stats": [
                {
                    "name": MODEL,
                    "version": "1",
                    "inference_count": sum(size * count for size, count in sizes.items()),
                    "execution_count": sum(sizes.values()),
                    "inference_stats": stats,
                    "batch_stats": batches,
                }
            ]
        }


if __name__ == "__main__":
    _Fake(json.loads(sys.argv[1])).run()
