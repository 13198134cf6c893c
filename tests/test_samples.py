"""Inputs made up, given by the user, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repo_builder.errors import UsageError
from repo_builder.model import DataType, TensorSpec
from repo_builder.runtime import RunError
from repo_builder.samples import FREE_SIZES, SampleOptions, Sampler, index_ranges
from tests.models import FP32, INT64, STRING, model, node, weights

Array = npt.NDArray[Any]
SIZES = FREE_SIZES[0]
X = TensorSpec("x", FP32, ("batch", 3))
IDS = TensorSpec("ids", INT64, ("batch", 4))


def sampler(*inputs: TensorSpec, **options: Any) -> Sampler:
    return Sampler(inputs, SampleOptions(**options), {})


def sample(spec: TensorSpec, row: int = 0, *, batch_axis: bool = True, **options: Any) -> Array:
    return sampler(spec, **options).sample(row, SIZES, batch_axis=batch_axis)[spec.name]


def saved(path: Path, array: Array) -> dict[str, Path]:
    np.save(path, array)
    return {"x": path}


class TestRandom:
    @pytest.mark.parametrize("dtype", DataType)
    def test_of_every_type(self, dtype: DataType) -> None:
        array = sample(TensorSpec("x", dtype, ("N", 1000)))

        assert array.dtype == dtype.numpy_dtype()
        assert array.shape == (1, 1000)
        assert len(np.unique(array)) > 1

    @pytest.mark.parametrize(
        ("dtype", "low", "high"), [(DataType.UINT8, 0, 255), (DataType.INT8, -128, 127), (INT64, 0, 1)]
    )
    def test_whole_numbers_have_the_range_that_most_models_take(self, dtype: DataType, low: int, high: int) -> None:
        array = sample(TensorSpec("x", dtype, ("N", 10_000)))

        assert (array.min(), array.max()) == (low, high)

    @pytest.mark.parametrize("dtype", [DataType.INT32, INT64, DataType.BOOL])
    def test_a_mask_of_tokens_has_the_padding_behind_them(self, dtype: DataType) -> None:
        mask = TensorSpec("attention_mask", dtype, ("batch", "length"))
        rows = [sample(mask, row)[0] for row in range(100)]

        assert {row.dtype for row in rows} == {np.dtype(dtype.numpy)}
        lengths = {int(row.sum()) for row in rows}
        assert (min(lengths), max(lengths)) == (1, SIZES[1])
        assert all((row[:-1] >= row[1:]).all() for row in rows)
        assert sample(mask, shapes={"attention_mask": (1, 0)}).shape == (1, 0)

    @pytest.mark.parametrize(
        "other",
        [
            TensorSpec("mask", DataType.UINT8, ("batch", 1000)),
            TensorSpec("mask", INT64, ("batch", 1, 1000)),
            TensorSpec("ids", INT64, ("batch", 1000)),
        ],
    )
    def test_what_is_no_such_mask_is_random(self, other: TensorSpec) -> None:
        row = sample(other).ravel()

        assert not (row[:-1] >= row[1:]).all()

    def test_indices_called_a_mask_are_indices(self) -> None:
        ids = TensorSpec("masked_ids", INT64, ("batch", 1000))
        row = Sampler((ids,), SampleOptions(), {"masked_ids": 50}).sample(0, SIZES, batch_axis=True)["masked_ids"]

        assert (row.min(), row.max()) == (0, 49)

    def test_is_the_same_every_time_and_another_for_each_row_seed_and_name(self) -> None:
        first = sample(X)

        np.testing.assert_array_equal(first, sample(X))
        for other in (sample(X, row=1), sample(X, seed=1), sample(TensorSpec("z", FP32, ("batch", 3)))):
            assert not np.array_equal(first, other)

    def test_free_axes_take_the_size_asked_for(self) -> None:
        picture = TensorSpec("x", FP32, ("batch", 3, "height", "width"))
        text = TensorSpec("t", INT64, ("batch", "length"))

        arrays = sampler(picture, text).sample(0, (224, 16), batch_axis=True)

        assert arrays["x"].shape == (1, 3, 224, 224)
        assert arrays["t"].shape == (1, 16)

    def test_without_batch_axis_the_first_is_like_any_other(self) -> None:
        assert sample(IDS, batch_axis=False).shape == (SIZES[1], 4)
        assert sample(TensorSpec("x", FP32, (5, 2)), batch_axis=False).shape == (5, 2)
        assert sample(TensorSpec("x", FP32, ()), batch_axis=False).shape == ()

    @pytest.mark.parametrize("shape", [(1, 10**15), ("N", "a", "b", "c", "d")])
    def test_too_large_to_be_meant(self, shape: tuple[int | str, ...]) -> None:
        with pytest.raises(RunError, match=r"input 'x' of shape .* has \d{10,} elements"):
            sample(TensorSpec("x", FP32, shape))

    def test_large_because_the_model_says_so(self) -> None:
        assert sample(TensorSpec("x", DataType.UINT8, (1, 2**24 + 1))).size > 2**24


class TestRanges:
    @pytest.mark.parametrize(
        ("dtype", "low", "high"),
        [
            (INT64, 5, 9),
            (INT64, -(2**63), 2**63 - 1),
            (DataType.UINT64, 0, 2**64 - 1),
            (DataType.UINT8, 250, 255),
            (DataType.BOOL, 0, 0),
            (FP32, 0.25, 0.5),
            (DataType.FP16, -1000, 1000),
            (DataType.FP64, -1e300, 1e300),
            (DataType.BF16, 16000, 16000),
        ],
    )
    def test_hold_every_value(self, dtype: DataType, low: float, high: float) -> None:
        array = sample(TensorSpec("x", dtype, ("N", 1000)), ranges={"x": (low, high)})

        assert array.dtype == dtype.numpy_dtype()
        assert low <= array.min()
        assert array.max() <= high

    def test_of_whole_numbers_include_both_ends(self) -> None:
        assert set(sample(TensorSpec("x", INT64, ("N", 1000)), ranges={"x": (2.5, 5.5)}).ravel()) == {3, 4, 5}

    @pytest.mark.parametrize(
        ("dtype", "low", "high", "why"),
        [
            (INT64, 5, 4, "no value lies between"),
            (FP32, float("nan"), 1, "no value lies between"),
            (FP32, 0, float("inf"), "no value lies between"),
            (INT64, 0, float("inf"), "no value lies between"),
            (INT64, 0.2, 0.8, "no whole number lies between"),
            (DataType.UINT8, 0, 256, "do not go so far"),
            (DataType.UINT8, -1, 5, "do not go so far"),
            (DataType.BOOL, 0, 2, "do not go so far"),
            (DataType.UINT64, 0, 2**64, "do not go so far"),
            (DataType.FP16, 0, 70000, "do not go so far"),
            (DataType.FP64, -1.7e308, 1.7e308, "do not go so far"),
            (STRING, 0, 1, "is text"),
        ],
    )
    def test_that_hold_no_value(self, dtype: DataType, low: float, high: float, why: str) -> None:
        with pytest.raises(UsageError, match=why) as caught:
            sample(TensorSpec("x", dtype, ("N", 3)), ranges={"x": (low, high)})
        assert caught.value.message.startswith("--input-range x=")
        assert caught.value.hint


class TestFiles:
    def test_rows_are_taken_in_turn(self, tmp_path: Path) -> None:
        rows = weights(3, 3)
        files = saved(tmp_path / "x.npy", rows)

        for number in range(5):
            np.testing.assert_array_equal(sample(X, row=number, files=files), rows[[number % 3]])
        np.testing.assert_array_equal(sample(X, batch_axis=False, files=files), rows)

    @pytest.mark.parametrize("batch_axis", [True, False])
    def test_the_batch_axis_may_be_left_out(self, batch_axis: bool, tmp_path: Path) -> None:
        array = sample(X, batch_axis=batch_axis, files=saved(tmp_path / "x.npy", weights(3)))

        assert array.shape == (1, 3)

    def test_a_named_axis_has_one_size_everywhere(self, tmp_path: Path) -> None:
        ids = TensorSpec("x", FP32, ("batch", "length"))
        mask = TensorSpec("mask", FP32, ("batch", "length"))

        arrays = sampler(ids, mask, files=saved(tmp_path / "x.npy", weights(1, 7))).sample(0, SIZES, batch_axis=True)

        assert arrays["mask"].shape == (1, 7)

    def test_text(self, tmp_path: Path) -> None:
        spec = TensorSpec("x", STRING, ("batch", 2))
        for array in (np.array([["ä", "b"]]), np.array([["ä".encode(), b"b"]])):
            given = sample(spec, files=saved(tmp_path / "x.npy", array))
            assert given.tolist() == [["ä", "b"]]
            assert given.dtype == object

    def test_bfloat16_which_npy_files_do_not_know(self, tmp_path: Path) -> None:
        array = np.array([[1.5, 2]], ml_dtypes.bfloat16)

        given = sample(TensorSpec("x", DataType.BF16, ("batch", 2)), files=saved(tmp_path / "x.npy", array))

        assert given.dtype == array.dtype
        assert given.tolist() == array.tolist()

    @pytest.mark.parametrize(
        ("array", "why"),
        [
            (np.ones((1, 3)), "holds float64; input 'x' is FP32"),
            (np.ones((1, 3), ">f4"), "holds >f4"),
            (np.ones((1, 4), np.float32), r"x.npy of shape \[1, 4\] does not fit input x FP32"),
            (np.ones(4, np.float32), r"x.npy of shape \[4\] does not fit input x FP32"),
            (np.ones((1, 1, 3), np.float32), "has 3 axes"),
            (np.float32(1), "has 0 axes"),
            (np.ones((0, 3), np.float32), r"x.npy of shape \[0, 3\] has no rows"),
        ],
    )
    def test_that_do_not_fit(self, array: Array, why: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=why) as caught:
            sample(X, files=saved(tmp_path / "x.npy", array))
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (None, "can't be read: No such file"),
            (b"", "not a plain .npy array"),
            (b"\x93NUMPY\x01\x00", "not a plain .npy array"),
            (b"hello", "not a plain .npy array"),
        ],
    )
    def test_that_are_no_arrays(self, data: bytes | None, why: str, tmp_path: Path) -> None:
        path = tmp_path / "x.npy"
        if data is not None:
            path.write_bytes(data)

        with pytest.raises(UsageError, match=why) as caught:
            sample(X, files={"x": path})
        assert caught.value.hint

    def test_that_hold_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)

        with pytest.raises(UsageError, match=r"not a plain \.npy array"):
            sample(X, files={"x": tmp_path / "x.npy"})

    def test_that_are_archives(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", a=np.ones(3))

        with pytest.raises(UsageError, match="archive"):
            sample(X, files={"x": tmp_path / "x.npz"})

    def test_text_that_is_not_utf8(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="not UTF-8"):
            sample(TensorSpec("x", STRING, ("N",)), files=saved(tmp_path / "x.npy", np.array([b"\xff"])))


class TestShapes:
    def test_name_every_axis_and_hold_for_all_with_the_same_symbol(self) -> None:
        state = TensorSpec("x", FP32, (2, "batch", "width"))
        other = TensorSpec("other", FP32, ("batch", "width"))

        arrays = sampler(state, other, shapes={"x": (2, 1, 5)}).sample(0, SIZES, batch_axis=False)

        assert arrays["x"].shape == (2, 1, 5)
        assert arrays["other"].shape == (1, 5)

    def test_batch_is_one_row_at_a_time(self) -> None:
        assert sample(TensorSpec("x", FP32, ("N", "w")), shapes={"x": (6, 9)}).shape == (1, 9)

    def test_may_be_empty(self) -> None:
        assert sample(TensorSpec("x", FP32, ("N", "w")), shapes={"x": (1, 0)}).shape == (1, 0)

    @pytest.mark.parametrize("shape", [(1, 4), (1,), (1, 3, 1), (), (-1, 3)])
    def test_that_do_not_fit(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match="does not fit input x FP32") as caught:
            sample(X, shapes={"x": shape})
        assert "--shape x=1x3" in str(caught.value.hint)

    def test_beside_a_file_for_the_same_input(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"--shape x=.*--input x="):
            sample(X, shapes={"x": (1, 3)}, files=saved(tmp_path / "x.npy", weights(1, 3)))


@pytest.mark.parametrize(("option", "flag"), [("files", "--input"), ("ranges", "--input-range"), ("shapes", "--shape")])
def test_an_input_that_the_model_does_not_have(option: str, flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag} nothing=.*no input 'nothing'") as caught:
        sampler(X, IDS, **{option: {"nothing": None}})
    assert "ids, x" in str(caught.value.hint)


class TestIndices:
    def ranges(self, nodes: list[onnx.NodeProto], **constants: Array) -> dict[str, int]:
        tensors = {"ids": (INT64, ("N", 4)), "other": (FP32, ("N", 4))}
        return index_ranges(model(nodes, tensors, {"y": (FP32, ("N", 4))}, constants))

    def test_of_gather_into_weights(self) -> None:
        gather = node("Gather", ["table", "ids"], ["y"])

        assert self.ranges([gather], table=weights(30, 2)) == {"ids": 30}

    def test_along_another_axis_and_behind_a_cast(self) -> None:
        nodes = [node("Cast", ["ids"], ["i"], to=6), node("Gather", ["table", "i"], ["y"], axis=-1)]

        assert self.ranges(nodes, table=weights(30, 2)) == {"ids": 2}

    def test_the_smallest_table_counts(self) -> None:
        nodes = [node("Gather", [table, "ids"], [table + "_y"]) for table in ("one", "two")]

        assert self.ranges(nodes, one=weights(30, 2), two=weights(20, 2)) == {"ids": 20}

    def test_of_gather_into_a_constant_node(self) -> None:
        table = onnx.numpy_helper.from_array(weights(7, 2))
        nodes = [node("Constant", [], ["table"], value=table), node("Gather", ["table", "ids"], ["y"])]

        assert self.ranges(nodes) == {"ids": 7}

    def test_of_one_hot(self) -> None:
        one_hot = node("OneHot", ["ids", "depth", "values"], ["y"])

        assert self.ranges([one_hot], depth=np.array([10]), values=np.array([0.0, 1])) == {"ids": 10}

    @pytest.mark.parametrize("depth", [np.array([0]), np.array([-3]), np.array([], np.int64), np.array([2.5])])
    def test_a_depth_that_is_none(self, depth: Array) -> None:
        one_hot = node("OneHot", ["ids", "depth", "values"], ["y"])

        assert self.ranges([one_hot], depth=depth, values=np.array([0.0, 1])) == {}

    def test_what_is_no_index(self) -> None:
        nodes = [node("Gather", ["other", "ids"], ["y"]), node("Relu", ["other"], ["z"])]

        assert self.ranges(nodes) == {}

    @pytest.mark.parametrize("dtype", [INT64, DataType.UINT8, DataType.BOOL])
    def test_are_drawn_from_the_table(self, dtype: DataType) -> None:
        spec = TensorSpec("ids", dtype, ("N", 10_000))

        array = Sampler((spec,), SampleOptions(), {"ids": 300}).sample(0, SIZES, batch_axis=True)["ids"]

        assert array.min() == 0
        assert array.max() == {INT64: 299, DataType.UINT8: 255, DataType.BOOL: 1}[dtype]

    def test_a_range_of_the_users_wins(self) -> None:
        samples = SampleOptions(ranges={"ids": (5, 6)})

        array = Sampler((IDS,), samples, {"ids": 300}).sample(0, SIZES, batch_axis=True)["ids"]

        assert set(array.ravel()) <= {5, 6}
