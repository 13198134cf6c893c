"""The gate: an artifact's outputs against those of ONNX Runtime on the untouched source."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from repo_builder.comparison import OutputReport, Tolerance, compare, compare_chosen, is_float, worse
from repo_builder.errors import ModelError, VerificationError
from repo_builder.model import ModelSpec
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

MOST_ROUNDING = 1e-2
"""A cosine error that rounding stays far below: networks in INT8 had 2e-5 on an H100, in FP16 1e-6."""


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
        return replace(self, outputs=tuple(worse(report, theirs[report.name]) for report in self.outputs))

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
            "near ties of an ArgMax, a TopK or a threshold, which rounding decides"
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

    def ranking(self, output: str, size: int) -> tuple[npt.NDArray[Any], int] | None:
        """What the rows of ``output`` in a batch of ``size`` were chosen by, as :meth:`Choice.ranking` gives it."""
        choice = self.session.choices.get(output)
        if choice is None or not choice.scores:
            return None
        wanted = (tensor for tensor in self.session.rankings if tensor.name in {choice.scores, choice.best})
        session = replace(self.session, outputs=tuple(wanted))
        rows = [session.run(self.row(number)[0]) for number in range(min(size or 1, DISTINCT_ROWS))]
        with contextlib.suppress(ValueError):  # each may rank another number of them
            return choice.ranking(_stack([rows[number % DISTINCT_ROWS] for number in range(size or 1)]))
        return None

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
            [name for name in arrays if is_float(arrays[name]) and np.isnan(arrays[name]).any()] for arrays in row
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
                raise VerificationError(
                    f"output {name!r} has shape {list(outputs[name].shape)} at batch size {size or 1}; "
                    f"{reference.session.runner}'s from the source is {list(want.shape)}",
                    _hint(reference, name)
                    if name in reference.session.choices
                    else "if its first axis is no batch: --no-batching",
                )
            limits = tolerance.for_step(reference.session.steps.get(name, 0.0), want)
            report = compare(name, outputs[name], want, limits)
            if report.mismatched and (ranking := reference.ranking(name, size)):
                report = compare_chosen(name, outputs[name], want, ranking, limits)
            reports[name] = worse(reports.get(name), report)
    result = Verification(batch_sizes, tolerance.rtol, tolerance.atol, seed, tuple(reports.values()))
    worst = result.worst
    if worst.mismatched:
        raise VerificationError(
            f"output {worst.name!r} is not what {reference.session.runner} computes from the source: "
            f"{worst.mismatched} of {worst.elements} elements differ, by up to "
            f"{worst.max_absolute_error:.3g}{_likeness(worst)}",
            _hint(reference, worst.name, worst.cosine_error),
        )
    return result


def _likeness(report: OutputReport) -> str:
    """Figures that tell a number of another rounding from another number; none of integers."""
    if not report.cosine_error:
        return ""
    top1 = "" if report.top1_agreement is None else f", same top-1 in {report.top1_agreement:.0%}"
    return f" (cosine error {report.cosine_error:.1e}{top1})"


def sizes_to_verify(largest: int, *, batchable: bool) -> tuple[int, ...]:
    """One row and the largest batch; (0,) stands for a model without a batch axis."""
    if largest:
        return tuple(dict.fromkeys((1, largest)))
    return (1,) if batchable else (0,)


def _hint(reference: Reference, output: str, cosine_error: float = 0.0) -> str:
    """The mend where ``output`` is outside the tolerance."""
    if choice := reference.session.choices.get(output):
        return (
            f"{choice.node} chooses what comes out there, and rounding decides near ties, of which random inputs make "
            "many: --input NAME=FILE.npy with real ones, --rtol and --atol for what is near, or --no-verify; "
            "or export the model without that node and what follows it"
        )
    if cosine_error > MOST_ROUNDING:
        return (
            "rounding rarely comes to that: something else was computed, which another precision or version of the "
            "compiler may mend; --rtol and --atol allow it all the same"
        )
    if is_float(reference.row(0)[1][output]):
        return "if that is close enough for you, allow it with --rtol and --atol"
    return (
        "--rtol and --atol are for floating point; random inputs make near ties, which fall either way: "
        "--input NAME=FILE.npy with real ones, or add --no-verify"
    )
