from __future__ import annotations

import pytest

from client.load.answers import CHUNKED, Head, join_chunks, parse_head


def test_tritons_head() -> None:
    head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 71\r\nContent-Length: 83\r\n\r\n"
    assert parse_head(head) == Head(200, 83, 71, close=False)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 503 Gone\r\ncontent-length:0\r\n\r\n", Head(503, 0, -1, close=False)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Head(200, CHUNKED, -1, close=False)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Head(200, 5, -1, close=True)),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 5\r\n\r\n", Head(200, 5, -1, close=True)),
        (b"HTTP/1.1 204 Nothing\r\n\r\n", Head(204, 0, -1, close=False)),
    ],
)
def test_heads(head: bytes, expected: Head) -> None:
    assert parse_head(head) == expected


@pytest.mark.parametrize(
    "head",
    [
        b"220 smtp\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
    ],
)
def test_heads_whose_end_is_unknown(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"answer|int"):
        parse_head(head)


def test_chunks_are_joined_when_the_last_one_is_there() -> None:
    whole = b"5\r\nhello\r\n3;name=value\r\n0\r\n\r\n0\r\nTrailer: x\r\n\r\n"
    assert join_chunks(whole) == b"hello0\r\n"
    assert all(join_chunks(whole[:end]) is None for end in range(len(whole) - 2))
