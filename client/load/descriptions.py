"""What an answer says of its tensors, read by workers in every answer that isn't like one before.

It is the part in front of the tensors' contents: names, types, shapes, sizes.  Contents are looked at in samples
(:mod:`client.load.check`).
"""

from __future__ import annotations

import json
from struct import Struct
from typing import Final

MESSAGE_PREFIX: Final = Struct(">BI")
"""In front of a gRPC message: whether it is compressed, its length."""

_OUTPUTS, _CONTENTS = 5, 6
"""Fields of ModelInferResponse, as Triton's grpc_service.proto numbers them."""

_LENGTH_DELIMITED: Final = 2
"""The wire type of all its fields (https://protobuf.dev/programming-guides/encoding)."""


def why_unsound(description: bytes, rest: int) -> str:
    """Why no answer begins with this JSON, with ``rest`` bytes of contents behind it; empty if one can."""
    try:
        outputs = json.loads(description)["outputs"]
        told = sum(output.get("parameters", {}).get("binary_data_size", 0) for output in outputs if output["name"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"the server's answer can't be read: {error!r}"
    return "" if told == rest else f"the server's answer has {rest} bytes of tensors, and {told} by its description"


class SoundMessages:
    """The ModelInferResponses of a gRPC server that were found sound: of each size the last one's description."""

    def __init__(self) -> None:
        self._descriptions: dict[int, bytes] = {}

    def like(self, beginning: memoryview) -> bool:
        """Whether what a message and its prefix begin with is as in one that was sound."""
        size = MESSAGE_PREFIX.size
        if len(beginning) < size:
            return False
        known = self._descriptions.get(MESSAGE_PREFIX.unpack_from(beginning)[1])
        return known is not None and bytes(beginning[size : size + len(known)]) == known

    def learn(self, message: bytes) -> None:
        """Take a whole message, without its prefix, as an example; ValueError if it isn't sound."""
        self._descriptions[len(message)] = message[: _contents_begin(message)]


def _contents_begin(message: bytes) -> int:
    at, begin, outputs, contents = 0, len(message), 0, 0
    while at < len(message):
        key, after = _varint(message, at)
        if key & 7 != _LENGTH_DELIMITED:
            raise ValueError("the answer is no inference answer")
        size, start = _varint(message, after)
        if key >> 3 == _OUTPUTS:
            outputs += 1
        elif key >> 3 == _CONTENTS:
            contents, begin = contents + 1, min(begin, at)
        at = start + size
    if at > len(message) or not outputs or contents not in {0, outputs}:  # 0: they are in shared memory
        raise ValueError("the answer is no inference answer")
    return begin


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends."""
    value = shift = 0
    while at < len(message):
        value |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("the answer is no inference answer")
