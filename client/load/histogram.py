"""HdrHistogram: counts of nanoseconds in buckets whose width grows with the value, and its published encoding.

Values up to 2047 are counted exactly, larger ones to three significant digits: 1024 buckets for each doubling.
The encoding is version 2 of the format that HdrHistogram's implementations share, compressed and in base64
(https://github.com/HdrHistogram/HdrHistogram, EncodableHistogram and AbstractHistogram), so that other tools
can read, merge and plot what is in a result.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

from client.errors import InputError

Counts = npt.NDArray[np.int64]

SIGNIFICANT_DIGITS: Final = 3
HIGHEST_NS: Final = 3_600_000_000_000
"""One hour; longer ones are counted in the last bucket."""

WRITTEN_BY_BENCH: Final = "those that python -m client.bench writes can be read"

_HALF_BITS: Final = 10
_HALF: Final = 1 << _HALF_BITS
_COOKIE: Final = 0x1C849303 | 0x10
_COMPRESSED_COOKIE: Final = 0x1C849304 | 0x10
_HEADER: Final = struct.Struct(">iiiiqqd")


def bucket_index(values: npt.NDArray[np.int64]) -> Counts:
    """The bucket of each value in nanoseconds."""
    clipped = np.clip(values, 0, HIGHEST_NS)
    # frexp's exponent is the number of bits; exact, as float64 holds integers up to 2**53.
    shift = np.maximum(np.frexp(clipped.astype(np.float64))[1].astype(np.int64) - (_HALF_BITS + 1), 0)
    index: Counts = shift * _HALF + (clipped >> shift)
    return index


def bucket_middle(indices: Counts) -> npt.NDArray[np.float64]:
    """The value in nanoseconds that stands for each bucket: its middle, at most 0.05% off."""
    shift = np.maximum((indices >> _HALF_BITS) - 1, 0)
    low = (indices - shift * _HALF) << shift
    middle: npt.NDArray[np.float64] = low + ((np.int64(1) << shift) - 1) / 2
    return middle


BUCKETS: Final = int(bucket_index(np.array([HIGHEST_NS], np.int64))[0]) + 1


def encode(counts: Counts) -> str:
    """Counts of the first buckets in HdrHistogram's V2 encoding, compressed, in base64."""
    used = counts[: int(np.flatnonzero(counts).max(initial=-1)) + 1]
    payload = bytearray()
    zeros = 0
    for count in used.tolist():
        if count == 0:
            zeros += 1
            continue
        if zeros:
            payload += _zigzag(-zeros)
            zeros = 0
        payload += _zigzag(count)
    header = _HEADER.pack(_COOKIE, len(payload), 0, SIGNIFICANT_DIGITS, 1, HIGHEST_NS, 1.0)
    compressed = zlib.compress(header + payload)
    return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(compressed)) + compressed).decode()


def decode(text: str) -> Counts:
    """Counts from :func:`encode`'s text; :class:`InputError` if it is no such histogram of this layout."""
    try:
        data = base64.b64decode(text, validate=True)
        cookie, length = struct.unpack_from(">ii", data)
        raw = zlib.decompress(data[8 : 8 + length])
        inner, size, _, digits, lowest, _, _ = _HEADER.unpack_from(raw)
        if (cookie, inner, digits, lowest) != (_COMPRESSED_COOKIE, _COOKIE, SIGNIFICANT_DIGITS, 1):
            raise InputError("the histogram has another layout: 3 digits from 1 ns are read", WRITTEN_BY_BENCH)
        return _read_counts(raw[_HEADER.size : _HEADER.size + size])
    except (binascii.Error, struct.error, zlib.error, IndexError, ValueError) as error:
        raise InputError(f"the histogram can't be read: {error}", WRITTEN_BY_BENCH) from None


def quantile(counts: Counts, q: float) -> float:
    """Nearest-rank quantile in nanoseconds of a histogram that isn't empty."""
    cumulative = np.cumsum(counts)
    rank = max(1, int(np.ceil(q * cumulative[-1])))
    index = np.searchsorted(cumulative, rank)
    return float(bucket_middle(np.array([index], np.int64))[0])


def _read_counts(payload: bytes) -> Counts:
    counts = np.zeros(BUCKETS, np.int64)
    at = index = 0
    while at < len(payload):
        value = shift = 0
        # LEB128, 7 bits a byte; a ninth byte has 8.
        while True:
            byte = payload[at]
            at += 1
            if shift == 56:
                value |= byte << shift
                break
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        number = (value >> 1) ^ -(value & 1)
        if number < 0:
            index -= number
        else:
            counts[index] = number
            index += 1
    return counts


def _zigzag(number: int) -> bytes:
    value = (number << 1) ^ (number >> 63)
    out = bytearray()
    while value >= 0x80 and len(out) < 8:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
