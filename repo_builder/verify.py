"""The gate: an artifact's outputs against those of ONNX Runtime on the untouched source."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from repo_builder.errors import ModelError, UsageError, VerificationError
from repo_builder.model import DataType, ModelSpec
from repo_builder.runtime import RunError, Session
from repo_builder.samples import FREE_SIZES, Sampler, flags_for

if TYPE_CHECKING:
    import numpy.typing as npt

    from repo_builder.runtime import Arrays

Runner = Callable[["Arrays"], "Arrays"]

DISTINCT_ROWS = 8
"""A verification batch repeats this many different rows, so that a batch of 128 costs eight reference runs."""

MOST_ROWS, MOST_BYTES = 2**20, 2**31
"""Of a verification batch, its outputs included; Triton takes requests of up to 2 GiB."""


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

    def for_type(self, dtype: DataType) -> Tolerance:
        """Looser where the output's own type has fewer digits: FP16 has 11 bits of them, BF16 8."""
        digits = {DataType.FP16: 10, DataType.BF16: 80}.get(dtype, 1)
        return replace(self, rtol=self.rtol * digits, scale=self.scale * digits)


@dataclass(frozen=True)
class OutputReport:
    """How far one output is from the reference, over all batches compared.

    ``max_relative_error`` is over elements larger than a thousandth of the largest; ``mismatched`` counts those
    outside the tolerance, ``flipped`` integers and booleans that differ inside of it.  ``cosine_error`` is 1 minus the
    cosine between the two as vectors, ``top1_agreement`` the share of rows whose largest element is the same (None
    where there are no rows): the worst of all batches.
    """

    name: str
    max_absolute_error: float
    max_relative_error: float
    mismatched: int
    elements: int
    cosine_error: float = 0.0
    top1_agreement: float | None = None
    flipped: int = 0


@dataclass(frozen=True)
class Verification:
    """A passed gate."""

    batch_sizes: tuple[int, ...]
    rtol: float
    atol: float | None
    seed: int
    outputs: tuple[OutputReport, ...]

    def merged(self, other: Verification) -> Verification:
        """Both as one: the worse figures of each output."""
        theirs = {report.name: report for report in other.outputs}
        return replace(self, outputs=tuple(_worse(report, theirs[report.name]) for report in self.outputs))

    @property
    def hints(self) -> tuple[str, ...]:
        """A sentence on each output that had no elements to compare, or integers that differ."""
        empty = (
            f"output {report.name!r} was empty on all inputs, so none of its values were compared: "
            "--input NAME=FILE.npy with what fills it"
            for report in self.outputs
            if not report.elements
        )
        flipped = (
            f"{report.flipped} of the {report.elements} values of output {report.name!r} are not ONNX Runtime's: "
            "few enough to be near ties of an ArgMax or a threshold, which rounding decides"
            for report in self.outputs
            if report.flipped
        )
        return (*empty, *flipped)

    @property
    def worst(self) -> OutputReport:
        return max(self.outputs, key=lambda report: (report.mismatched, report.max_relative_error))


class Reference:
    """ONNX Runtime on the source: rows of inputs and, computed once each, the outputs they give.

    With ``batch_axis`` a row has 1 in the first axis of every input; without, row 0 is the whole of the inputs.

    Raises:
        ModelError: the source does not run on its inputs, gives NaN, or gives other results each time.
    """

    def __init__(self, spec: ModelSpec, session: Session, sampler: Sampler, *, batch_axis: bool) -> None:
        self.session = session
        self.batch_axis = batch_axis
        self._spec = spec
        self._sampler = sampler
        self._sizes, first = self._find_sizes()
        self._rows = {0: self._without_nan(first)}
        self._refuse_chance()

    @classmethod
    def open(cls, spec: ModelSpec, session: Session, sampler: Sampler) -> Reference:
        """With a batch axis where every input may have one and the source runs so, else without."""
        if sampler.inputs and all(tensor.dims[:1] in {(-1,), (1,)} for tensor in sampler.inputs):
            with contextlib.suppress(ModelError):
                return cls(spec, session, sampler, batch_axis=True)
        return cls(spec, session, sampler, batch_axis=False)

    def without_batch_axis(self) -> Reference:
        """The same source on inputs whose first axis is like any other."""
        return Reference(self._spec, self.session, self._sampler, batch_axis=False)

    @property
    def kind(self) -> str:
        """What messages call the inputs."""
        return self._sampler.kind

    def row(self, number: int) -> tuple[Arrays, Arrays]:
        """Inputs and expected outputs of row ``number``; raises ModelError when the source fails on it."""
        if number not in self._rows:
            try:
                self._rows[number] = self._without_nan(self._run(number, self._sizes))
            except RunError as error:
                raise self._failure(str(error)) from None
        return self._rows[number]

    def batch(self, size: int) -> tuple[Arrays, Arrays]:
        """``size`` rows stacked along the first axis, and the stack of what each gives alone.

        Raises:
            ModelError: the source fails on a row.
            VerificationError: the batch would be too large, or outputs of single rows do not fit together.
        """
        self.refuse_too_large(size)
        rows = [self.row(number % DISTINCT_ROWS) for number in range(size)]
        try:
            return _stack([inputs for inputs, _ in rows]), _stack([outputs for _, outputs in rows])
        except ValueError as error:
            raise VerificationError(
                f"the outputs of single rows do not make a batch: {error}", "serve it as it is: --no-batching"
            ) from None

    def refuse_too_large(self, size: int) -> None:
        """Raise VerificationError where ``size`` rows together are more than a server takes, or memory may hold."""
        bytes_of_batch = size * sum(array.nbytes for arrays in self.row(0) for array in arrays.values())
        if size > MOST_ROWS or bytes_of_batch > MOST_BYTES:
            raise VerificationError(
                f"a batch of {size} is too large to be verified: {bytes_of_batch / 1e9:.3g} GB of inputs and outputs",
                "choose a smaller --max-batch-size",
            )

    def telling_batch(self) -> int | None:
        """The size of the smallest batch whose rows are not all alike; None where the user's inputs allow none.

        Rows that are alike can't show whether they influence each other.
        """
        for number in range(1, DISTINCT_ROWS):
            inputs = self.row(number)[0]
            if any((array != inputs[name]).any() for name, array in self.row(0)[0].items()):
                return number + 1
        return None

    def _find_sizes(self) -> tuple[tuple[int, int], tuple[Arrays, Arrays]]:
        """The first sizes for free axes with which the source runs, and its row 0 then."""
        reasons = []
        for sizes in FREE_SIZES:
            try:
                return sizes, self._run(0, sizes)
            except RunError as error:
                reasons.append(str(error))
        raise self._failure(reasons[0])

    def _run(self, row: int, sizes: tuple[int, int]) -> tuple[Arrays, Arrays]:
        inputs = self._sampler.sample(row, sizes, batch_axis=self.batch_axis)
        return inputs, self.session.run(inputs)

    def _failure(self, reason: str) -> ModelError:
        return ModelError(
            f"{self.session.runner} can't run {self._spec.path} on {self._sampler.kind}: {reason}",
            f"give its inputs meaning: {flags_for(self._spec)}",
        )

    def _without_nan(self, row: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        import numpy as np

        inputs, outputs = (
            [name for name in arrays if _is_float(arrays[name]) and np.isnan(arrays[name]).any()] for arrays in row
        )
        if outputs and inputs:
            raise ModelError(
                f"output {outputs[0]!r} of {self._spec.path} is NaN, as is the file of input {inputs[0]!r}",
                f"--input {inputs[0]}=FILE.npy with numbers only",
            )
        if outputs:
            raise ModelError(
                f"output {outputs[0]!r} of {self._spec.path} is NaN under {self.session.runner} on "
                f"{self._sampler.kind}",
                f"give its inputs meaning: {flags_for(self._spec)}",
            )
        return row

    def _refuse_chance(self) -> None:
        outputs = self.row(0)[1]
        again = self._run(0, self._sizes)[1]
        for name, expected in outputs.items():
            if again[name].shape != expected.shape or compare(name, again[name], expected, Tolerance()).mismatched:
                raise ModelError(
                    f"output {name!r} of {self._spec.path} differs from run to run on the same inputs",
                    "the model draws random numbers, so nothing can be verified; --no-verify publishes it all the same",
                )


def _stack(rows: list[Arrays]) -> Arrays:
    import numpy as np

    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def verify(
    run: Runner, reference: Reference, batch_sizes: tuple[int, ...], tolerance: Tolerance, seed: int
) -> Verification:
    """Hold ``run`` to the reference at each of ``batch_sizes``; 0 stands for a model without a batch axis.

    Raises:
        VerificationError: an output is outside the tolerance; the worst one is named.
    """
    reports: dict[str, OutputReport] = {}
    for size in batch_sizes:
        inputs, expected = reference.batch(size) if size else reference.row(0)
        try:
            outputs = run(inputs)
        except RunError as error:
            why = f"the artifact does not run at batch size {size or 1}: {error}"
            raise VerificationError(why, "choose a smaller --max-batch-size, or --no-batching") from None
        for name, want in expected.items():
            if outputs[name].shape != want.shape:
                raise _shape_error(name, outputs[name].shape, want.shape, reference.session.runner, size)
            report = compare(name, outputs[name], want, tolerance)
            reports[name] = _worse(reports.get(name), report)
    result = Verification(batch_sizes, tolerance.rtol, tolerance.atol, seed, tuple(reports.values()))
    worst = result.worst
    if worst.mismatched:
        raise VerificationError(
            f"output {worst.name!r} is not what {reference.session.runner} computes from the source: "
            f"{worst.mismatched} of {worst.elements} elements differ, by up to {worst.max_absolute_error:.3g}",
            "if that is close enough for you, allow it with --rtol and --atol"
            if _is_float(reference.row(0)[1][worst.name])
            else "--rtol and --atol are for floating point; random inputs make near ties, which fall either way: "
            "--input NAME=FILE.npy with real ones, or add --no-verify",
        )
    return result


def sizes_to_verify(largest: int, *, batchable: bool) -> tuple[int, ...]:
    """One row and the largest batch; (0,) stands for a model without a batch axis."""
    if largest:
        return tuple(dict.fromkeys((1, largest)))
    return (1,) if batchable else (0,)


def _shape_error(
    name: str, actual: tuple[int, ...], expected: tuple[int, ...], runner: str, size: int
) -> VerificationError:
    return VerificationError(
        f"output {name!r} has shape {list(actual)} at batch size {size or 1}; {runner}'s from the source is "
        f"{list(expected)}",
        "if its first axis is no batch: --no-batching",
    )


def compare(name: str, actual: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: Tolerance) -> OutputReport:
    """Compare two arrays of one shape.  Strings must be equal, booleans and integers but for the tolerance's flips."""
    import numpy as np

    if not _is_float(expected):
        different = int(np.count_nonzero(actual != expected))
        gap = 0.0
        if different and expected.dtype.kind in "iu":
            gap = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max())
        if expected.dtype.kind in "biu" and different <= tolerance.flips * expected.size:
            return OutputReport(name, gap, 0.0, 0, expected.size, flipped=different)
        return OutputReport(name, gap, 1.0 if different else 0.0, different, expected.size)
    dtype = {"float16": DataType.FP16, "bfloat16": DataType.BF16}.get(expected.dtype.name, DataType.FP32)
    limits = tolerance.for_type(dtype)
    want, got = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(want) & np.isfinite(got)
    largest = float(np.abs(want[finite]).max(initial=0.0))
    atol = limits.scale * largest if limits.atol is None else limits.atol
    with np.errstate(over="ignore"):  # doubles as far apart as doubles go
        error = np.where(finite, np.abs(np.subtract(got, want, where=finite, out=np.zeros_like(want))), np.inf)
    error[~finite & ((got == want) | (np.isnan(got) & np.isnan(want)))] = 0.0
    mismatched = int(np.count_nonzero(error > atol + limits.rtol * np.where(finite, np.abs(want), 0.0)))
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


def _is_float(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _worse(one: OutputReport | None, other: OutputReport) -> OutputReport:
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
