from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from repo_builder.passes.shapes import describe_zero_axes, free_zero_axes, state_output_shapes
from repo_builder.runtime import open_session
from tests.models import FP32, Shape, identity, linear, model, node, save, weights


def dims(value: onnx.ValueInfoProto) -> list[int | str | None]:
    """Sizes, symbols and None for axes with neither."""
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in value.type.tensor_type.shape.dim
    ]


def test_sizes_below_one_become_free_and_run(tmp_path: Path) -> None:
    source = identity(FP32, [0, -1, 3, "w"], [0, -1, 3, "w"])
    before = source.SerializeToString()

    freed = free_zero_axes(source)

    assert dims(freed.graph.input[0]) == dims(freed.graph.output[0]) == [None, None, 3, "w"]
    assert source.SerializeToString() == before
    array = np.ones((2, 2, 3, 2), np.float32)
    assert open_session(save(freed, tmp_path / "net.onnx")).run({"x": array})["y"].shape == array.shape


def test_initialisers_among_the_inputs_keep_their_size_of_zero() -> None:
    source = model(
        [node("Concat", ["x", "none"], ["y"], axis=0)],
        {"x": (FP32, [0, 2])},
        {"y": (FP32, ["N", 2])},
        {"none": weights(0, 2)},
        ir_version=3,
        opset=8,
    )

    freed = free_zero_axes(source)

    assert [dims(value) for value in freed.graph.input] == [[None, 2], [0, 2]]
    assert [told[:37] for told in describe_zero_axes(source)] == ["the model states input 'x' as [0, 2]:"]


def test_a_graph_without_such_sizes_is_handed_back() -> None:
    source = linear()

    assert free_zero_axes(source) is source
    assert describe_zero_axes(source) == ()


@pytest.mark.parametrize(
    ("stated", "seen", "expected"),
    [
        (None, (1, 4), [None, None]),
        ([], (1, 4), [None, None]),
        (["N", 4, 1], (1, 4), [None, None]),
        (None, (), []),
        (["N", 5], (1, 4), ["N", None]),
        ([4, 4], (1, 4), [None, 4]),
        (["N", 1], (1, 4), ["N", None]),
    ],
    ids=["no shape", "scalar", "rank", "no shape, scalar", "size", "first size", "one for four"],
)
def test_what_a_run_belies_is_freed(stated: Shape, seen: tuple[int, ...], expected: list[object]) -> None:
    source = identity(FP32, ["N", 4], stated)

    (output,) = state_output_shapes(source, {"y": seen}).graph.output

    assert output.type.tensor_type.HasField("shape")
    assert dims(output) == expected
    assert source == identity(FP32, ["N", 4], stated)


@pytest.mark.parametrize("stated", [["N", 4], ["N", "M"], [1, 4], [None, None]])
def test_what_a_run_bears_out_is_handed_back(stated: Shape) -> None:
    source = identity(FP32, ["N", 4], stated)

    assert state_output_shapes(source, {"y": (1, 4)}) is source
