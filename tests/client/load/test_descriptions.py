from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from client.load.descriptions import MESSAGE_PREFIX, SoundMessages, why_unsound


def described(*sizes: int | None) -> bytes:
    """The JSON part of an answer whose outputs have so many bytes; None: in shared memory."""
    outputs = [
        {"name": f"y{number}", "parameters": {} if size is None else {"binary_data_size": size}}
        for number, size in enumerate(sizes)
    ]
    return json.dumps({"outputs": outputs}).encode()


@pytest.mark.parametrize(("sizes", "rest"), [((4,), 4), ((4, 0, 8), 12), ((None,), 0)])
def test_json_that_fits_what_is_behind_it(sizes: tuple[int | None, ...], rest: int) -> None:
    assert not why_unsound(described(*sizes), rest)


@pytest.mark.parametrize(
    ("description", "rest", "why"),
    [
        (b"", 0, "can't be read"),
        (b"nonsense", 0, "can't be read"),
        (b"\xff", 0, "can't be read"),
        (b"[]", 0, "can't be read"),
        (b'{"error": "none"}', 0, "can't be read"),
        (b'{"outputs": [{}]}', 0, "can't be read"),
        (b'{"outputs": [{"name": "y", "parameters": {"binary_data_size": "4"}}]}', 4, "can't be read"),
        (described(4), 3, "3 bytes of tensors, and 4 by its description"),
        (described(4), 0, "0 bytes of tensors, and 4 by its description"),
    ],
)
def test_json_that_does_not(description: bytes, rest: int, why: str) -> None:
    assert why in why_unsound(description, rest)


def message(contents: list[bytes], **fields: Any) -> bytes:
    outputs = [{"name": f"y{number}", "datatype": "UINT8", "shape": [300]} for number in range(2)]
    found: bytes = service_pb2.ModelInferResponse(
        **{"model_name": "net", "outputs": outputs, "raw_output_contents": contents, **fields}
    ).SerializeToString()
    return found


WHOLE = message([b"a" * 300, b"b" * 300])


def like(known: SoundMessages, body: bytes) -> bool:
    return known.like(memoryview(MESSAGE_PREFIX.pack(0, len(body)) + body[:100]))


def test_messages_are_known_by_size_and_description() -> None:
    known = SoundMessages()
    assert not like(known, WHOLE)
    known.learn(WHOLE)
    assert like(known, WHOLE)
    assert like(known, message([b"c" * 300, b"d" * 300]))
    assert not like(known, message([b"c" * 300, b"d" * 299]))
    assert not like(known, message([b"c" * 300, b"d" * 300], model_name="ten"))
    assert not known.like(memoryview(b"\0\0"))


def test_messages_whose_contents_are_in_shared_memory() -> None:
    known = SoundMessages()
    known.learn(message([]))
    assert like(known, message([]))


@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense", WHOLE[:-1], WHOLE + b"\x80", message([b"one"]), message([], outputs=[]), b"\x0a", b"\x08\1"],
)
def test_messages_that_are_none(body: bytes) -> None:
    with pytest.raises(ValueError, match="no inference answer"):
        SoundMessages().learn(body)
