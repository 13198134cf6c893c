"""The batch axis: found, made, or refused, always by what ONNX Runtime gives for two rows and for each alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repo_builder.errors import ModelError
from repo_builder.model import DataType
from repo_builder.onnx_model import read_model
from repo_builder.passes.batch import Batching, plan_batching, static_batching
from repo_builder.runtime import open_session
from repo_builder.samples import SampleOptions, Sampler, index_ranges
from repo_builder.verify import Reference
from tests import models
from tests.models import FP32, INT64, identity, linear, mean_over_rows, model, node, save, weights


def plan(proto: onnx.ModelProto, folder: Path, samples: SampleOptions | None = None, largest: int = 8) -> Batching:
    source = read_model(save(proto, folder / "net.onnx"))
    sampler = Sampler(source.spec.inputs, samples or SampleOptions(), index_ranges(proto))
    reference = Reference.open(source.spec, open_session(source.spec.path), sampler)
    before = proto.SerializeToString()
    work = folder / "work"
    work.mkdir()
    batching = plan_batching(source, reference, largest, work)
    assert source.proto.SerializeToString() == before, "a pass must not change the graph it was given"
    assert list(work.iterdir()) == [], "candidates are removed"
    return batching


def reshape(target: list[int], *, shape: str = "initialiser", output: int = 2) -> onnx.ModelProto:
    """[1, 3, 4] reshaped to ``target``, which is said in one of the ways that exporters have."""
    nodes = [node("Reshape", ["x", "target"], ["y"])]
    constants: dict[str, npt.NDArray[Any]] = {}
    if shape == "initialiser":
        constants["target"] = np.array(target)
    elif shape == "Constant node":
        nodes.insert(0, node("Constant", [], ["target"], value=numpy_helper.from_array(np.array(target))))
    elif shape == "Constant with value_ints":
        nodes.insert(0, node("Constant", [], ["target"], value_ints=target))
    old = shape == "attribute of opset 1"
    if old:
        nodes = [node("Reshape", ["x"], ["y"], shape=target)]
    sizes = [1, 12] if output == 2 else [1, 3, 4]
    return model(
        nodes,
        {"x": (FP32, [1, 3, 4])},
        {"y": (FP32, sizes)},
        constants,
        opset=1 if old else 17,
        ir_version=3 if old else 8,
    )


class TestFreeFirstAxes:
    @pytest.mark.parametrize(
        "make",
        [
            linear,
            models.two_outputs,
            models.picture,
            lambda: identity(FP32, ["N"], ["N"]),
            lambda: identity(FP32, ["N", "N2"], ["N", "N2"]),
            lambda: identity(DataType.STRING),
            lambda: identity(DataType.BF16),
            lambda: linear("height/2"),
            lambda: linear(None),
        ],
        ids=["linear", "two outputs", "picture", "rank 1", "two axes", "strings", "bf16", "expression", "unnamed"],
    )
    def test_are_a_batch(self, make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
        batching = plan(make(), tmp_path)

        assert batching.batchable
        assert "first axes are free" in batching.reason
        assert not batching.told_by_values

    def test_leave_the_graph_as_it_is(self, tmp_path: Path) -> None:
        proto = linear()

        assert plan(proto, tmp_path).proto == proto

    @pytest.mark.parametrize("stated", [None, [1, 4], ["N", 4]], ids=["no shape", "fixed", "free"])
    def test_of_inputs_are_given_to_outputs_too(self, stated: list[int | str] | None, tmp_path: Path) -> None:
        """The middle of the graph hides the output's batch: ONNX Runtime can't infer it."""
        proto = model(
            [node("Compress", ["x", "keep"], ["y"], axis=1)],
            {"x": (FP32, ["N", 4])},
            {"y": (FP32, stated)},
            {"keep": np.ones(4, bool)},
        )

        batching = plan(proto, tmp_path)

        assert batching.batchable
        assert runs_as_batch(batching.proto, proto, tmp_path)


class TestNoBatchAxis:
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: model([node("Identity", ["W"], ["y"])], {}, {"y": (FP32, [2])}, {"W": weights(2)}), "no inputs"),
            (lambda: identity(FP32, [5, 3], [5, 3]), "fixed at 5"),
            (lambda: identity(FP32, ["N", "N"], ["N", "N"]), "tied to another axis"),
            (lambda: identity(FP32, [], []), "scalar"),
            (
                lambda: model(
                    [node("Mul", ["x", "s"], ["y"])], {"x": (FP32, ["N", 2]), "s": (FP32, [])}, {"y": (FP32, ["N", 2])}
                ),
                "input 's' is a scalar",
            ),
            (
                lambda: model(
                    [node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": (FP32, ["N", 2])}, {"y": (FP32, [])}
                ),
                "output 'y' is a scalar",
            ),
            (
                lambda: model(
                    [node("Reshape", ["x", "all"], ["y"])],
                    {"x": (FP32, ["N", 4])},
                    {"y": (FP32, ["M"])},
                    {"all": np.array([-1])},
                ),
                "output 'y' has 4 in its first axis for one row",
            ),
            (
                lambda: model(
                    [node("Transpose", ["x"], ["y"], perm=[1, 0])], {"x": (FP32, ["N", 4])}, {"y": (FP32, [4, "N"])}
                ),
                "output 'y' has 4 in its first axis for one row",
            ),
        ],
        ids=["no inputs", "fixed", "tied", "scalar", "one scalar", "scalar output", "flattened", "transposed"],
    )
    def test_is_told_from_the_shapes(self, make: Callable[[], onnx.ModelProto], reason: str, tmp_path: Path) -> None:
        proto = make()

        batching = plan(proto, tmp_path)

        assert not batching.batchable
        assert reason in batching.reason
        assert not batching.told_by_values
        assert batching.proto == proto

    @pytest.mark.parametrize(
        ("make", "size"),
        [
            (mean_over_rows, 2),
            (
                lambda: model(
                    [node("CumSum", ["x", "axis"], ["y"])],
                    {"x": (FP32, ["time", "N", 2])},
                    {"y": (FP32, ["time", "N", 2])},
                    {"axis": np.array(0)},
                ),
                2,
            ),
            (
                lambda: model(
                    [node("Softmax", ["x"], ["y"], axis=0)], {"x": (FP32, ["N", 2])}, {"y": (FP32, ["N", 2])}
                ),
                2,
            ),
            (lambda: models.rows_meet_from(2), 8),  # told by the largest batch only
            (lambda: models.rows_meet_from(6), 8),
        ],
        ids=["mean over the batch", "time first", "softmax over the batch", "from the third row", "from the seventh"],
    )
    def test_is_told_by_running_when_rows_touch_each_other(
        self, make: Callable[[], onnx.ModelProto], size: int, tmp_path: Path
    ) -> None:
        batching = plan(make(), tmp_path)

        assert not batching.batchable
        why = f"its first axis is no batch: output 'y' of a batch of {size} is not what each row alone gives"
        assert why in batching.reason
        assert batching.told_by_values

    def test_is_no_matter_of_batches_that_are_not_served(self, tmp_path: Path) -> None:
        assert plan(models.rows_meet_from(6), tmp_path, largest=6).batchable

    def test_is_told_by_running_a_branch_that_the_whole_batch_decides(self, tmp_path: Path) -> None:
        batching = plan(models.branch_on_the_batch(), tmp_path)

        assert not batching.batchable
        assert "is not what each row alone gives" in batching.reason

    def test_may_be_hidden_by_the_inputs_where_the_model_branches(self, tmp_path: Path) -> None:
        """All sums below the limit: only the note says that other inputs may take the other branch."""
        batching = plan(models.branch_on_the_batch(), tmp_path, SampleOptions(ranges={"x": (-2, -1)}))

        assert batching.batchable
        assert "on random inputs rows of a batch do not influence each other" in batching.reason
        assert batching.told_by_values

    def test_when_two_inputs_must_agree_on_more_than_the_first_axis(self, tmp_path: Path) -> None:
        """x [a, b] @ z [b, a]: with 1 in every first axis, b is 1 for z and 16 for x."""
        proto = model(
            [node("MatMul", ["x", "z"], ["y"])],
            {"x": (FP32, ["a", "b"]), "z": (FP32, ["b", 3])},
            {"y": (FP32, ["a", 3])},
        )

        batching = plan(proto, tmp_path)

        assert not batching.batchable

    def test_when_an_output_is_the_same_for_any_batch(self, tmp_path: Path) -> None:
        proto = model(
            [node("Relu", ["x"], ["y"])],
            {"x": (FP32, ["N", 2])},
            {"y": (FP32, ["N", 2]), "W": (FP32, [1, 2])},
            {"W": weights(1, 2)},
        )

        assert "output 'W' has shape [1, 2]" in plan(proto, tmp_path).reason

    def test_but_a_source_that_fails_on_its_inputs_is_an_error(self, tmp_path: Path) -> None:
        """Row 0 happens to hold valid indices, row 1 does not: that says nothing of the batch."""
        with pytest.raises(ModelError, match=r"can't run .* on random inputs") as caught:
            plan(models.lookup(), tmp_path)
        assert "--input-range ids=" in str(caught.value.hint)


def lstm_with_fixed_state() -> onnx.ModelProto:
    return model(
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            node("LSTM", ["t", "W", "R", "", "", "h"], ["", "y_h"], hidden_size=2),
            node("Squeeze", ["y_h", "first"], ["y"]),
        ],
        {"x": (FP32, [1, 5, 3])},
        {"y": (FP32, [1, 2])},
        {"W": weights(1, 8, 3), "R": weights(1, 8, 2), "h": np.zeros((1, 1, 2), np.float32), "first": np.array([0])},
    )


class TestFixedOne:
    @pytest.mark.parametrize(
        ("target", "rank"),
        [([1, -1], 2), ([1, 12], 2), ([1, 3, 4], 3), ([1, 0, -1], 3), ([1, -1, 4], 3), ([-1, 12], 2)],
    )
    @pytest.mark.parametrize(
        "shape", ["initialiser", "Constant node", "Constant with value_ints", "attribute of opset 1"]
    )
    def test_is_made_free_with_the_targets_of_reshapes(
        self, target: list[int], rank: int, shape: str, tmp_path: Path
    ) -> None:
        source = reshape(target, shape=shape, output=rank)

        batching = plan(source, tmp_path)

        assert batching.batchable
        assert "fixed at 1 and is free now" in batching.reason
        assert runs_as_batch(batching.proto, source, tmp_path)

    def test_in_a_file_of_ir_version_3(self, tmp_path: Path) -> None:
        source = model(
            [node("Reshape", ["x", "target"], ["r"]), node("MatMul", ["r", "W"], ["y"])],
            {"x": (FP32, [1, 2, 2])},
            {"y": (FP32, [1, 3])},
            {"target": np.array([1, 4]), "W": weights(4, 3)},
            ir_version=3,
            opset=8,
        )

        batching = plan(source, tmp_path)

        assert batching.batchable
        assert runs_as_batch(batching.proto, source, tmp_path)

    def test_leaves_a_target_alone_that_others_use(self, tmp_path: Path) -> None:
        source = model(
            [
                node("Reshape", ["x", "target"], ["r"]),
                node("Cast", ["target"], ["numbers"], to=DataType.FP32.onnx),
                node("ReduceSum", ["numbers"], ["sum"], keepdims=0),
                node("Add", ["r", "sum"], ["y"]),
            ],
            {"x": (FP32, [1, 3, 4])},
            {"y": (FP32, [1, 12])},
            {"target": np.array([1, 12])},
        )

        batching = plan(source, tmp_path)

        assert batching.batchable
        kept = next(tensor for tensor in batching.proto.graph.initializer if tensor.name == "target")
        assert numpy_helper.to_array(kept).tolist() == [1, 12]
        assert runs_as_batch(batching.proto, source, tmp_path)

    def test_of_some_inputs_beside_free_ones(self, tmp_path: Path) -> None:
        source = model(
            [node("Add", ["x", "z"], ["y"])],
            {"x": (FP32, [1, 4]), "z": (FP32, ["N", 4])},
            {"y": (FP32, ["N", 4])},
        )

        batching = plan(source, tmp_path)

        assert batching.batchable
        assert "fixed at 1 and is free now" in batching.reason

    def test_drops_what_was_said_of_inner_shapes(self, tmp_path: Path) -> None:
        source = reshape([1, -1])
        source.graph.node.append(node("Relu", ["y"], ["z"]))
        source.graph.value_info.append(models.value("y", FP32, [1, 12]))
        source.graph.output[0].CopyFrom(models.value("z", FP32, [1, 12]))

        assert list(plan(source, tmp_path).proto.graph.value_info) == []

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (
                lambda: model(
                    [node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest")],
                    {"x": (FP32, [1, 3, 4, 4])},
                    {"y": (FP32, [1, 3, 8, 8])},
                    {"sizes": np.array([1, 3, 8, 8])},
                ),
                "has shape [1, 3, 8, 8] at batch size 2",
            ),
            (
                lambda: model(
                    [node("ReduceMean", ["x"], ["mean"], axes=[0]), node("Sub", ["x", "mean"], ["y"])],
                    {"x": (FP32, [1, 4])},
                    {"y": (FP32, [1, 4])},
                ),
                "not what each row alone gives",
            ),
            (
                lambda: model(
                    [node("Gather", ["x", "zero"], ["y"], axis=0)],
                    {"x": (FP32, [1, 4])},
                    {"y": (FP32, [1, 4])},
                    {"zero": np.array([0])},
                ),
                "has shape [1, 4] at batch size 2",
            ),
            (lstm_with_fixed_state, "does not run at batch size 2"),
        ],
        ids=["sizes of a Resize", "wrong rows", "only the first row", "a state for one"],
    )
    def test_stays_fixed_when_two_rows_would_go_wrong(
        self, make: Callable[[], onnx.ModelProto], reason: str, tmp_path: Path
    ) -> None:
        source = make()

        batching = plan(source, tmp_path)

        assert not batching.batchable
        assert "its batch is fixed at 1 and can't be made free" in batching.reason
        assert reason in batching.reason
        assert batching.told_by_values
        assert batching.proto == source


class TestRowsThatAreAlike:
    """Rows that are all alike give the same together as alone, however they influence each other."""

    def samples(self, folder: Path, rows: int) -> SampleOptions:
        np.save(folder / "rows.npy", np.arange(4 * rows, dtype=np.float32).reshape(rows, 4) ** 2)
        return SampleOptions(files={"x": folder / "rows.npy"})

    @pytest.mark.parametrize("rows", [1, 2])
    def test_do_not_make_a_fixed_batch_free(self, rows: int, tmp_path: Path) -> None:
        batching = plan(linear(1), tmp_path, self.samples(tmp_path, rows))

        assert batching.batchable == (rows == 2)
        assert ("can't show" in batching.reason) == (rows == 1)

    def test_leave_a_free_batch_to_what_the_file_says(self, tmp_path: Path) -> None:
        batching = plan(linear(), tmp_path, self.samples(tmp_path, 1))

        assert batching.batchable
        assert "can't show" in batching.reason

    def test_are_not_taken_for_proof_when_others_differ(self, tmp_path: Path) -> None:
        """One integer of two values: rows 0 and 1 are often the same, and then a later one has to be looked at."""
        proto = model(
            [node("ReduceMax", ["x"], ["most"], axes=[0], keepdims=1), node("Sub", ["x", "most"], ["y"])],
            {"x": (INT64, ["N", 1])},
            {"y": (INT64, ["N", 1])},
        )

        for seed in range(8):
            folder = tmp_path / str(seed)
            folder.mkdir()
            assert not plan(proto, folder, SampleOptions(seed=seed)).batchable


def runs_as_batch(proto: onnx.ModelProto, source: onnx.ModelProto, folder: Path) -> bool:
    """Whether three rows through ``proto`` are what ``source`` gives for each."""
    together = open_session(save(proto, folder / "together.onnx"))
    alone = open_session(save(source, folder / "alone.onnx"))
    assert all(tensor.dims[0] == -1 for tensor in (*together.inputs, *together.outputs))
    rng = np.random.default_rng(3)
    rows = [
        {tensor.name: rng.standard_normal((1, *tensor.dims[1:])).astype(np.float32) for tensor in alone.inputs}
        for _ in range(3)
    ]
    got = together.run({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    expected = [alone.run(row) for row in rows]
    return all(
        np.allclose(got[name], np.concatenate([outputs[name] for outputs in expected]), rtol=1e-5) for name in got
    )


class TestStatic:
    @pytest.mark.parametrize("proto", [linear(), identity(INT64, ["N"], ["N"]), mean_over_rows()])
    def test_free_first_axes(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        batching = static_batching(read_model(save(proto, tmp_path / "net.onnx")))

        assert batching.batchable
        assert "not checked" in batching.reason

    @pytest.mark.parametrize(
        ("proto", "what"),
        [
            (linear(1), "input x FP32 [1, 4]"),
            (identity(FP32, [], []), "input x FP32 []"),
            (identity(FP32, ["N"], [4]), "output y FP32 [4]"),
            (identity(FP32, ["N"], None), "output y FP32 [unknown rank]"),
        ],
    )
    def test_anything_else(self, proto: onnx.ModelProto, what: str, tmp_path: Path) -> None:
        batching = static_batching(read_model(save(proto, tmp_path / "net.onnx")))

        assert not batching.batchable
        assert what in batching.reason
