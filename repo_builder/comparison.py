"""How far the outputs of an artifact are from the reference's, and how far they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from repo_builder.errors import UsageError
from repo_builder.model import DataType
from repo_builder.near_ties import settle

if TYPE_CHECKING:
    import numpy.typing as npt

MOST_STEPS = 2.5
"""That a quantised output may be off; 0.02 of the largest value is as many where that is 127 steps."""

LOOSEST = 0.1
"""Share of a value, and of the largest, that an output of few digits may be off: 26 unit roundoffs of BF16."""


@dataclass(frozen=True)
class Tolerance:
    """Elements agree where ``|actual - expected| <= atol + rtol * |expected|``, numpy.allclose's rule.

    ``atol`` None stands for ``scale`` times the largest finite magnitude in that output, so that outputs of any
    size are held to the same number of digits (an absolute 1e-3 would pass any softmax over 1000 classes).
    ``flips`` is the share of an output's integers or booleans that may differ: of an ArgMax, near ties fall either way
    when values are rounded.
    """

    rtol: float = 1e-3
    atol: float | None = None
    scale: float = 1e-4
    flips: float = 0.0

    def __post_init__(self) -> None:
        for flag, value in (("--rtol", self.rtol), ("--atol", self.atol)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{flag} {value} is not a tolerance", "a number of 0 or more")

    def allowed(self, expected: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """How far each element may be off: nothing where it is infinite or of no floating-point type."""
        import numpy as np

        if not is_float(expected):
            return np.zeros(expected.shape)
        limits = self._of_its_type(expected)
        size = _magnitudes(expected)
        atol = limits.scale * float(size.max(initial=0.0)) if limits.atol is None else limits.atol
        return np.where(np.isfinite(expected), atol + limits.rtol * size, 0.0)

    def for_step(self, step: float, expected: npt.NDArray[Any]) -> Tolerance:
        """Looser where ``expected`` is quantised, in steps of that size, to a range that it does not fill.

        What lies between two steps goes to either.  Of an ``atol`` that was given nothing changes.
        """
        if not step or self.atol is not None:
            return self
        largest = float(_magnitudes(expected).max(initial=0.0))
        return replace(self, atol=max(self._of_its_type(expected).scale * largest, MOST_STEPS * step))

    def _of_its_type(self, expected: npt.NDArray[Any]) -> Tolerance:
        types = {"float16": DataType.FP16, "bfloat16": DataType.BF16}
        return self.for_type(types.get(expected.dtype.name, DataType.FP32))

    def for_type(self, dtype: DataType) -> Tolerance:
        """Looser where the output's own type has fewer digits: FP16 has 11 bits of them, BF16 8."""
        digits = {DataType.FP16: 10, DataType.BF16: 80}.get(dtype, 1)
        rtol, scale = (max(share, min(share * digits, LOOSEST)) for share in (self.rtol, self.scale))
        return replace(self, rtol=rtol, scale=scale)


def _magnitudes(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of each element, as FP64; 0 where it is not finite."""
    import numpy as np

    values = array.astype(np.float64)
    magnitudes: npt.NDArray[Any] = np.abs(np.where(np.isfinite(values), values, 0.0))
    return magnitudes


@dataclass(frozen=True)
class OutputReport:
    """How far one output is from the reference, over all batches compared.

    ``max_relative_error`` is over elements larger than a thousandth of the largest; ``mismatched`` counts those
    outside the tolerance, ``flipped`` those that differ by near ties.  ``cosine_error`` is 1 minus the cosine between
    the two as vectors, ``top1_agreement`` the share of rows whose largest element is the same (None where there are no
    rows): the worst of all batches.
    """

    name: str
    max_absolute_error: float
    max_relative_error: float
    mismatched: int
    elements: int
    cosine_error: float = 0.0
    top1_agreement: float | None = None
    flipped: int = 0


def compare(name: str, actual: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: Tolerance) -> OutputReport:
    """Compare two arrays of one shape.  Strings must be equal, booleans and integers but for the tolerance's flips."""
    import numpy as np

    if not is_float(expected):
        different = int(np.count_nonzero(actual != expected))
        gap = 0.0
        if different and expected.dtype.kind in "iu":
            gap = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max())
        if expected.dtype.kind in "biu" and different <= tolerance.flips * expected.size:
            return OutputReport(name, gap, 0.0, 0, expected.size, flipped=different)
        return OutputReport(name, gap, 1.0 if different else 0.0, different, expected.size)
    want, got = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(want) & np.isfinite(got)
    largest = float(np.abs(want[finite]).max(initial=0.0))
    with np.errstate(over="ignore"):  # doubles as far apart as doubles go
        error = np.where(finite, np.abs(np.subtract(got, want, where=finite, out=np.zeros_like(want))), np.inf)
    error[~finite & ((got == want) | (np.isnan(got) & np.isnan(want)))] = 0.0
    mismatched = int(np.count_nonzero(error > tolerance.allowed(expected)))
    sizeable = finite & (np.abs(want) > 1e-3 * largest)
    with np.errstate(over="ignore"):
        relative = float((error[sizeable] / np.abs(want[sizeable])).max(initial=0.0))
    same = np.where(finite, got, 0.0), np.where(finite, want, 0.0)
    return OutputReport(
        name,
        float(error.max(initial=0.0)),
        relative,
        mismatched,
        expected.size,
        _cosine_error(*same),
        _top1_agreement(*same),
    )


def compare_chosen(
    name: str,
    actual: npt.NDArray[Any],
    expected: npt.NDArray[Any],
    ranking: tuple[npt.NDArray[Any], int],
    tolerance: Tolerance,
) -> OutputReport:
    """Compare what a choice by ``ranking`` came to, near ties settled; what they change counts as flipped."""
    import numpy as np

    settled = settle(actual, expected, ranking, tolerance)
    report = compare(name, actual, settled, tolerance)
    return replace(report, flipped=report.flipped + int(np.count_nonzero(settled != expected)))


def _cosine_error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """1 minus the cosine; 0 where both vectors are zero."""
    import numpy as np

    one, other = (values.ravel() / max(float(np.abs(values).max(initial=0.0)), 1e-300) for values in (actual, expected))
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    if not norms:
        return 0.0 if not (one.any() or other.any()) else 1.0
    return round(max(0.0, 1.0 - float(one @ other) / norms), 12)  # what is below is rounding


def _top1_agreement(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float | None:
    """The share of rows, along the last axis, with the same largest element."""
    if expected.ndim < 2 or expected.shape[-1] < 2 or not expected.size:
        return None
    return float((actual.argmax(-1) == expected.argmax(-1)).mean())


def is_float(array: npt.NDArray[Any]) -> bool:
    """Whether it is of a floating-point type, BF16 too."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def worse(one: OutputReport | None, other: OutputReport) -> OutputReport:
    """Both reports on one output as one: the worse figures of each."""
    if one is None:
        return other
    elements = one.elements + other.elements
    agreement = None
    if one.top1_agreement is not None and other.top1_agreement is not None:  # of all rows compared
        agreement = (one.top1_agreement * one.elements + other.top1_agreement * other.elements) / elements
    return OutputReport(
        one.name,
        max(one.max_absolute_error, other.max_absolute_error),
        max(one.max_relative_error, other.max_relative_error),
        one.mismatched + other.mismatched,
        elements,
        max(one.cosine_error, other.cosine_error),
        agreement,
        one.flipped + other.flipped,
    )
