"""Reading ONNX files: what they say of their inputs and outputs, and everything that can be wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.errors import ModelError
from repo_builder.model import DataType, ModelSpec
from repo_builder.onnx_model import constant_integers, read_model
from tests import models
from tests.models import FP32, INT64, Shape, identity, linear, model, node, save, weights, with_external_data


def read(proto: onnx.ModelProto, folder: Path) -> ModelSpec:
    return read_model(save(proto, folder / "net.onnx")).spec


def refusal(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_model(path)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("dtype", DataType)
def test_every_type_that_triton_has(dtype: DataType, tmp_path: Path) -> None:
    spec = read(identity(dtype), tmp_path)

    assert [tensor.dtype for tensor in (*spec.inputs, *spec.outputs)] == [dtype, dtype]
    assert dtype.onnx == TensorProto.DataType.Value(_ONNX_NAMES.get(dtype, dtype.value))


_ONNX_NAMES = {DataType.FP32: "FLOAT", DataType.FP64: "DOUBLE", DataType.FP16: "FLOAT16", DataType.BF16: "BFLOAT16"}


@pytest.mark.parametrize(
    "name", ["COMPLEX64", "COMPLEX128", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4", "UNDEFINED"]
)
@pytest.mark.parametrize("role", ["input", "output"])
def test_a_type_that_triton_lacks(name: str, role: str, tmp_path: Path) -> None:
    proto = linear()
    getattr(proto.graph, role)[0].type.tensor_type.elem_type = TensorProto.DataType.Value(name)

    error = refusal(save(proto, tmp_path / "net.onnx"))

    assert role in error.message
    assert name in error.message
    assert "FP32" in str(error.hint)


def test_an_element_type_from_the_future(tmp_path: Path) -> None:
    proto = linear()
    proto.graph.input[0].type.tensor_type.elem_type = 99

    assert "no known element type" in refusal(save(proto, tmp_path / "net.onnx")).message


@pytest.mark.parametrize(
    ("stated", "axes", "dims"),
    [
        (["batch", 3, "floor(height/2)", "width"], ("batch", 3, "floor(height/2)", "width"), (-1, 3, -1, -1)),
        (["?", 0, -1, None, ""], (None,) * 5, (-1,) * 5),
        ([1, 2, 3], (1, 2, 3), (1, 2, 3)),
        ([], (), ()),
    ],
    ids=["symbols and expressions", "free without a name", "fixed", "scalar"],
)
def test_shapes(stated: Shape, axes: tuple[object, ...], dims: tuple[int, ...], tmp_path: Path) -> None:
    (tensor,) = read(identity(FP32, stated, stated), tmp_path).inputs

    assert tensor.shape == axes
    assert tensor.dims == dims


def test_an_output_may_leave_its_rank_open_but_an_input_may_not(tmp_path: Path) -> None:
    (output,) = read(identity(FP32, ["N", 3], None), tmp_path).outputs
    assert output.shape is None
    with pytest.raises(ValueError, match="rank"):
        _ = output.dims

    assert "states no shape" in refusal(save(identity(FP32, None, ["N", 3]), tmp_path / "net.onnx")).message


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initialisers_are_no_inputs(ir_version: int, tmp_path: Path) -> None:
    proto = model(
        [node("Add", ["x", "W"], ["y"])],
        {"x": (FP32, ["N", 2])},
        {"y": (FP32, ["N", 2])},
        {"W": weights(2)},
        opset=8,
        ir_version=ir_version,
    )
    assert len(proto.graph.input) == (2 if ir_version == 3 else 1)

    spec = read(proto, tmp_path)

    assert [tensor.name for tensor in spec.inputs] == ["x"]
    assert (spec.ir_version, spec.opset) == (ir_version, 8)


def test_sparse_initialisers_are_no_inputs_either(tmp_path: Path) -> None:
    proto = linear()
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "sparse_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    proto.graph.input.append(models.value("sparse", FP32, [4]))

    assert [tensor.name for tensor in read(proto, tmp_path).inputs] == ["x"]


def test_functions_of_the_model_are_known_operators(tmp_path: Path) -> None:
    twice = helper.make_function(
        "", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [node("Twice", ["x"], ["y"])]
    tensors = {"x": (FP32, ["N"])}, {"y": (FP32, ["N"])}

    assert read(model(nodes, *tensors, functions=[twice]), tmp_path).inputs
    assert "Twice" in refusal(save(model(nodes, *tensors), tmp_path / "net.onnx")).message


def test_every_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Unheard", ["x"], ["t"])], "branch", [], [models.value("t", FP32, ["N"])])
    proto = model(
        [
            node("Invented", ["x"], ["a"], name="first"),
            node("Relu", ["a"], ["b"]),
            node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        ],
        {"x": (FP32, ["N"])},
        {"y": (FP32, ["N"])},
        {"c": np.array(True)},
    )

    message = refusal(save(proto, tmp_path / "net.onnx")).message

    assert "Invented (node 'first')" in message
    assert "Unheard (node 't')" in message
    assert "Relu" not in message


def test_operators_of_other_domains_are_left_to_the_runtime(tmp_path: Path) -> None:
    proto = model(
        [node("Gelu", ["x"], ["y"], domain="com.microsoft")],
        {"x": (FP32, ["N"])},
        {"y": (FP32, ["N"])},
        domains={"com.microsoft": 1},
    )

    assert read(proto, tmp_path).inputs


@pytest.mark.parametrize(
    "kind",
    [
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1])),
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [1])),
        helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1])),
    ],
    ids=["sequence", "map", "optional"],
)
def test_what_is_no_tensor(kind: onnx.TypeProto, tmp_path: Path) -> None:
    proto = linear()
    proto.graph.output[0].type.CopyFrom(kind)

    error = refusal(save(proto, tmp_path / "net.onnx"))

    assert "output 'y'" in error.message
    assert "only tensors" in error.message
    assert ("zipmap" in str(error.hint)) == (kind.WhichOneof("value") != "optional_type")


def test_an_output_without_type(tmp_path: Path) -> None:
    proto = linear()
    proto.graph.output[0].ClearField("type")

    assert "unknown" in refusal(save(proto, tmp_path / "net.onnx")).message


@pytest.mark.parametrize("role", ["input", "output"])
@pytest.mark.parametrize("name", ["", "y"])
def test_tensors_need_names_of_their_own(role: str, name: str, tmp_path: Path) -> None:
    proto = (
        models.two_outputs()
        if role == "output"
        else model([node("Add", ["y", "y"], ["z"])], {"x": (FP32, ["N"]), "y": (FP32, ["N"])}, {"z": (FP32, ["N"])})
    )
    for tensor in getattr(proto.graph, role):
        tensor.name = name

    assert f"{role}s without a name or with the same name" in refusal(save(proto, tmp_path / "net.onnx")).message


@pytest.mark.parametrize("name", [b"MatMul", b"weights.bin"])
def test_names_that_are_not_utf8(name: bytes, tmp_path: Path) -> None:
    path = with_external_data(tmp_path, "weights.bin")
    path.write_bytes(path.read_bytes().replace(name, name[:-2] + b"\xff\xfe"))

    assert "not UTF-8" in refusal(path).message


@pytest.mark.parametrize("role", ["input", "output"])
def test_names_with_an_end_within(role: str, tmp_path: Path) -> None:
    name = {"input": "x", "output": "y"}[role]
    data = linear().SerializeToString().replace(b"\x01" + name.encode(), b"\x01\0")
    path = tmp_path / "net.onnx"
    path.write_bytes(data)

    assert rf"the {role} '\x00', and Triton loads no model with a NUL in a name" in refusal(path).message


class TestFilesThatAreNoModels:
    def test_missing(self, tmp_path: Path) -> None:
        assert "does not exist" in refusal(tmp_path / "nothing.onnx").message

    def test_folder(self, tmp_path: Path) -> None:
        error = refusal(tmp_path)

        assert "is a folder" in error.message
        assert "*.onnx" in str(error.hint)

    def test_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.onnx"
        path.touch()

        assert "is empty" in refusal(path).message

    def test_name_that_is_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / os.fsdecode(b"\xff.onnx")
        path.write_bytes(linear().SerializeToString())

        assert "'\\udcff.onnx' is not UTF-8" in refusal(path).message.replace(str(tmp_path) + "/", "")

    @pytest.mark.usefixtures("file_modes_hold")
    def test_unreadable(self, tmp_path: Path) -> None:
        path = save(linear(), tmp_path / "net.onnx")
        path.chmod(0)

        assert "can't be read: Permission denied" in refusal(path).message

    @pytest.mark.parametrize(
        "data",
        [
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n",
            b"PK\x03\x04" + bytes(100),
            b"\x89PNG\r\n\x1a\n",
            b"<!DOCTYPE html><html></html>",
            b"\0",
            onnx.ModelProto(ir_version=8).SerializeToString(),
        ],
        ids=["git lfs", "zip", "png", "html", "nul", "no graph"],
    )
    def test_something_else(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "net.onnx"
        path.write_bytes(data)

        error = refusal(path)

        assert "ONNX" in error.message
        assert "Git LFS" in str(error.hint)


class TestExternalData:
    def test_is_found_once_and_relative_to_the_model(self, tmp_path: Path) -> None:
        path = with_external_data(tmp_path, "weights.bin")

        assert read_model(path).spec.external_files == (Path("weights.bin"),)

    def test_in_a_folder_below(self, tmp_path: Path) -> None:
        path = with_external_data(tmp_path, "data/layer/w.bin")
        (tmp_path / "data/layer").mkdir(parents=True)
        (tmp_path / "weights.bin").rename(tmp_path / "data/layer/w.bin")

        assert read_model(path).spec.external_files == (Path("data/layer/w.bin"),)

    @pytest.mark.parametrize("owner", ["branch", "function", "attribute"])
    def test_of_subgraphs_functions_and_attributes(self, owner: str, tmp_path: Path) -> None:
        tensor = numpy_helper.from_array(weights(3), "W")
        (tmp_path / "w.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
        constant = helper.make_node("Constant", [], ["w"])
        constant.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
        nodes = [constant, node("Add", ["x", "w"], ["y"])]
        functions = []
        if owner == "branch":
            branch = helper.make_graph(
                [node("Add", ["x", "W"], ["t"])], "b", [], [models.value("t", FP32, ["N"])], [tensor]
            )
            nodes = [node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
        elif owner == "function":
            functions = [helper.make_function("my", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])]
            nodes = [node("F", ["x"], ["y"], domain="my")]
        proto = model(
            nodes,
            {"x": (FP32, ["N"])},
            {"y": (FP32, ["N"])},
            {"c": np.array(True)},
            functions=functions,
            domains={"my": 1},
        )

        assert read(proto, tmp_path).external_files == (Path("w.bin"),)

    def test_of_sparse_weights(self, tmp_path: Path) -> None:
        proto = linear()
        values = numpy_helper.from_array(np.ones(1, np.float32), "S")
        (tmp_path / "values.bin").write_bytes(values.raw_data)
        values.ClearField("raw_data")
        values.data_location = TensorProto.EXTERNAL
        values.external_data.add(key="location", value="values.bin")
        indices = numpy_helper.from_array(np.zeros(1, np.int64))
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))

        assert read(proto, tmp_path).external_files == (Path("values.bin"),)

    def test_missing(self, tmp_path: Path) -> None:
        path = with_external_data(tmp_path, "gone.bin")

        error = refusal(path)

        assert "'gone.bin', which is missing" in error.message
        assert "gone.bin" in str(error.hint)

    def test_called_as_no_file_can_be(self, tmp_path: Path) -> None:
        assert "which can't be read: File name too long" in refusal(with_external_data(tmp_path, "w" * 300)).message

    @pytest.mark.parametrize("length", [{}, {"length": "48"}, {"offset": "0", "length": "48"}])
    def test_cut_short(self, tmp_path: Path, length: dict[str, str]) -> None:
        path = with_external_data(tmp_path, "weights.bin")
        proto = onnx.load(path, load_external_data=False)
        for key, value in length.items():
            proto.graph.initializer[0].external_data.add(key=key, value=value)
        save(proto, path)
        whole = (tmp_path / "weights.bin").read_bytes()
        assert len(whole) == 48
        assert read_model(path).spec.external_files
        (tmp_path / "weights.bin").write_bytes(whole[:-1])

        error = refusal(path)

        assert "'weights.bin', which is too short: 47 bytes of at least 48" in error.message
        assert f"copy weights.bin into {tmp_path}/ again" in str(error.hint)

    @pytest.mark.parametrize("entry", [("offset", "-1"), ("offset", "two"), ("length", "2.5")])
    def test_at_a_place_that_is_none(self, tmp_path: Path, entry: tuple[str, str]) -> None:
        path = with_external_data(tmp_path, "weights.bin")
        proto = onnx.load(path, load_external_data=False)
        proto.graph.initializer[0].external_data.add(key=entry[0], value=entry[1])

        assert "does not say where in 'weights.bin'" in refusal(save(proto, path)).message

    @pytest.mark.parametrize(
        "location",
        ["../secret", "data/../../secret", "/etc/passwd", "", "weights\0.bin"],
    )
    def test_outside_the_models_folder(self, location: str, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(48))

        error = refusal(with_external_data(tmp_path / "model", location))

        assert "outside the folder" in error.message
        assert repr(location) in error.message

    def test_by_way_of_another_folder(self, tmp_path: Path) -> None:
        """Inside all the same, but the path would not lead there from the published copy."""
        error = refusal(with_external_data(tmp_path / "model", "data/../weights.bin"))

        assert "'data/../weights.bin', a path with '..' in it" in error.message
        assert "outside" not in error.message

    def test_behind_a_link_that_leaves_the_folder(self, tmp_path: Path) -> None:
        path = with_external_data(tmp_path / "model", "link.bin")
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(48))
        (tmp_path / "model/link.bin").symlink_to(secret)

        assert "outside the folder" in refusal(path).message

    def test_behind_a_folder_that_is_a_link(self, tmp_path: Path) -> None:
        path = with_external_data(tmp_path / "model", "data/secret")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/secret").write_bytes(bytes(48))
        (tmp_path / "model/data").symlink_to(tmp_path / "elsewhere")

        assert "outside the folder" in refusal(path).message

    def test_linked_to_where_the_model_itself_is_linked_to(self, tmp_path: Path) -> None:
        """Hugging Face's cache: a snapshot's files are links into one folder of blobs."""
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1234"
        original = with_external_data(blobs, "model.onnx_data", name="aaaa")
        (blobs / "weights.bin").rename(blobs / "bbbb")
        snapshot.mkdir(parents=True)
        (snapshot / "model.onnx").symlink_to(original)
        (snapshot / "model.onnx_data").symlink_to("../../blobs/bbbb")

        assert read_model(snapshot / "model.onnx").spec.external_files == (Path("model.onnx_data"),)


def test_integers_of_a_constant() -> None:
    outside = numpy_helper.from_array(np.array([1, 2]))
    outside.data_location = TensorProto.EXTERNAL
    broken = numpy_helper.from_array(np.array([1, 2]))
    broken.raw_data = b"123"

    assert constant_integers(numpy_helper.from_array(np.array([[1], [-1]]))) == [1, -1]
    assert constant_integers(numpy_helper.from_array(np.array(7, np.int32))) == [7]
    assert constant_integers(numpy_helper.from_array(np.array([1.5]))) == []
    assert constant_integers(outside) == []
    assert constant_integers(broken) == []


def test_a_spec_reads_well() -> None:
    from repo_builder.model import TensorSpec

    assert str(TensorSpec("ids", INT64, ("batch", None, 3))) == "ids INT64 [batch, ?, 3]"
    assert str(TensorSpec("ids", INT64, None)) == "ids INT64 [unknown rank]"
