"""HTTP/1.1: requests are whole before, an answer is one search for its head and a count of its body."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from client.load.answers import CHUNKED, Head, join_chunks, parse_head
from client.load.channel import BUFFER_BYTES, LONGEST_REFUSAL, Answer, Call, Channel, on_one_line
from client.load.descriptions import why_unsound
from client.load.records import Outcome


@dataclass(frozen=True)
class Kind:
    """Answers of one head: what they mean when nothing else is wrong, and the descriptions of tensors found sound."""

    head: Head
    answer: Answer
    sound: set[bytes] = field(default_factory=set)


Heads: TypeAlias = dict[bytes, Kind]
"""Heads seen before: most are the same."""

_MOST: Final = 1000
"""Heads, and descriptions under one: a proxy may put something of its own into each head, a model into each answer."""


class Http1Channel(Channel):
    """A connection that carries one HTTP/1.1 request at a time."""

    __slots__ = ("_heads", "_kind", "_missing")

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self._heads = heads
        self._kind: Kind | None = None
        self._missing = 0

    def begin(self, call: Call, request: memoryview) -> None:
        self.out = request
        self._kind = call.kept = None

    def take(self, buffer: bytearray, count: int, now: int) -> Sequence[tuple[Call, Answer]]:
        (call,) = self.calls
        if not call.sent:
            raise ValueError("bytes that nobody asked for")
        call.first = call.first or now
        body = 0
        if self._kind is None:
            body = buffer.find(b"\r\n\r\n", 0, count) + 4
            if body == 3:
                if count == BUFFER_BYTES:
                    raise ValueError("the answer's head is too long")
                self.rest = bytes(memoryview(buffer)[:count])
                return ()
            self._kind = self._read_head(bytes(memoryview(buffer)[:body]))
            self._missing = self._kind.head.length
            if call.keep or not _is_known(self._kind, buffer, body, count):
                call.kept = bytearray()
        answer = self._read_body(call, self._kind, buffer, body, count)
        return () if answer is None else ((call, answer),)

    def _read_head(self, text: bytes) -> Kind:
        known = self._heads.get(text)
        if known is None:
            head = parse_head(text)
            outcome = Outcome.OK if head.status == 200 else Outcome.of_http(head.status)
            known = Kind(head, Answer(outcome, "", head.header_length, head.encoding))
            _make_room(self._heads)
            self._heads[text] = known
        return known

    def _read_body(self, call: Call, kind: Kind, buffer: bytearray, start: int, end: int) -> Answer | None:
        head = kind.head
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
        if kind.answer.outcome:
            return Answer(kind.answer.outcome, f"HTTP {head.status}: {_reason(bytes(call.kept or b''))}")
        trouble = _trouble(kind, bytes(call.kept)) if call.kept is not None else ""
        return Answer(Outcome.NOT_UNDERSTOOD, trouble) if trouble else kind.answer


def _is_known(kind: Kind, buffer: bytearray, start: int, end: int) -> bool:
    """Whether the body's description of its tensors, here from ``start`` on, was found sound, or isn't to be read."""
    head = kind.head
    if head.status != 200 or head.length == CHUNKED:
        return False
    length = head.description_of(head.length)
    return not length or (start + length <= end and bytes(memoryview(buffer)[start : start + length]) in kind.sound)


def _trouble(kind: Kind, body: bytes) -> str:
    """What is wrong with a whole body; empty if nothing is, as far as it is to be read."""
    length = kind.head.description_of(len(body))
    description = body[:length]
    if not length or description in kind.sound:
        return ""
    trouble = why_unsound(description, len(body) - length)
    if not trouble:
        _make_room(kind.sound)
        kind.sound.add(description)
    return trouble


def _make_room(known: Heads | set[bytes]) -> None:
    if len(known) > _MOST:
        known.clear()


def _reason(body: bytes) -> str:
    """What a refusal says: Triton's ``{"error": ...}``, or the text of another's."""
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:LONGEST_REFUSAL].decode(errors="replace")
    return on_one_line(text)
