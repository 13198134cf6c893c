"""ONNX Runtime behind one small class: every type in and out, and its errors in one readable line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from repo_builder.errors import MissingExtraError, ModelError
from repo_builder.model import DataType
from repo_builder.runtime import RunError, open_session, runtime_version, tidy_message
from tests import models
from tests.conftest import Cli
from tests.models import FP32, Shape, identity, linear, lookup, model, node, save

VALUES = {
    DataType.BOOL: np.array([[True, False, True]]),
    DataType.STRING: np.array([["", "naïve ☕", "b"]], object),
    DataType.FP16: np.array([[1.5, -np.inf, 65504]], np.float16),
    DataType.FP32: np.array([[1.5, np.nan, 3e38]], np.float32),
    DataType.FP64: np.array([[1.5, -0.0, 1e308]]),
    DataType.BF16: np.array([[1.5, -np.inf, 3e38]], ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("dtype", DataType)
def test_every_type_goes_in_and_comes_out(dtype: DataType, tmp_path: Path) -> None:
    session = open_session(save(identity(dtype), tmp_path / "net.onnx"))
    if dtype in VALUES:
        array = VALUES[dtype]
    else:
        limits = np.iinfo(dtype.numpy)
        array = np.array([[limits.min, 7, limits.max]], dtype.numpy)

    (got,) = session.run({"x": array}).values()

    assert [tensor.dtype for tensor in (*session.inputs, *session.outputs)] == [dtype, dtype]
    assert got.dtype == array.dtype
    comparable = np.float64 if dtype.is_float else object
    np.testing.assert_array_equal(got.astype(comparable), array.astype(comparable))


@pytest.mark.parametrize("dtype", [FP32, DataType.BF16, DataType.STRING])
@pytest.mark.parametrize(("stated", "shape"), [([], ()), (["N"], (0,)), (["N", 3], (0, 3)), (["N", 2, 2], (1, 2, 2))])
def test_scalars_and_nothing_at_all(dtype: DataType, stated: Shape, shape: tuple[int, ...], tmp_path: Path) -> None:
    session = open_session(save(identity(dtype, stated, stated), tmp_path / "net.onnx"))
    array = np.full(shape, "a" if dtype is DataType.STRING else 1, dtype.numpy_dtype())

    (got,) = session.run({"x": array}).values()

    assert got.shape == shape
    np.testing.assert_array_equal(got.astype(object), array.astype(object))


def test_an_array_that_is_not_laid_out_in_order(tmp_path: Path) -> None:
    for dtype in (FP32, DataType.BF16):
        array = np.arange(12).reshape(3, 4).astype(dtype.numpy_dtype()).T
        session = open_session(save(identity(dtype, ["N", 3], ["N", 3]), tmp_path / "net.onnx"))

        np.testing.assert_array_equal(session.run({"x": array})["y"].astype(float), array.astype(float))


def test_shapes_are_as_the_runtime_sees_them(tmp_path: Path) -> None:
    """The file says nothing of its output; ONNX Runtime infers it."""
    session = open_session(save(identity(FP32, ["batch", "?", None, 3], None), tmp_path / "net.onnx"))

    assert session.inputs[0].shape == ("batch", None, None, 3)
    assert session.outputs[0].dims == (-1, -1, -1, 3)


@pytest.mark.parametrize("options", [{"int8_kernels": False}, {"fused": False}])
def test_quantised_models_as_the_graph_says(options: dict[str, bool], tmp_path: Path) -> None:
    """To the bit what NumPy makes of the graph, node by node; this machine's kernels may be far from it."""
    proto = models.quantised(tmp_path / "net.onnx")
    x = {"x": models.weights(8, 16, seed=1) + 3}

    (y,) = open_session(tmp_path / "net.onnx", **options).run(x).values()

    (expected,) = ReferenceEvaluator(proto).run(None, x)
    np.testing.assert_array_equal(y, expected)
    assert len(np.unique(y)) > 5


class TestErrors:
    @pytest.mark.parametrize(
        ("x", "why"),
        [
            ({"ids": np.array([[5, 5]])}, "indices element out of data bounds"),
            ({"ids": np.array([5])}, "Invalid rank for input: ids Got: 1 Expected: 2"),
            ({"ids": np.array([[0.5, 1]])}, "Unexpected input data type"),
            ({}, "ids"),
        ],
    )
    def test_of_a_run_are_one_line(
        self, x: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]], why: str, tmp_path: Path
    ) -> None:
        session = open_session(save(lookup(), tmp_path / "net.onnx"))

        with pytest.raises(RunError, match=why) as caught:
            session.run(x)
        assert "\n" not in str(caught.value)
        assert "[ONNXRuntimeError]" not in str(caught.value)

    @pytest.mark.parametrize(
        ("proto", "why"),
        [
            (
                model([node("Relu", ["x"], ["y"])], {"x": (FP32, [1])}, {"y": (FP32, [1])}, ir_version=99),
                "its ir_version is 99, the newest it reads [0-9]+",
            ),
            (
                model([node("Relu", ["x"], ["y"])], {"x": (FP32, [1])}, {"y": (FP32, [1])}, opset=99),
                "ONNX Runtime only",
            ),
            (
                model([node("Relu", ["z"], ["y"])], {"x": (FP32, [1])}, {"y": (FP32, [1])}),
                "This is an invalid model|Invalid",
            ),
        ],
        ids=["IR version", "opset", "graph"],
    )
    def test_of_loading_are_one_line_without_source_code(
        self, proto: onnx.ModelProto, why: str, tmp_path: Path
    ) -> None:
        path = save(proto, tmp_path / "net.onnx")

        with pytest.raises(ModelError, match=why) as caught:
            open_session(path)

        message = caught.value.message
        assert message.startswith(f"ONNX Runtime can't load {path}: ")
        assert message.count(str(path)) == 1
        for noise in ("\n", "onnxruntime_src", ".cc:", ".h:", "std::", "[ONNXRuntimeError]"):
            assert noise not in message

    def test_of_a_version_that_is_too_new_is_no_matter_of_the_opset(self, tmp_path: Path) -> None:
        path = save(linear(), tmp_path / "net.onnx")
        proto = onnx.load(path)
        proto.ir_version = 99

        with pytest.raises(ModelError) as caught:
            open_session(save(proto, path))

        hint = str(caught.value.hint)
        assert "opset" not in hint
        (newest,) = re.findall(r"set model\.ir_version = (\d+) and onnx\.save it", hint)
        proto.ir_version = int(newest)
        open_session(save(proto, path))

    @pytest.mark.parametrize("domains", [{}, {"mine": 1}], ids=["not imported", "imported"])
    def test_of_an_operator_that_it_does_not_have(self, domains: dict[str, int], tmp_path: Path) -> None:
        nodes = [
            node("Mix", ["x"], ["m"], domain="mine", name="/mix"),
            node("Mix", ["m"], ["n"], domain="mine", name="/again"),
            node("Turn", ["n"], ["y"], domain="mine"),
        ]
        proto = model(nodes, {"x": (FP32, [1])}, {"y": (FP32, [1])}, domains=domains)

        with pytest.raises(
            ModelError, match=r"has no operator 'mine:Mix' \(/mix, /again\); 'mine:Turn' \(y\), which"
        ) as caught:
            open_session(save(proto, tmp_path / "net.onnx"))
        assert "domain 'mine'" in str(caught.value.hint)

    @pytest.mark.parametrize(
        "data",
        [
            linear().SerializeToString().replace(b"MatMul", b"Mat\xff\xfel"),
            identity(FP32)
            .SerializeToString()
            .replace(b"\x12\x01y", b"\x12\x01\xff")
            .replace(b"\n\x01y", b"\n\x01\xff"),
        ],
        ids=["operator", "output"],
    )
    def test_of_names_that_are_no_text_stay_off_stdout(
        self, data: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "net.onnx"
        path.write_bytes(data)

        with pytest.raises(ModelError, match="utf-8"):
            open_session(path)
        assert capfd.readouterr() == ("", "")

    def test_of_a_run_stay_off_the_terminal(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(RunError):
            open_session(save(lookup(), tmp_path / "net.onnx")).run({"ids": np.array([[5, 5]])})
        assert capfd.readouterr() == ("", "")

    def test_of_a_type_that_triton_lacks(self, tmp_path: Path) -> None:
        proto = linear()
        proto.graph.node.append(node("SequenceConstruct", ["y"], ["all"]))
        proto.graph.output.append(models.value("all", FP32, None))
        proto.graph.output[1].type.CopyFrom(onnx.helper.make_sequence_type_proto(proto.graph.output[0].type))

        with pytest.raises(ModelError, match=r"'all' is of type seq\(tensor\(float\)\)"):
            open_session(save(proto, tmp_path / "net.onnx"))


@pytest.mark.parametrize(
    ("message", "tidy"),
    [
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Invalid rank\nfor input", "Invalid rank for input"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /a b/c.onnx failed:/src/graph.cc:1587 void o::Go() Bad.",
            "Bad.",
        ),
        (
            "Deserialize tensor W failed.tensorprotoutils.cc:1876 GetExtDataFromTensorProto External initializer: W",
            "Deserialize tensor W failed. External initializer: W",
        ),
        (
            "/src/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const std::vector<int>&) Unsupported",
            "Unsupported",
        ),
        ("", "RuntimeError"),
    ],
)
def test_messages_are_tidied(message: str, tidy: str) -> None:
    assert tidy_message(RuntimeError(message)) == tidy


class TestWithoutOnnxRuntime:
    @pytest.fixture(autouse=True)
    def _not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)

    def test_names_the_pip_command(self, tmp_path: Path) -> None:
        with pytest.raises(MissingExtraError, match="onnxruntime is not installed"):
            runtime_version()
        with pytest.raises(MissingExtraError) as caught:
            open_session(tmp_path / "net.onnx")
        assert caught.value.hint == "pip install 'repo-builder[server]'"

    def test_add_says_so_in_one_line(self, cli: Cli, tmp_path: Path) -> None:
        save(linear(), tmp_path / "net.onnx")

        result = cli("add", "net.onnx", "--target", "onnxruntime")

        assert result.error == "onnxruntime is not installed"
        assert not (tmp_path / "model_repository").exists()
