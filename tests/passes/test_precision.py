"""FP16 and BF16 graphs: valid, sorted, close to FP32 under ONNX Runtime, and FP32 where half would be wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from repo_builder.errors import CompileError, ModelError
from repo_builder.model import DataType
from repo_builder.passes.half_graph import HalfGraph, with_magnitudes
from repo_builder.passes.precision import MixedPrecision, to_half
from tests.models import FP32, INT64, model, node, weights

FP16, BF16 = DataType.FP16, DataType.BF16
X: npt.NDArray[np.float32] = weights(2, 3, 8, 8, seed=1)


def run(proto: onnx.ModelProto, **inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    outputs: list[npt.NDArray[Any]] = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, inputs)
    return outputs


def converted(proto: onnx.ModelProto, half: DataType = FP16, folder: Path = Path(), **options: bool) -> MixedPrecision:
    """The conversion, held to the checker, which also asks that nodes are sorted and types agree."""
    result = to_half(proto, half, folder, **options)
    onnx.checker.check_model(result.proto, full_check=True)
    return result


def floats(values: object) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32)


def integers(values: object) -> npt.NDArray[np.int64]:
    return np.asarray(values, np.int64)


def types(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the main graph."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def computes_in(proto: onnx.ModelProto, operator: str) -> set[int]:
    """The types of the first inputs of all nodes of one operator."""
    known = types(proto)
    return {known[n.input[0]] for n in proto.graph.node if n.op_type == operator}


def close(proto: onnx.ModelProto, result: MixedPrecision, scale: float = 5e-3, **inputs: npt.NDArray[Any]) -> None:
    for expected, actual in zip(run(proto, **inputs), run(result.proto, **inputs), strict=True):
        assert actual.dtype == expected.dtype
        limit = scale * float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
        np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=limit)


def in_half(proto: onnx.ModelProto, **inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The outputs with every node rounded to its own type; ONNX Runtime's CPU computes most of FP16 in FP32."""
    with np.errstate(all="ignore"):
        outputs: Any = ReferenceEvaluator(proto).run(None, inputs)
    return [np.asarray(output) for output in outputs]


def branch_of(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])])


def convolution() -> onnx.ModelProto:
    return model(
        [node("Conv", ["x", "w", "b"], ["c"]), node("Relu", ["c"], ["r"]), node("GlobalAveragePool", ["r"], ["y"])],
        {"x": (FP32, ["batch", 3, 8, 8])},
        {"y": (FP32, ["batch", 4, 1, 1])},
        {"w": weights(4, 3, 3, 3), "b": weights(4, seed=2)},
    )


def test_weights_halve_and_ports_stay_fp32() -> None:
    source = convolution()
    result = converted(source)
    assert result.half_nodes == 3
    assert {tensor.data_type for tensor in result.proto.graph.initializer} == {TensorProto.FLOAT16}
    assert [n.op_type for n in result.proto.graph.node] == ["Cast", "Conv", "Relu", "GlobalAveragePool", "Cast"]
    assert types(result.proto)["x"] == types(result.proto)["y"] == TensorProto.FLOAT
    close(source, result, x=X)


def test_the_source_is_left_alone() -> None:
    source = convolution()
    before = source.SerializeToString(deterministic=True)
    converted(source)
    assert source.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("half_inputs", "half_outputs"), [(True, False), (False, True), (True, True)])
def test_half_ports(half_inputs: bool, half_outputs: bool) -> None:
    source = convolution()
    result = converted(source, half_inputs=half_inputs, half_outputs=half_outputs)
    known = types(result.proto)
    assert (known["x"] == TensorProto.FLOAT16, known["y"] == TensorProto.FLOAT16) == (half_inputs, half_outputs)
    got = run(result.proto, x=X.astype(np.float16 if half_inputs else np.float32))[0]
    np.testing.assert_allclose(got, run(source, x=X)[0], atol=5e-3)


def test_bf16_agrees_to_its_eight_bits() -> None:
    source = model(
        [node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["y"])],
        {"x": (FP32, ["batch", 16])},
        {"y": (FP32, ["batch", 4])},
        {"w": weights(16, 4)},
    )
    result = converted(source, BF16)
    assert computes_in(result.proto, "MatMul") == {TensorProto.BFLOAT16}
    x = weights(5, 16, seed=3)
    outputs: Any = ReferenceEvaluator(result.proto).run(None, {"x": x})
    actual = np.asarray(outputs[0])
    [expected] = run(source, x=x)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=2.0**-7 * float(np.abs(expected).max()))


def test_bf16_of_a_graph_that_onnx_cannot_bring_to_a_newer_opset() -> None:
    """Its converter knows no sparse weights."""
    source = model(
        [node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
    )
    values = numpy_helper.from_array(floats([1, 2]), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(integers([0, 5])), [4, 4])
    source.graph.sparse_initializer.append(sparse)
    result = to_half(source, BF16, Path())
    assert result.half_nodes == 2
    assert result.proto.opset_import[0].version == 17


@pytest.mark.parametrize(("last", "side", "opset", "raised"), [
    (node("Upsample", ["p", "scales"], ["y"], mode="linear"), 16, 9, 22),
    (node("Resize", ["p", "scales"], ["y"], mode="linear"), 16, 10, 22),
    (node("Hardmax", ["p"], ["y"], axis=1), 8, 12, 12),
])  # fmt: skip
def test_what_a_newer_opset_means_otherwise_stays_what_it_was(
    last: onnx.NodeProto, side: int, opset: int, raised: int
) -> None:
    """ONNX's converter leaves the axes of Hardmax, and where the pixels of a Resize lie, to the newer defaults."""
    source = model(
        [node("MaxPool", ["x"], ["p"], kernel_shape=[1, 1]), last],
        {"x": (FP32, [2, 3, 8, 8])},
        {"y": (FP32, [2, 3, side, side])},
        {"scales": floats([1, 1, 2, 2])},
        opset=opset,
    )
    result = converted(source, BF16)
    assert result.proto.opset_import[0].version == raised
    if raised == 22:
        assert computes_in(result.proto, "Resize") == {TensorProto.BFLOAT16}
        limit = 2.0**-7 * float(np.abs(X).max())
        np.testing.assert_allclose(in_half(result.proto, x=X)[0], run(source, x=X)[0], atol=limit)


def test_attention_mask_of_the_smallest_float() -> None:
    """Rows masked whole are a uniform average in FP32; -3.4e38 turned into -inf would make them NaN."""
    source = model(
        [
            node("Cast", ["mask"], ["mask_float"], to=TensorProto.FLOAT),
            node("Sub", ["one", "mask_float"], ["hidden"]),
            node("Mul", ["hidden", "lowest"], ["bias"]),
            node("MatMul", ["q", "k"], ["scores"]),
            node("Add", ["scores", "bias"], ["masked"]),
            node("Softmax", ["masked"], ["p"], axis=-1),
            node("MatMul", ["p", "v"], ["y"]),
        ],
        {"q": (FP32, ["batch", 4, 8]), "mask": (INT64, ["batch", 1, 4])},
        {"y": (FP32, ["batch", 4, 5])},
        {
            "one": floats([1]),
            "lowest": floats([np.finfo(np.float32).min]),
            "k": weights(8, 4),
            "v": weights(4, 5),
        },
    )
    result = converted(source)
    assert computes_in(result.proto, "MatMul") == {TensorProto.FLOAT16}
    assert computes_in(result.proto, "Softmax") == {TensorProto.FLOAT}
    mask = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    close(source, result, q=weights(2, 4, 8), mask=mask)


@pytest.mark.parametrize("half", [FP16, BF16])
def test_masked_attention(half: DataType) -> None:
    """As one operator; TensorRT-RTX builds it where its mask has the type of its queries, or is of booleans."""
    source = model(
        [
            node("Where", ["allowed", "zero", "lowest"], ["mask"]),
            node("MatMul", ["x", "w"], ["q"]),
            node("Attention", ["q", "x", "x", "mask"], ["a"]),
            node("Attention", ["a", "x", "x", "allowed"], ["y"]),
        ],
        {"x": (FP32, ["batch", 1, 3, 4]), "allowed": (DataType.BOOL, [3, 3])},
        {"y": (FP32, ["batch", 1, 3, 4])},
        {"w": weights(4, 4), "zero": floats(0), "lowest": floats(np.finfo(np.float32).min)},
        opset=23,
        ir_version=11,
    )
    result = converted(source, half)
    assert computes_in(result.proto, "Attention") == {half.onnx}
    known = types(result.proto)
    masks = [known[n.input[3]] for n in result.proto.graph.node if n.op_type == "Attention"]
    assert masks == [half.onnx, TensorProto.BOOL]
    x, allowed = weights(2, 1, 3, 4), np.tri(3, dtype=bool)
    [expected] = run(source, x=x, allowed=allowed)
    np.testing.assert_allclose(in_half(result.proto, x=x, allowed=allowed)[0], expected, atol=2.0**-6)


@pytest.mark.parametrize("half", [FP16, BF16])
def test_a_mask_that_is_fp32_already(half: DataType) -> None:
    """BF16 ends at 3.39e38; -inf in place of -3.4e38 would make NaN of what is not masked, too."""
    source = model(
        [
            node("Sub", ["one", "mask"], ["hidden"]),
            node("Mul", ["hidden", "lowest"], ["bias"]),
            node("Where", ["late", "lowest", "bias"], ["both"]),
            node("MatMul", ["x", "w"], ["scores"]),
            node("Add", ["scores", "both"], ["masked"]),
            node("Softmax", ["masked"], ["y"], axis=-1),
        ],
        {"x": (FP32, ["batch", 4]), "mask": (FP32, ["batch", 3])},
        {"y": (FP32, ["batch", 3])},
        {
            "one": floats([1]),
            "lowest": floats([np.finfo(np.float32).min]),
            "late": np.array([False, False, True]),
            "w": weights(4, 3),
        },
    )
    x, mask = weights(2, 4), floats([[1, 0, 1], [0, 0, 0]])
    result = converted(source, half)
    [expected] = run(source, x=x, mask=mask)
    np.testing.assert_allclose(in_half(result.proto, x=x, mask=mask)[0], expected, atol=2.0**-7)


@pytest.mark.parametrize("constant", [1e6, 1e-12], ids=["overflows", "vanishes"])
@pytest.mark.parametrize("filled", [False, True])
def test_a_constant_that_does_not_fit(constant: float, filled: bool) -> None:
    fill = numpy_helper.from_array(floats([constant]))
    made = [node("Shape", ["x"], ["shape"]), node("ConstantOfShape", ["shape"], ["c"], value=fill)]
    source = model(
        [
            *(made if filled else []),
            node("MatMul", ["x", "w"], ["m"]),
            node("Abs", ["m"], ["a"]),
            node("Add", ["a", "c"], ["s"]),
            node("Div", ["m", "s"], ["y"]),
        ],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"w": np.diag(floats([1, 1, 1, 0])), **({} if filled else {"c": floats(constant)})},
    )
    result = converted(source)
    assert computes_in(result.proto, "Add") == {TensorProto.FLOAT}
    assert computes_in(result.proto, "MatMul") == {TensorProto.FLOAT16}
    x = weights(3, 4)
    assert np.isfinite(run(result.proto, x=x)[0]).all() or constant < 1
    close(source, result, x=x)


def test_an_unlimited_clip_stays_half() -> None:
    source = model(
        [node("Conv", ["x", "w"], ["c"]), node("Clip", ["c", "low", "high"], ["y"])],
        {"x": (FP32, ["batch", 3, 8, 8])},
        {"y": (FP32, ["batch", 4, 6, 6])},
        {"w": weights(4, 3, 3, 3), "low": floats(0), "high": floats(3.4e38)},
    )
    result = converted(source)
    assert computes_in(result.proto, "Clip") == {TensorProto.FLOAT16}
    close(source, result, x=X)


def test_shape_arithmetic_stays_exact() -> None:
    """Shape -> Cast -> Div -> Floor -> Cast: 4097 is no FP16 number, so half would make another shape."""
    source = model(
        [
            node("Relu", ["x"], ["r"]),
            node("Shape", ["r"], ["shape"], start=1, end=2),
            node("Cast", ["shape"], ["float"], to=TensorProto.FLOAT),
            node("Div", ["float", "three"], ["third"]),
            node("Floor", ["third"], ["floor"]),
            node("Cast", ["floor"], ["end"], to=TensorProto.INT64),
            node("Slice", ["r", "start", "end", "axis"], ["y"]),
        ],
        {"x": (FP32, ["batch", "length"])},
        {"y": (FP32, ["batch", "third"])},
        {"three": floats([3]), "start": integers([0]), "axis": integers([1])},
    )
    result = converted(source)
    assert computes_in(result.proto, "Div") == computes_in(result.proto, "Floor") == {TensorProto.FLOAT}
    assert computes_in(result.proto, "Slice") == {TensorProto.FLOAT16}
    x = weights(1, 3 * 4097)
    assert run(result.proto, x=x)[0].shape == (1, 4097)


def test_casts_and_integer_pictures() -> None:
    source = model(
        [
            node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT),
            node("Mul", ["float", "scale"], ["unit"]),
            node("Conv", ["unit", "w"], ["c"]),
            node("Cast", ["c"], ["double"], to=TensorProto.DOUBLE),
            node("Cast", ["double"], ["again"], to=TensorProto.FLOAT),
            node("ArgMax", ["again"], ["y"], axis=1),
        ],
        {"picture": (DataType.UINT8, ["batch", 3, 8, 8])},
        {"y": (INT64, ["batch", 1, 6, 6])},
        {"w": weights(4, 3, 3, 3), "scale": floats([1 / 255])},
    )
    result = converted(source)
    assert computes_in(result.proto, "Conv") == {TensorProto.FLOAT16}
    assert computes_in(result.proto, "Mul") == {TensorProto.FLOAT}
    picture = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    agreement = np.mean(run(source, picture=picture)[0] == run(result.proto, picture=picture)[0])
    assert agreement > 0.95


def test_resize_keeps_its_scales_in_fp32() -> None:
    source = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Resize", ["c", "", "scales"], ["y"], mode="linear"),
        ],
        {"x": (FP32, ["batch", 3, 8, 8])},
        {"y": (FP32, ["batch", 4, 12, 12])},
        {"w": weights(4, 3, 3, 3), "scales": floats([1, 1, 2, 2])},
    )
    result = converted(source)
    assert computes_in(result.proto, "Resize") == {TensorProto.FLOAT16}
    assert types(result.proto)["scales"] == TensorProto.FLOAT
    close(source, result, x=X)


def test_an_old_file_with_weights_among_its_inputs_and_from_constant_of_shape() -> None:
    fill = numpy_helper.from_array(floats([0.25]))
    source = model(
        [
            node("ConstantOfShape", ["filter_shape"], ["w"], value=fill),
            node("Conv", ["x", "w", "b"], ["y"]),
        ],
        {"x": (FP32, ["batch", 3, 8, 8])},
        {"y": (FP32, ["batch", 4, 6, 6])},
        {"filter_shape": integers([4, 3, 3, 3]), "b": weights(4)},
        opset=9,
        ir_version=3,
    )
    result = converted(source)
    assert result.proto.ir_version >= 4
    assert [value.name for value in result.proto.graph.input] == ["x"]
    assert computes_in(result.proto, "Conv") == {TensorProto.FLOAT16}
    close(source, result, x=X)


def branches(then: str = "Relu") -> onnx.ModelProto:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 4])
        nodes = [node("MatMul", ["h", f"{name}_w"], [f"{name}_m"]), node(operator, [f"{name}_m"], [f"{name}_y"])]
        inner = numpy_helper.from_array(weights(4, 4), f"{name}_w")
        return helper.make_graph(nodes, name, [], [output], [inner])

    return model(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("If", ["flag"], ["chosen"], then_branch=branch("then", then), else_branch=branch("else", "Neg")),
            node("Add", ["chosen", "h"], ["y"]),
        ],
        {"x": (FP32, ["batch", 4]), "flag": (DataType.BOOL, [])},
        {"y": (FP32, ["batch", 4])},
        {"w": weights(4, 4)},
    )


@pytest.mark.parametrize("flag", [True, False])
def test_branches_are_converted_inside(flag: bool) -> None:
    source = branches()
    result = converted(source)
    [if_node] = [n for n in result.proto.graph.node if n.op_type == "If"]
    for attribute in if_node.attribute:
        assert {tensor.data_type for tensor in attribute.g.initializer} == {TensorProto.FLOAT16}
    close(source, result, x=weights(3, 4), flag=np.array(flag))


@pytest.mark.parametrize("local", ["y", "later"])
def test_names_inside_a_branch_may_be_those_of_values_made_later_outside(local: str) -> None:
    def branch(name: str, inner: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{name}_o" if inner == "later" else inner, TensorProto.FLOAT, [3, 4])
        nodes = [node("MatMul", ["x", "w"], [inner])]
        if inner == "later":
            nodes.append(node("Relu", [inner], [output.name]))
        return helper.make_graph(nodes, name, [], [output])

    made = "y" if local == "y" else "z"
    after = [] if local == "y" else [node("MatMul", ["z", "w"], ["later"]), node("Neg", ["later"], ["y"])]
    branches = {"then_branch": branch("then", local), "else_branch": branch("else", local)}
    source = model(
        [node("If", ["flag"], [made], **branches), *after],
        {"x": (FP32, [3, 4]), "flag": (DataType.BOOL, [])},
        {"y": (FP32, [3, 4])},
        {"w": weights(4, 4)},
    )
    close(source, converted(source), x=weights(3, 4, seed=1), flag=np.array(True))


def test_what_a_branch_makes_wide_is_wide_outside() -> None:
    source = branches("Exp")
    result = converted(source)
    assert result.kept["Add: wide values"] == 1
    close(source, result, x=weights(3, 4), flag=np.array(True))


def loop(*nodes: onnx.NodeProto, start: str = "MatMul") -> onnx.ModelProto:
    """``nodes`` make ``s_next`` of ``s`` in each of three turns; ``start`` makes the first ``s`` of x and w."""
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), *nodes],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s_next", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    return model(
        [node(start, ["x", "w"], ["s0"]), node("Loop", ["times", "", "s0"], ["y"], body=body)],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"times": np.array(3), "w": weights(4, 4)},
    )


def test_a_loop_that_captures_a_weight_and_carries_a_state() -> None:
    source = loop(node("MatMul", ["s", "w"], ["m"]), node("Tanh", ["m"], ["s_next"]))
    result = converted(source)
    [once] = [n for n in result.proto.graph.node if n.op_type == "Loop"]
    [inside] = [a.g for a in once.attribute if a.name == "body"]
    assert Counter(n.op_type for n in inside.node)["Cast"] == 2
    close(source, result, x=weights(3, 4))


def test_a_state_with_the_name_of_a_constant_outside() -> None:
    source = loop(node("Neg", ["s"], ["n"]), node("Abs", ["n"], ["s_next"]))
    source.graph.node.append(node("Mul", ["y", "s"], ["z"]))
    source.graph.output[0].name = "z"
    source.graph.initializer.append(numpy_helper.from_array(floats(2), "s"))
    result = converted(source)
    assert "Neg: constants" not in result.kept
    close(source, result, x=weights(3, 4))


def test_a_wide_value_is_wide_in_the_loop_it_enters() -> None:
    source = loop(node("Neg", ["s"], ["s_next"]), start="Pow")
    source.graph.initializer[1].CopyFrom(numpy_helper.from_array(floats([2, 3, 2, 2]), "w"))
    result = converted(source)
    assert result.kept["Neg: wide values"] == 1
    close(source, result, x=weights(3, 4))


def test_nodes_are_sorted_even_if_the_source_is_not() -> None:
    source = convolution()
    nodes = list(source.graph.node)[::-1]
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(source)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    close(source, converted(shuffled), x=X)


def test_a_cycle_is_refused() -> None:
    source = model(
        [node("Add", ["x", "b"], ["a"], name="first"), node("Relu", ["a"], ["b"])],
        {"x": (FP32, [1])},
        {"b": (FP32, [1])},
    )
    with pytest.raises(ModelError, match="cycle"):
        to_half(source, FP16, Path())


def test_external_data_is_read(tmp_path: Path) -> None:
    source = convolution()
    path = tmp_path / "model.onnx"
    onnx.save_model(convolution(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    result = converted(onnx.load(path, load_external_data=False), folder=tmp_path)
    np.testing.assert_allclose(run(result.proto, x=X)[0], run(source, x=X)[0], atol=5e-3)


def test_a_value_wanted_in_both_precisions_is_cast_once() -> None:
    source = model(
        [
            node("MatMul", ["x", "w"], ["m"]),
            node("ReduceMean", ["m"], ["mean"], axes=[1], keepdims=1),
            node("Exp", ["m"], ["e"]),
            node("Add", ["mean", "e"], ["y"]),
        ],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"w": weights(4, 4)},
    )
    result = converted(source)
    casts = Counter(n.input[0] for n in result.proto.graph.node if n.op_type == "Cast")
    assert set(casts.values()) == {1}
    assert computes_in(result.proto, "Exp") == computes_in(result.proto, "ReduceMean") == {TensorProto.FLOAT}
    close(source, result, x=weights(3, 4))


def test_functions_and_foreign_operators() -> None:
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    source = model(
        [
            node("Twice", ["x"], ["t"], domain="mine"),
            node("Gelu", ["t"], ["g"], domain="com.microsoft"),
            node("MatMul", ["g", "w"], ["y"]),
        ],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"w": weights(4, 4)},
        domains={"mine": 1, "com.microsoft": 1},
        functions=[function],
    )
    result = to_half(source, FP16, Path())
    assert "no half precision in ONNX" in " ".join(result.kept)
    close(source, result, x=weights(3, 4))


@pytest.mark.parametrize("operator", ["Div", "Pow", "Cast", "Clip", "ReduceSum"])
def test_a_name_of_onnx_in_another_domain_means_nothing(operator: str) -> None:
    source = model(
        [node("Relu", ["x"], ["r"]), node(operator, ["r"], ["f"], domain="theirs"), node("Relu", ["f"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        domains={"theirs": 1},
    )
    result = to_half(source, FP16, Path())
    assert result.kept == {f"{operator}: no half precision in ONNX": 1}
    [foreign] = [n for n in result.proto.graph.node if n.domain == "theirs"]
    [cast] = [n for n in result.proto.graph.node if n.output[0] == foreign.input[0]]
    assert (cast.op_type, cast.attribute[0].i) == ("Cast", TensorProto.FLOAT)


def test_a_graph_that_is_half_already_is_not_changed() -> None:
    source = converted(convolution(), half_inputs=True, half_outputs=True).proto
    source_nodes = len(source.graph.node)
    again = converted(source)
    assert (again.half_nodes, again.already_half) == (0, source_nodes)
    assert [n.op_type for n in again.proto.graph.node] == [n.op_type for n in source.graph.node]


def test_what_was_half_in_the_source_is_not_cast_back() -> None:
    """In a branch, too: of casts there and back ONNX Runtime 1.31 drops both, and then lacks what the branch reads."""
    source = model(
        [
            node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
            node(
                "If",
                ["flag"],
                ["z"],
                then_branch=branch_of("then", node("MatMul", ["f", "w"], ["then"])),
                else_branch=branch_of("else", node("MatMul", ["f", "w"], ["else"])),
            ),
            node("MatMul", ["f", "w"], ["m"]),
            node("Add", ["z", "m"], ["y"]),
        ],
        {"x": (FP32, ["batch", 4]), "flag": (DataType.BOOL, [])},
        {"y": (FP32, ["batch", 4]), "f": (FP32, ["batch", 4])},
        {"w": weights(4, 4)},
    )
    for half_outputs in (False, True):
        result = converted(source, half_outputs=half_outputs)
        [product] = [n for n in result.proto.graph.node if n.op_type == "MatMul"]
        assert product.input[0] == ("f" if half_outputs else "h")
        inputs = {"x": weights(2, 4), "flag": np.array(True)}
        for expected, actual in zip(run(source, **inputs), run(result.proto, **inputs), strict=True):
            np.testing.assert_allclose(actual, expected, atol=5e-3 * float(np.abs(expected).max()))


def normalised(*nodes: onnx.NodeProto, scale: float = 500, **constants: npt.NDArray[Any]) -> onnx.ModelProto:
    """``nodes`` make ``d`` from ``h``, which is ``x`` times ``scale`` in half; a matrix product reads it."""
    return model(
        [node("Mul", ["x", "scale"], ["h"]), *nodes, node("MatMul", ["d", "w"], ["y"])],
        {"x": (FP32, ["batch", 16])},
        {"y": (FP32, ["batch", 4])},
        {"scale": floats(scale), "w": weights(16, 4), **constants},
    )


AXIS = integers([1])
NORMALISATIONS = {
    "rms by Div": normalised(
        node("Pow", ["h", "two"], ["q"]),
        node("ReduceMean", ["q"], ["m"], axes=[1]),
        node("Add", ["m", "eps"], ["e"]),
        node("Sqrt", ["e"], ["r"]),
        node("Div", ["h", "r"], ["d"]),
        two=floats(2),
        eps=floats(1e-6),
    ),
    "rms by Reciprocal": normalised(
        node("Mul", ["h", "h"], ["q"]),
        node("ReduceMean", ["q"], ["m"], axes=[1]),
        node("Sqrt", ["m"], ["r"]),
        node("Reciprocal", ["r"], ["i"]),
        node("Mul", ["h", "i"], ["d"]),
    ),
    "rms by Pow": normalised(
        node("Pow", ["h", "two"], ["q"]),
        node("ReduceMean", ["q"], ["m"], axes=[1]),
        node("Pow", ["m", "exponent"], ["i"]),
        node("Mul", ["h", "i"], ["d"]),
        two=floats(2),
        exponent=floats(-0.5),
    ),
    "L1": normalised(
        node("ReduceL1", ["h"], ["s"], axes=[1]),
        node("Clip", ["s", "eps"], ["c"]),
        node("Div", ["h", "c"], ["d"]),
        scale=20000,
        eps=floats(1e-12),
    ),
    "softmax by Exp": normalised(
        node("Exp", ["h"], ["e"]),
        node("ReduceSum", ["e", "axis"], ["s"]),
        node("Div", ["one", "s"], ["i"]),
        node("Mul", ["e", "i"], ["d"]),
        scale=20,
        one=floats(1),
        axis=AXIS,
    ),
    "division by what may be 0": normalised(
        node("Relu", ["h"], ["p"]),
        node("ReduceMax", ["p"], ["m"], axes=[1]),
        node("Add", ["m", "eps"], ["e"]),
        node("Div", ["p", "e"], ["d"]),
        scale=-10,
        eps=floats(1e-12),
    ),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_what_leaves_the_range_stays_fp32_until_it_is_back(name: str) -> None:
    source = NORMALISATIONS[name]
    result = converted(source)
    assert computes_in(result.proto, "MatMul") == {TensorProto.FLOAT16}
    x = weights(4, 16, seed=5)
    x[0] = np.abs(x[0])
    [expected] = run(source, x=x)
    np.testing.assert_allclose(in_half(result.proto, x=x)[0], expected, atol=5e-3 * float(np.abs(expected).max()))


def test_counts_stay_exact_until_they_are_integers() -> None:
    source = model(
        [
            node("CumSum", ["x", "axis"], ["count"]),
            node("Sub", ["count", "one"], ["index"]),
            node("Cast", ["index"], ["y"], to=TensorProto.INT64),
        ],
        {"x": (FP32, ["batch", 4096])},
        {"y": (INT64, ["batch", 4096])},
        {"axis": np.array(1), "one": floats(1)},
    )
    [counted] = in_half(converted(source).proto, x=np.ones((1, 4096), np.float32))
    np.testing.assert_array_equal(counted[0], np.arange(4096))


ROOTS_OF_A_SIZE = {
    "scores over Pow": [
        node("MatMul", ["x", "w"], ["scores"]),
        node("Pow", ["length", "half"], ["root"]),
        node("Div", ["scores", "root"], ["scaled"]),
    ],
    "scores times Pow": [
        node("MatMul", ["x", "w"], ["scores"]),
        node("Pow", ["length", "minus_half"], ["scale"]),
        node("Mul", ["scores", "scale"], ["scaled"]),
    ],
    "query and key each times a fourth root": [
        node("Sqrt", ["length"], ["root"]),
        node("Div", ["one", "root"], ["scale"]),
        node("Sqrt", ["scale"], ["fourth"]),
        node("Mul", ["x", "fourth"], ["query"]),
        node("Mul", ["w", "fourth"], ["key"]),
        node("MatMul", ["query", "key"], ["scaled"]),
    ],
}


@pytest.mark.parametrize("name", ROOTS_OF_A_SIZE)
def test_attention_scaled_by_the_root_of_a_size_stays_half(name: str) -> None:
    size = [node("Shape", ["x"], ["size"], start=1), node("Cast", ["size"], ["length"], to=TensorProto.FLOAT)]
    source = model(
        [*size, *ROOTS_OF_A_SIZE[name], node("Softmax", ["scaled"], ["y"])],
        {"x": (FP32, ["batch", 16])},
        {"y": (FP32, ["batch", 4])},
        {"w": weights(16, 4), "one": floats([1]), "half": floats(0.5), "minus_half": floats(-0.5)},
    )
    result = converted(source)
    assert not {"Mul: whole values", "Mul: tiny values", "Div: wide values"} & result.kept.keys()
    assert computes_in(result.proto, "MatMul") == computes_in(result.proto, "Softmax") == {TensorProto.FLOAT16}
    close(source, result, x=weights(3, 16))


@pytest.mark.parametrize(("share", "axes", "is_mean"), [
    (node("Mul", ["sum", "n_th"], ["mean"]), [1, 2], True),
    (node("Mul", ["n_th", "sum"], ["mean"]), [1, 2], True),
    (node("Div", ["sum", "n"], ["mean"]), [1, 2], True),
    (node("Div", ["n", "sum"], ["mean"]), [1, 2], False),
    (node("Mul", ["sum", "n"], ["mean"]), [1, 2], False),
    (node("Mul", ["sum", "n_th"], ["mean"]), [0, 1, 2], False),  # of who knows how many
])  # fmt: skip
def test_a_sum_over_the_number_of_its_addends_is_in_range(
    share: onnx.NodeProto, axes: list[int], is_mean: bool
) -> None:
    """TensorFlow's way to say layer normalisation; sizes are known as far as the graph computes them."""
    source = model(
        [
            node("Mul", ["x", "scale"], ["scaled"]),
            node("Shape", ["x"], ["rows"], end=1),
            node("Concat", ["rows", "rest"], ["shape"], axis=0),
            node("Reshape", ["scaled", "shape"], ["h"]),
            node("ReduceSum", ["h", "axes"], ["sum"], keepdims=1),
            share,
            node("Sub", ["h", "mean"], ["d"]),
            node("Mul", ["d", "d"], ["q"]),
            node("ReduceSum", ["q", "axes"], ["squares"], keepdims=1),
            node("Div", ["squares", "n"], ["m"]),
            node("Sqrt", ["m"], ["r"]),
            node("Div", ["d", "r"], ["y"]),
        ],
        {"x": (FP32, ["batch", 3, 512])},
        {"y": (FP32, ["batch", 3, 512])},
        {
            "scale": floats(1000),
            "rest": integers([3, 512]),
            "axes": integers(axes),
            "n": floats(1536),
            "n_th": floats(1 / 1536),
        },
    )
    result = converted(source)
    assert computes_in(result.proto, "Sub") == {TensorProto.FLOAT16 if is_mean else TensorProto.FLOAT}
    assert computes_in(result.proto, "Sqrt") == computes_in(result.proto, "Div") == {TensorProto.FLOAT}
    x = 1 + weights(2, 3, 512)
    [expected] = run(source, x=x)
    np.testing.assert_allclose(in_half(result.proto, x=x)[0], expected, atol=2e-3 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("axes", "opset", "half"), [
    ([2, 3], 13, True),
    ([3, 2], 17, True),
    ([-1, -2], 18, True),
    ([1], 17, False),
    ([-1], 18, False),  # a layer normalisation's
    ([1, 2, 3], 18, False),
])  # fmt: skip
def test_a_mean_over_pictures_is_a_pooling(axes: list[int], opset: int, half: bool) -> None:
    """Newer exporters write ReduceMean for GlobalAveragePool."""
    in_node = opset < 18
    mean = node("ReduceMean", ["c"] if in_node else ["c", "axes"], ["y"], **({"axes": axes} if in_node else {}))
    source = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            *([] if in_node else [node("Constant", [], ["axes"], value=numpy_helper.from_array(integers(axes)))]),
            mean,
        ],
        {"x": (FP32, ["batch", 3, 8, 8])},
        {"y": (FP32, [None] * 4)},
        {"w": weights(4, 3, 3, 3)},
        opset=opset,
    )
    result = converted(source)
    assert computes_in(result.proto, "ReduceMean") == {TensorProto.FLOAT16 if half else TensorProto.FLOAT}
    close(source, result, x=X)


@pytest.mark.parametrize(("width", "half", "sampled"), [
    (200, FP16, FP16),
    (300, FP16, FP32),
    (32, BF16, BF16),
    (200, BF16, FP32),
    (None, FP16, FP32),
])  # fmt: skip
def test_positions_are_not_rounded(width: int | None, half: DataType, sampled: DataType) -> None:
    """Of the pixels 199 and 199.03 FP16 makes one."""
    size = width or 200
    ramp = np.arange(size, dtype=np.float32).reshape(1, 1, 1, size) / size
    source = model(
        [
            node("MatMul", ["x", "w"], ["flow"]),
            node("Add", ["pixels", "flow"], ["across"]),
            node("Mul", ["across", "scale"], ["scaled"]),
            node("Sub", ["scaled", "one"], ["unit"]),
            node("Concat", ["unit", "zeros"], ["grid"], axis=3),
            node("GridSample", ["picture", "grid"], ["y"], align_corners=1),
        ],
        {"x": (FP32, [1, 1, size, 4]), "picture": (FP32, [1, 1, 1, width])},
        {"y": (FP32, [1, 1, 1, size])},
        {
            "w": weights(4, 1) / 10,
            "pixels": np.arange(size, dtype=np.float32).reshape(1, 1, size, 1),
            "zeros": np.zeros((1, 1, size, 1), np.float32),
            "scale": floats(2 / (size - 1)),
            "one": floats(1),
        },
        opset=20,
    )
    result = converted(source, half)
    assert computes_in(result.proto, "MatMul") == {half.onnx}
    assert {computes_in(result.proto, kind).pop() for kind in ("Add", "Mul", "Sub", "Concat")} == {TensorProto.FLOAT}
    assert computes_in(result.proto, "GridSample") == {sampled.onnx}
    x = weights(1, 1, size, 4)
    if half is FP16:
        [expected] = run(source, x=x, picture=ramp)
        limit = 1e-3 if sampled is FP16 else 1e-5
        np.testing.assert_allclose(in_half(result.proto, x=x, picture=ramp)[0], expected, atol=limit)


def test_boxes_of_regions_are_not_rounded_before_their_end() -> None:
    source = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("GlobalAveragePool", ["c"], ["p"]),
            node("Reshape", ["p", "boxes"], ["shift"]),
            node("Add", ["shift", "anchors"], ["rois"]),
            node("RoiAlign", ["x", "rois", "zero"], ["y"]),
        ],
        {"x": (FP32, [1, 3, 8, 8])},
        {"y": (FP32, [1, 3, 1, 1])},
        {
            "w": weights(4, 3, 3, 3),
            "boxes": integers([1, 4]),
            "anchors": floats([[1, 1, 5, 6]]),
            "zero": integers([0]),
        },
    )
    result = converted(source)
    assert computes_in(result.proto, "Reshape") == computes_in(result.proto, "Add") == {TensorProto.FLOAT}
    assert computes_in(result.proto, "Conv") == computes_in(result.proto, "RoiAlign") == {TensorProto.FLOAT16}
    close(source, result, x=X[:1])


@pytest.mark.parametrize(("reduction", "kept"), [("none", TensorProto.FLOAT16), ("add", TensorProto.FLOAT)])
def test_scattering_moves_or_adds(reduction: str, kept: int) -> None:
    source = model(
        [
            node("MatMul", ["x", "w"], ["m"]),
            node("ScatterElements", ["m", "places", "x"], ["y"], axis=1, reduction=reduction),
        ],
        {"x": (FP32, [3, 4])},
        {"y": (FP32, [3, 4])},
        {"w": weights(4, 4), "places": integers([[0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0]])},
    )
    result = converted(source)
    assert computes_in(result.proto, "ScatterElements") == {kept}
    close(source, result, x=weights(3, 4))


def test_a_hard_swish_is_split_for_bf16() -> None:
    """TensorRT takes it in FP16 and FP32 alone, and its parts in BF16 too."""
    one, other = (branch_of(name, node("HardSwish", ["h"], [name])) for name in ("one", "other"))
    source = model(
        [
            node("MatMul", ["x", "w"], ["m"]),
            node("HardSwish", ["m"], ["h"]),
            node("Identity", ["h"], ["h_gate"]),
            node("If", ["flag"], ["y"], then_branch=one, else_branch=other),
        ],
        {"x": (FP32, ["batch", 4]), "flag": (DataType.BOOL, [])},
        {"y": (FP32, ["batch", 4]), "h_gate": (FP32, ["batch", 4])},
        {"w": weights(4, 4)},
    )
    assert computes_in(converted(source).proto, "HardSwish") == {TensorProto.FLOAT16}
    result = converted(source, BF16)
    assert computes_in(result.proto, "HardSigmoid") == computes_in(result.proto, "Mul") == {TensorProto.BFLOAT16}
    inputs = {"x": weights(3, 4), "flag": np.array(True)}
    for expected, actual in zip(run(source, **inputs), in_half(result.proto, **inputs), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2.0**-6 * float(np.abs(expected).max()))


def test_after_a_normalisation_half_goes_on() -> None:
    """Only the statistics and the division itself are FP32: the scale behind them is half again."""
    source = model(
        [
            node("ReduceMean", ["x"], ["mean"], axes=[1]),
            node("Sub", ["x", "mean"], ["c"]),
            node("Pow", ["c", "two"], ["q"]),
            node("ReduceMean", ["q"], ["m"], axes=[1]),
            node("Add", ["m", "eps"], ["e"]),
            node("Sqrt", ["e"], ["r"]),
            node("Div", ["c", "r"], ["d"]),
            node("Mul", ["d", "gamma"], ["g"]),
            node("Add", ["g", "x"], ["y"]),
        ],
        {"x": (FP32, ["batch", 16])},
        {"y": (FP32, ["batch", 16])},
        {"two": floats(2), "eps": floats(1e-12), "gamma": weights(16)},
    )
    result = converted(source)
    assert computes_in(result.proto, "Sub") == computes_in(result.proto, "Mul") == {TensorProto.FLOAT16}
    assert result.half_nodes == 3
    close(source, result, x=weights(4, 16))


def test_constants_that_the_graph_computes_are_seen() -> None:
    source = model(
        [
            node("Constant", [], ["k"], value_float=1000.0),
            node("Mul", ["k", "thousand"], ["million"]),
            node("Unsqueeze", ["million", "axes"], ["c"]),
            node("MatMul", ["x", "w"], ["m"]),
            node("Add", ["m", "c"], ["a"]),
            node("Sub", ["a", "c"], ["s"]),
            node("Transpose", ["w"], ["wt"]),
            node("MatMul", ["s", "wt"], ["y"]),
        ],
        {"x": (FP32, ["batch", 8])},
        {"y": (FP32, ["batch", 8])},
        {"w": weights(8, 4), "thousand": floats(1000), "axes": integers([0])},
    )
    result = converted(source)
    assert Counter(n.op_type for n in result.proto.graph.node)["Transpose"] == 0
    assert computes_in(result.proto, "Add") == {TensorProto.FLOAT}
    assert computes_in(result.proto, "MatMul") == {TensorProto.FLOAT16}
    x = weights(3, 8)
    [expected] = run(source, x=x)
    np.testing.assert_allclose(in_half(result.proto, x=x)[0], expected, atol=1e-2 * float(np.abs(expected).max()))


def test_what_is_quantised_random_or_an_output_is_not_folded() -> None:
    source = model(
        [
            node("DequantizeLinear", ["q", "scale"], ["w"]),
            node("RandomNormal", [], ["noise"], shape=[4]),
            node("Mul", ["scale", "scale"], ["z"]),
            node("MatMul", ["x", "w"], ["m"]),
            node("Add", ["m", "noise"], ["y"]),
        ],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4]), "z": (FP32, [])},
        {"q": np.ones((4, 4), np.int8), "scale": floats(0.5)},
    )
    operators = Counter(n.op_type for n in converted(source).proto.graph.node)
    assert (operators["DequantizeLinear"], operators["RandomNormal"], operators["Mul"]) == (1, 1, 1)


def test_constants_are_what_onnx_runtime_makes_of_them() -> None:
    """Up to opset 12 a Softmax is over all axes from its own on, whatever ONNX's reference evaluator says."""
    source = model(
        [node("Softmax", ["w"], ["p"], axis=1), node("Mul", ["x", "p"], ["y"])],
        {"x": (FP32, ["batch", 3, 4])},
        {"y": (FP32, ["batch", 3, 4])},
        {"w": weights(1, 3, 4)},
        opset=12,
    )
    close(source, converted(source), x=weights(2, 3, 4, seed=1))


def test_a_large_constant_made_from_little_stays_a_node() -> None:
    source = model(
        [
            node("ConstantOfShape", ["shape"], ["w"], value=numpy_helper.from_array(floats([0.25]))),
            node("MatMul", ["x", "w"], ["y"]),
        ],
        {"x": (FP32, ["batch", 2048])},
        {"y": (FP32, ["batch", 2048])},
        {"shape": integers([2048, 2048])},
    )
    assert converted(source).proto.ByteSize() < 10_000


def test_a_large_constant_of_a_node_of_its_own_is_a_weight() -> None:
    source = model(
        [
            node("Constant", [], ["w"], value=numpy_helper.from_array(weights(2048, 1024))),
            node("MatMul", ["x", "w"], ["y"]),
        ],
        {"x": (FP32, ["batch", 2048])},
        {"y": (FP32, ["batch", 1024])},
    )
    [weight] = converted(source).proto.graph.initializer
    assert (weight.data_type, list(weight.dims)) == (TensorProto.FLOAT16, [2048, 1024])


def test_the_magnitudes_of_what_becomes_half() -> None:
    source = model(
        [
            node("Mul", ["x", "scale"], ["h"], name="scaled"),
            node("GlobalAveragePool", ["h"], ["g"]),
            node("Div", ["g", "scale"], ["y"]),
        ],
        {"x": (FP32, ["batch", 3, 8, 8])},
        {"y": (FP32, ["batch", 3, 1, 1])},
        {"scale": floats(60000)},
    )
    values = converted(source).half_values
    assert values.names == ("x", "h", "g", "y")
    proto, origins = with_magnitudes(source, values)
    assert origins[:2] == ["tensor 'x'", "node scaled (Mul)"]
    largest = run(proto, x=X)
    assert largest[0] == np.abs(X).max()
    assert largest[1] == pytest.approx(60000 * np.abs(X).max())


def half_graph(source: onnx.ModelProto, folder: Path) -> HalfGraph:
    result = converted(source)
    onnx.save(result.proto, folder / "graph.onnx")
    return HalfGraph(folder / "graph.onnx", source, FP16, result.half_values)


def test_a_value_out_of_range_is_refused_by_node(tmp_path: Path) -> None:
    source = model(
        [node("Mul", ["x", "scale"], ["h"], name="/scaled"), node("Softmax", ["h"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"scale": floats(60000)},
    )
    compare = half_graph(source, tmp_path).open()
    assert [file.name for file in tmp_path.iterdir()] == ["graph.onnx"]
    fits = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(compare({"x": fits})["y"], run(source, x=fits)[0])
    with pytest.raises(CompileError, match=r"node /scaled \(Mul\) reaches 1.2e\+05 .* FP16 holds 65504") as error:
        compare({"x": 2 * fits})
    assert "--bf16" in str(error.value.hint)


def test_infinities_of_the_source_itself_are_not_refused(tmp_path: Path) -> None:
    source = model(
        [node("Where", ["keep", "x", "lowest"], ["m"]), node("Softmax", ["m"], ["y"])],
        {"x": (FP32, ["batch", 4]), "keep": (DataType.BOOL, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"lowest": floats(-np.inf)},
    )
    compare = half_graph(source, tmp_path).open()
    arrays = {"x": weights(2, 4), "keep": np.array([[True, True, False, True]] * 2)}
    np.testing.assert_allclose(compare(arrays)["y"], run(source, **arrays)[0], atol=1e-3)


def louder(source: str, made: str) -> onnx.NodeProto:
    return node("Mul", [source, "thirty"], [made], name="/louder")


LOUDER = node(
    "If",
    ["flag"],
    ["l"],
    then_branch=branch_of("then", louder("s", "t"), node("Relu", ["t"], ["then"])),
    else_branch=branch_of("else", node("Relu", ["s"], ["e"]), node("Abs", ["e"], ["else"])),
)


def scan() -> onnx.ModelProto:
    """Six rows, each times thirty, side by side."""
    row, doubled = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("row", "made"))
    body = helper.make_graph([louder("row", "l"), node("Relu", ["l"], ["made"])], "body", [row], [doubled])
    return model(
        [node("Scan", ["rows"], ["y"], body=body, num_scan_inputs=1, scan_output_axes=[1])],
        {"rows": (FP32, [6, 4])},
        {"y": (FP32, [4, 6])},
        {"thirty": floats(30)},
    )


def with_flag(source: onnx.ModelProto) -> onnx.ModelProto:
    source.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    source.graph.initializer.append(numpy_helper.from_array(floats(30), "thirty"))
    return source


FLAG, NO_FLAG = {"flag": np.array(True)}, {"flag": np.array(False)}
ONES = np.ones((2, 4), np.float32)
ROWS = np.ones((6, 4), np.float32) * floats([[1], [1], [3], [1], [-3000], [1]])
BODIES: dict[str, tuple[onnx.ModelProto, dict[str, Any], dict[str, Any]]] = {
    "the last turn": (with_flag(loop(louder("s", "s_next"))), {"x": ONES / 2, **FLAG}, {"x": ONES, **FLAG}),
    "a branch in a turn": (
        with_flag(loop(LOUDER, node("Abs", ["l"], ["s_next"]))),
        {"x": 100 * ONES, **NO_FLAG},
        {"x": 10 * ONES, **FLAG},
    ),
    "one of the rows": (scan(), {"rows": ROWS / 2}, {"rows": ROWS}),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_looked_into(name: str, tmp_path: Path) -> None:
    source, fits, overflows = BODIES[name]
    compare = half_graph(source, tmp_path).open()
    [expected] = run(source, **fits)
    np.testing.assert_allclose(compare(fits)["y"], expected, atol=2e-3 * float(np.abs(expected).max()))
    with pytest.raises(CompileError, match=r"node /louder \(Mul\) reaches"):
        compare(overflows)


def test_an_empty_tensor_has_no_magnitude(tmp_path: Path) -> None:
    source = model(
        [node("Relu", ["x"], ["r"]), node("Neg", ["r"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
    )
    assert half_graph(source, tmp_path).open()({"x": weights(0, 4)})["y"].shape == (0, 4)
