"""The gate: what passes, what does not, and what is said of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repo_builder.comparison import Tolerance, compare
from repo_builder.errors import ModelError, UsageError, VerificationError
from repo_builder.model import DataType
from repo_builder.onnx_model import read_model
from repo_builder.runtime import RunError, open_session
from repo_builder.samples import SampleOptions, Sampler, index_ranges
from repo_builder.verify import MOST_BYTES, Reference, Verification, verify
from tests import models
from tests.models import FP32, INT64, identity, linear, model, node, save, two_outputs

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def reference(proto: onnx.ModelProto, folder: Path, samples: SampleOptions | None = None) -> Reference:
    spec = read_model(save(proto, folder / "net.onnx")).spec
    return Reference.open(
        spec, open_session(spec.path), Sampler(spec.inputs, samples or SampleOptions(), index_ranges(proto))
    )


def mismatched(actual: Array, expected: Array, tolerance: Tolerance | None = None) -> int:
    return compare("y", actual, expected, tolerance or Tolerance()).mismatched


class TestCompare:
    def test_equal(self) -> None:
        report = compare("y", np.ones(3), np.ones(3), Tolerance(rtol=0, atol=0))

        assert (report.mismatched, report.max_absolute_error, report.max_relative_error) == (0, 0, 0)
        assert (report.name, report.elements) == ("y", 3)

    def test_figures(self) -> None:
        report = compare("y", np.array([1.5, 2, 4]), np.array([1.0, 2, 8]), Tolerance(rtol=0.5, atol=0))

        assert report.mismatched == 0
        assert report.max_absolute_error == 4
        assert report.max_relative_error == 0.5

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_default_tolerance_is_relative_to_the_outputs_own_size(self, scale: float) -> None:
        expected = np.array([1.0, 0.0]) * scale

        assert mismatched(expected + np.array([0, 0.9e-4 * scale]), expected) == 0
        assert mismatched(expected + np.array([0, 1.1e-4 * scale]), expected) == 1

    def test_small_probabilities_are_held_to_their_size(self) -> None:
        """An absolute 1e-3 would let any softmax over 1000 classes pass."""
        expected = np.full(1000, 1e-3)

        assert mismatched(np.zeros(1000), expected) == 1000

    def test_given_atol_is_absolute(self) -> None:
        expected = np.array([1e6, 0.0])

        assert mismatched(expected + np.array([0, 0.1]), expected, Tolerance(rtol=0, atol=0.1)) == 0
        assert mismatched(expected + np.array([0, 0.2]), expected, Tolerance(rtol=0, atol=0.1)) == 1

    @pytest.mark.parametrize(
        ("dtype", "step"),
        [(np.float16, 2**-10), (ml_dtypes.bfloat16, 2**-7), (np.float32, 2**-11), (np.float64, 2**-11)],
        ids=["fp16", "bf16", "fp32", "fp64"],
    )
    def test_types_of_few_digits_may_differ_in_their_last(self, dtype: npt.DTypeLike, step: float) -> None:
        one = np.ones(1, dtype)

        assert mismatched((one + dtype(step)).astype(dtype), one) == 0  # type: ignore[operator,misc]
        assert mismatched((one * dtype(1.9)).astype(dtype), one) == 1  # type: ignore[operator,misc]

    @pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, bool])
    def test_whole_numbers_are_equal_or_not(self, dtype: npt.DTypeLike) -> None:
        expected, actual = np.array([0, 1], dtype), np.array([1, 1], dtype)

        report = compare("y", actual, expected, Tolerance(rtol=10, atol=10))

        assert report.mismatched == 1
        assert report.max_absolute_error == (0 if dtype is bool else 1)

    @pytest.mark.parametrize(("different", "flipped", "wrong"), [(2, 2, 0), (3, 0, 3)])
    @pytest.mark.parametrize("dtype", [np.int64, bool])
    def test_of_whole_numbers_a_share_may_flip(
        self, dtype: npt.DTypeLike, different: int, flipped: int, wrong: int
    ) -> None:
        expected, actual = np.zeros((2, 200), dtype)
        actual[:different] = 1

        report = compare("y", actual, expected, Tolerance(flips=0.01))

        assert (report.flipped, report.mismatched) == (flipped, wrong)
        told = " ".join(Verification((1,), 0.01, None, 0, (report,)).hints)
        assert told.startswith("2 of the 200 values of output 'y' are not" if flipped else "")
        assert bool(told) == bool(flipped)

    def test_far_unsigned_numbers_do_not_wrap(self) -> None:
        assert compare("y", np.array([0], np.uint8), np.array([255], np.uint8), Tolerance()).max_absolute_error == 255

    def test_text_is_equal_or_not(self) -> None:
        expected = np.array(["a", "b"], object)

        assert mismatched(expected, expected) == 0
        assert mismatched(np.array(["a", "c"], object), expected) == 1

    @pytest.mark.parametrize(
        ("actual", "expected", "wrong"),
        [
            (np.inf, np.inf, 0),
            (-np.inf, np.inf, 1),
            (3e38, np.inf, 1),
            (np.inf, 3e38, 1),
            (np.nan, 1.0, 1),
            (1.0, np.nan, 1),
            (np.nan, np.nan, 0),
        ],
    )
    def test_infinities_and_nan_are_only_like_themselves(self, actual: float, expected: float, wrong: int) -> None:
        got, want = np.array([actual, 1], np.float32), np.array([expected, 1], np.float32)

        assert mismatched(got, want) == wrong
        assert mismatched(got, want, Tolerance(rtol=1e30, atol=1e30)) == wrong

    def test_infinite_outputs_do_not_loosen_the_rest(self) -> None:
        assert mismatched(np.array([np.inf, 2.0]), np.array([np.inf, 1.0])) == 1

    def test_doubles_too_far_apart_for_a_double(self) -> None:
        assert mismatched(np.array([-1.7e308]), np.array([1.7e308])) == 1

    def test_nothing_to_compare(self) -> None:
        report = compare("y", np.zeros((0, 3)), np.zeros((0, 3)), Tolerance())

        assert (report.mismatched, report.elements) == (0, 0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e-9])
@pytest.mark.parametrize("field", ["rtol", "atol"])
def test_a_tolerance_is_a_number_that_something_can_be_outside_of(field: str, wrong: float) -> None:
    with pytest.raises(UsageError, match=f"--{field}"):
        Tolerance(**{field: wrong})


class TestVerify:
    def test_the_source_itself_passes(self, tmp_path: Path) -> None:
        source = reference(linear(), tmp_path)

        result = verify(source.session.run, source, (1, 8), Tolerance(), seed=3)

        assert result.batch_sizes == (1, 8)
        assert result.seed == 3
        (report,) = result.outputs
        assert report.elements == 9 * 3
        assert report.mismatched == 0

    @pytest.mark.parametrize(
        ("dtype", "off", "hint"),
        [
            (FP32, 0.02, "close enough for you, allow it with --rtol"),
            (FP32, 5, "rounding rarely comes to that"),
            (INT64, 1, "--rtol and --atol are for floating point"),
        ],
    )
    def test_the_mend_is_one_for_the_difference(self, dtype: DataType, off: float, hint: str, tmp_path: Path) -> None:
        source = reference(identity(dtype), tmp_path)

        with pytest.raises(VerificationError, match=f"differ, by up to {off}") as caught:
            verify(lambda inputs: {"y": inputs["x"] + off}, source, (1,), Tolerance(), seed=0)
        assert hint in str(caught.value.hint)

    def test_rows_of_a_batch_differ(self, tmp_path: Path) -> None:
        """An artifact that answers with its first row everywhere would pass a batch of copies."""
        source = reference(linear(), tmp_path)

        def first_row_only(inputs: Arrays) -> Arrays:
            return {name: np.repeat(array[:1], len(array), 0) for name, array in source.session.run(inputs).items()}

        assert verify(first_row_only, source, (1,), Tolerance(), seed=0)
        with pytest.raises(VerificationError):
            verify(first_row_only, source, (2,), Tolerance(), seed=0)

    def test_the_worst_output_is_named(self, tmp_path: Path) -> None:
        source = reference(two_outputs(), tmp_path)

        def off(inputs: Arrays) -> Arrays:
            outputs = source.session.run(inputs)
            outputs["features"] = outputs["features"] + 5
            outputs["scores"] = outputs["scores"].copy()
            outputs["scores"][0, 0] += 50
            return outputs

        figures = r"8 of 8 elements differ, by up to 5 \(cosine error \d\.\de-\d+, same top-1 in \d+%\)"
        with pytest.raises(VerificationError, match=f"output 'features' .* {figures}") as caught:
            verify(off, source, (2,), Tolerance(), seed=0)
        assert "--rtol" in str(caught.value.hint)
        assert "--atol" in str(caught.value.hint)

    def test_one_wrong_batch_size_is_enough(self, tmp_path: Path) -> None:
        source = reference(linear(), tmp_path)

        def off_at_eight(inputs: Arrays) -> Arrays:
            return {name: array + (len(array) == 8) for name, array in source.session.run(inputs).items()}

        verify(off_at_eight, source, (1, 4), Tolerance(), seed=0)
        with pytest.raises(VerificationError, match="24 of 27"):
            verify(off_at_eight, source, (1, 8), Tolerance(), seed=0)

    @pytest.mark.parametrize(
        ("step", "atol", "passes"), [(0.0, None, False), (0.2, None, True), (0.1, None, False), (0.2, 0.3, False)]
    )
    def test_a_quantised_output_may_be_off_by_steps(
        self, step: float, atol: float | None, passes: bool, tmp_path: Path
    ) -> None:
        source = reference(identity(FP32), tmp_path)
        source.session = replace(source.session, steps={"y": step})
        with contextlib.nullcontext() if passes else pytest.raises(VerificationError):
            verify(lambda inputs: {"y": inputs["x"] + 0.4}, source, (1,), Tolerance(rtol=0, atol=atol), seed=0)

    @pytest.mark.parametrize(
        ("dtype", "rtol", "looser"), [(FP32, 0.02, 0.02), (DataType.FP16, 0.02, 0.1), (DataType.BF16, 0.08, 0.1)]
    )
    def test_an_output_of_few_digits_is_not_let_off_everything(
        self, dtype: DataType, rtol: float, looser: float
    ) -> None:
        assert Tolerance(rtol=rtol, scale=1e-4).for_type(dtype).rtol == looser
        assert Tolerance(rtol=0.5).for_type(dtype).rtol == 0.5  # the user's own

    def test_tolerances_given_by_the_user_let_it_pass(self, tmp_path: Path) -> None:
        source = reference(linear(), tmp_path)

        def off(inputs: Arrays) -> Arrays:
            return {name: array + 0.5 for name, array in source.session.run(inputs).items()}

        result = verify(off, source, (1,), Tolerance(rtol=0, atol=0.6), seed=0)

        assert result.atol == 0.6
        assert result.worst.max_absolute_error == pytest.approx(0.5)

    def test_another_shape(self, tmp_path: Path) -> None:
        source = reference(linear(), tmp_path)

        with pytest.raises(VerificationError, match=r"shape \[4\] at batch size 4.*\[4, 3\]"):
            verify(lambda inputs: {"y": source.session.run(inputs)["y"][:, 0]}, source, (4,), Tolerance(), seed=0)

    def test_an_artifact_that_does_not_run(self, tmp_path: Path) -> None:
        def fails(inputs: Arrays) -> Arrays:
            raise RunError("out of memory")

        with pytest.raises(VerificationError, match="does not run at batch size 4: out of memory"):
            verify(fails, reference(linear(), tmp_path), (4,), Tolerance(), seed=0)

    def test_a_model_without_batch_axis(self, tmp_path: Path) -> None:
        source = reference(identity(FP32, [5], [5]), tmp_path)

        assert not source.batch_axis
        assert verify(source.session.run, source, (0,), Tolerance(), seed=0).outputs[0].elements == 5

    def test_a_batch_that_would_not_fit_in_memory(self, tmp_path: Path) -> None:
        source = reference(linear(), tmp_path)

        for size in (2**31 - 1, MOST_BYTES // (7 * 4) + 1, 2**20 + 1):
            with pytest.raises(VerificationError, match=f"a batch of {size} is too large") as caught:
                verify(source.session.run, source, (size,), Tolerance(), seed=0)
            assert "--max-batch-size" in str(caught.value.hint)

    def test_rows_of_different_length_make_no_batch(self, tmp_path: Path) -> None:
        """How many of a row's numbers are positive differs from row to row."""
        positive = model(
            [node("Greater", ["x", "zero"], ["where"]), node("Compress", ["x", "flat"], ["y"], axis=1)],
            {"x": (FP32, ["N", 4])},
            {"y": (FP32, ["N", "k"])},
            {"zero": np.array(0, np.float32)},
        )
        positive.graph.node.insert(1, node("Reshape", ["where", "all"], ["flat"]))
        positive.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "all"))
        source = reference(positive, tmp_path)

        with pytest.raises(VerificationError, match="do not make a batch") as caught:
            verify(source.session.run, source, (8,), Tolerance(), seed=0)
        assert "--no-batching" in str(caught.value.hint)


class TestReference:
    def test_free_sizes_are_tried_until_the_model_runs(self, tmp_path: Path) -> None:
        """Only a width of 64 fits the weights."""
        proto = model(
            [node("MatMul", ["x", "W"], ["y"])],
            {"x": (FP32, ["N", "features"])},
            {"y": (FP32, ["N", 2])},
            {"W": models.weights(64, 2)},
        )

        inputs, _ = reference(proto, tmp_path).row(0)

        assert inputs["x"].shape == (1, 64)

    def test_first_failure_is_told_with_the_flags_and_the_models_own_names(self, tmp_path: Path) -> None:
        proto = model(
            [node("MatMul", ["pixels", "W"], ["y"])],
            {"pixels": (FP32, ["N", "features"])},
            {"y": (FP32, ["N", 2])},
            {"W": models.weights(13, 2)},
        )

        with pytest.raises(ModelError, match=r"ONNX Runtime can't run .*net.onnx on random inputs: ") as caught:
            reference(proto, tmp_path)

        hint = str(caught.value.hint)
        assert "--input pixels=FILE.npy" in hint
        assert "--input-range pixels=LOW:HIGH" in hint
        assert "--shape pixels=1x64" in hint

    @pytest.mark.parametrize("dtype", [DataType.FP32, DataType.FP16, DataType.FP64, DataType.BF16])
    def test_nan(self, dtype: DataType, tmp_path: Path) -> None:
        proto = models.not_a_number()
        if dtype is not FP32:
            proto.graph.node.insert(0, node("Cast", ["x"], ["single"], to=FP32.onnx))
            proto.graph.node[1].input[0] = "single"
            proto.graph.node[1].output[0] = "root"
            proto.graph.node.append(node("Cast", ["root"], ["y"], to=dtype.onnx))
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = dtype.onnx

        with pytest.raises(ModelError, match=r"output 'y' of .* is NaN") as caught:
            reference(proto, tmp_path)

        assert "--input-range x=LOW:HIGH" in str(caught.value.hint)

    def test_says_what_of_the_inputs_was_given(self, tmp_path: Path) -> None:
        proto = model(
            [node("Sqrt", ["a"], ["root"]), node("Add", ["root", "b"], ["y"])],
            {"a": (FP32, ["N", 4]), "b": (FP32, ["N", 4])},
            {"y": (FP32, ["N", 4])},
        )
        np.save(tmp_path / "a.npy", np.full((1, 4), -1, np.float32))
        given = SampleOptions(files={"a": tmp_path / "a.npy"})

        with pytest.raises(ModelError, match="is NaN under ONNX Runtime on inputs given and random ones"):
            reference(proto, tmp_path, given)

    def test_nan_in_a_later_row(self, tmp_path: Path) -> None:
        rows = np.ones((3, 4), np.float32)
        rows[2] = -1
        np.save(tmp_path / "rows.npy", rows)
        source = reference(models.not_a_number(), tmp_path, SampleOptions(files={"x": tmp_path / "rows.npy"}))

        source.row(1)
        with pytest.raises(ModelError, match="is NaN"):
            source.row(2)

    def test_a_range_mends_nan(self, tmp_path: Path) -> None:
        assert reference(models.not_a_number(), tmp_path, SampleOptions(ranges={"x": (0, 1)})).batch_axis

    @pytest.mark.parametrize(
        "proto",
        [
            models.random_numbers(),
            model(
                [node("RandomUniformLike", ["x"], ["r"], dtype=FP32.onnx), node("Greater", ["x", "r"], ["y"])],
                {"x": (FP32, ["N", 64])},
                {"y": (DataType.BOOL, ["N", 64])},
            ),
        ],
        ids=["float", "bool"],
    )
    def test_random_models(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"output 'y' of .* differs from run to run") as caught:
            reference(proto, tmp_path)
        assert "--no-verify" in str(caught.value.hint)

    def test_a_batch_is_the_stack_of_its_rows(self, tmp_path: Path) -> None:
        source = reference(linear(), tmp_path)

        inputs, outputs = source.batch(10)

        assert inputs["x"].shape == (10, 4)
        assert len(np.unique(inputs["x"], axis=0)) == 8
        for number in range(10):
            np.testing.assert_array_equal(inputs["x"][[number]], source.row(number % 8)[0]["x"])
            np.testing.assert_array_equal(outputs["y"][[number]], source.row(number % 8)[1]["y"])

    @pytest.mark.parametrize(
        ("make", "batch_axis"),
        [
            (linear, True),
            (lambda: linear(1), True),
            (lambda: identity(FP32, [5], [5]), False),
            (lambda: identity(FP32, [], []), False),
            (lambda: identity(INT64, ["N"], ["N"]), True),
        ],
        ids=["free", "one", "five", "scalar", "rank 1"],
    )
    def test_batch_axis(self, make: Callable[[], onnx.ModelProto], batch_axis: bool, tmp_path: Path) -> None:
        source = reference(make(), tmp_path)

        assert source.batch_axis == batch_axis
        assert not source.without_batch_axis().batch_axis
