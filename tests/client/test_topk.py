from __future__ import annotations

import numpy as np
import pytest

from client.errors import BadResponse
from client.topk import Classification, parse_classifications, top_k


def test_parse() -> None:
    elements = [b"0.913000:281:tabby, tabby cat", b"-3.5:0", b"nan:7:x"]
    first, second, third = parse_classifications(elements)
    assert first == Classification(281, 0.913, "tabby, tabby cat")
    assert second == Classification(0, -3.5, None)
    assert third.index == 7
    assert np.isnan(third.score)


def test_labels_may_have_colons_be_empty_or_no_utf8() -> None:
    parsed = parse_classifications([b"1:2:a:b:", b"1:3:", b"1:4:\xff"])
    assert [entry.label for entry in parsed] == ["a:b:", "", "\ufffd"]


@pytest.mark.parametrize("element", [b"", b"0.5", b"0.5:", b"x:1:label", b"0.5:one:label"])
def test_nonsense_is_a_bad_response(element: bytes) -> None:
    with pytest.raises(BadResponse, match="not a classification"):
        parse_classifications([element])


def test_top_k_is_best_first_and_equal_ones_by_index() -> None:
    best = top_k(np.array([0.1, 0.4, 0.4, -1.0, 0.2], np.float16), 4)
    assert [entry.index for entry in best] == [1, 2, 4, 0]
    assert best[0].score == pytest.approx(0.4, abs=1e-3)
    assert best[0].label is None


def test_top_k_of_few_of_nan_and_of_unsigned() -> None:
    assert [entry.index for entry in top_k(np.array([np.nan, 1.0, -np.inf]), 5)] == [1, 2, 0]
    assert [entry.index for entry in top_k(np.array([3, 200, 7], np.uint8), 2)] == [1, 2]
