"""HdrHistogram's layout and encoding, held to what the reference implementations make of the same values."""

from __future__ import annotations

import numpy as np
import pytest

from client import InputError
from client.load.histogram import BUCKETS, Counts, bucket_index, bucket_middle, decode, encode, quantile

# 1, 1, 5,000, 1,000,000 (three times) and 2,500,000,000, encoded by Python's hdrhistogram 0.10.
REFERENCE = "HISTFAAAACx4nJNpmSzMwMDAwwABzFCaEch0M9ixgMH+A1SAZb8x0+8qtu4tjEwAm4UIDQ=="
VALUES = [1, 1, 5_000, *[1_000_000] * 3, 2_500_000_000]


def counts_of(values: list[int]) -> Counts:
    return np.bincount(bucket_index(np.array(values, np.int64)), minlength=BUCKETS)


def test_every_value_is_within_a_thousandth_of_its_bucket() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([np.arange(5000), (10 ** generator.uniform(0, 12.5, 100_000)).astype(np.int64)])
    middles = bucket_middle(bucket_index(values))
    assert np.all(np.abs(middles - values) <= np.maximum(values * 0.0005, 0.5))
    assert np.all(np.diff(bucket_index(np.sort(values))) >= 0)


def test_reads_what_the_reference_wrote() -> None:
    assert (decode(REFERENCE) == counts_of(VALUES)).all()


def test_encoding_comes_back_and_adds_up() -> None:
    generator = np.random.default_rng(1)
    one, other = (counts_of(generator.lognormal(14, 1, 5000).astype(np.int64).tolist()) for _ in range(2))
    assert (decode(encode(one)) + decode(encode(other)) == one + other).all()
    assert not decode(encode(np.zeros(BUCKETS, np.int64))).any()


def test_counts_of_many_bytes_come_back() -> None:
    counts = np.zeros(BUCKETS, np.int64)
    counts[[0, 7, 30_000]] = [1, 2**62 - 1, 300]
    assert (decode(encode(counts)) == counts).all()


@pytest.mark.parametrize(("q", "rank"), [(0.0, 0), (0.5, 499), (0.99, 989), (0.999, 998), (1.0, 999)])
def test_quantile_is_the_nearest_rank(q: float, rank: int) -> None:
    values = list(range(1, 1001))
    assert quantile(counts_of(values), q) == values[rank]


def test_an_hour_is_the_end() -> None:
    assert bucket_index(np.array([10**15], np.int64))[0] == BUCKETS - 1


@pytest.mark.parametrize("text", ["", "!!!", "AAAA", "HISTFAAAAB4=", "HISTFAAAAAR4nAMAAAAAAQ=="])
def test_what_is_no_histogram_is_an_error(text: str) -> None:
    with pytest.raises(InputError):
        decode(text)
