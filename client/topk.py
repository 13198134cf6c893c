"""The best classes of a classifier's output, from Triton's classification extension or from raw scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from client.errors import BadResponse
from client.tensors import Array


@dataclass(frozen=True)
class Classification:
    """One class of an answer: its index, its score as the model gives it, and its label if there is one."""

    index: int
    score: float
    label: str | None = None


def parse_classifications(elements: Iterable[bytes]) -> list[Classification]:
    """Read the strings ``value:index[:label]`` of Triton's classification extension; labels may have colons."""
    return [_parse(element) for element in elements]


def top_k(scores: Array, k: int) -> list[Classification]:
    """The ``k`` highest of ``scores`` (1-D), best first, equal ones by index, NaN last."""
    keys = scores.astype(np.float64)
    best = np.argsort(-keys, kind="stable")[:k]
    return [Classification(int(index), float(keys[index])) for index in best]


def _parse(element: bytes) -> Classification:
    value, _, rest = element.decode(errors="replace").partition(":")
    index, colon, label = rest.partition(":")
    try:
        return Classification(int(index), float(value), label if colon else None)
    except ValueError:
        raise BadResponse(f"{element!r} is not a classification, value:index[:label]") from None
