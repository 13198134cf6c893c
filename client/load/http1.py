"""HTTP/1.1: requests are whole before, an answer is one search for its head and a count of its body."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, TypeAlias

from client.load.answers import CHUNKED, Head, join_chunks, parse_head
from client.load.channel import BUFFER_BYTES, LONGEST_REFUSAL, Answer, Call, Channel
from client.load.records import Outcome
from client.text import shortened

Heads: TypeAlias = dict[bytes, tuple[Head, Answer]]
"""Heads seen before, and what they mean when nothing else is wrong: most are the same."""

_MOST_HEADS: Final = 1000


class Http1Channel(Channel):
    """A connection that carries one HTTP/1.1 request at a time."""

    __slots__ = ("_head", "_heads", "_missing")

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self._heads = heads
        self._head: tuple[Head, Answer] | None = None
        self._missing = 0

    def begin(self, call: Call, request: memoryview) -> None:
        self.out = request
        self._head = call.kept = None

    def take(self, buffer: bytearray, count: int, now: int) -> Sequence[tuple[Call, Answer]]:
        (call,) = self.calls
        if not call.sent:
            raise ValueError("bytes that nobody asked for")
        call.first = call.first or now
        body = 0
        if self._head is None:
            body = buffer.find(b"\r\n\r\n", 0, count) + 4
            if body == 3:
                if count == BUFFER_BYTES:
                    raise ValueError("the answer's head is too long")
                self.rest = bytes(memoryview(buffer)[:count])
                return ()
            self._read_head(call, bytes(memoryview(buffer)[:body]))
        answer = self._read_body(call, buffer, body, count)
        return () if answer is None else ((call, answer),)

    def _read_head(self, call: Call, text: bytes) -> None:
        known = self._heads.get(text)
        if known is None:
            head = parse_head(text)
            outcome = Outcome.OK if head.status == 200 else Outcome.of_http(head.status)
            known = head, Answer(outcome, "", head.header_length, head.encoding)
            if len(self._heads) > _MOST_HEADS:  # a proxy may put something of its own into every head
                self._heads.clear()
            self._heads[text] = known
        self._head = known
        head = known[0]
        self._missing = head.length
        call.kept = bytearray() if call.keep or head.length == CHUNKED or head.status != 200 else None

    def _read_body(self, call: Call, buffer: bytearray, start: int, end: int) -> Answer | None:
        head, answer = self._head  # type: ignore[misc]  # take() has just read it
        if call.kept is not None:
            call.kept += memoryview(buffer)[start:end]
        if head.length == CHUNKED:
            whole = join_chunks(call.kept or b"")
            if whole is None:
                return None
            call.kept = bytearray(whole)
        else:
            self._missing -= end - start
            if self._missing < 0:
                raise ValueError("the answer is longer than it says")
            if self._missing:
                return None
        # An answer to half a request, such as "too large", leaves the other half on the way.
        self.spoiled = head.close or self.out is not None
        if answer.outcome:
            return Answer(answer.outcome, f"HTTP {head.status}: {_reason(bytes(call.kept or b''))}")
        return answer


def _reason(body: bytes) -> str:
    """What a refusal says: Triton's ``{"error": ...}``, or the text of another's."""
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:LONGEST_REFUSAL].decode(errors="replace")
    return shortened(" ".join(text.split()), LONGEST_REFUSAL)
