"""Networks that a Python function defines: really built by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repo_builder
from repo_builder import BuildOptions, ServingOptions, Target, add_model, verify_model
from repo_builder.config.proto import read_config
from repo_builder.errors import CompileError, ModelError, UsageError
from repo_builder.runtime import open_session
from repo_builder.trt.cuda import find_gpu
from repo_builder.trt.options import Profile, TensorRTOptions
from tests.conftest import Cli
from tests.models import FP32, Tensors, linear, model, node, save
from tests.support import rtx

EXAMPLE = Path(repo_builder.__file__).parents[1] / "examples" / "convnet" / "network.py"
BUILD = BuildOptions(target=Target.TENSORRT_RTX)
pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("convnet_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def doubled(network: Any, trt: Any) -> None:
    x = network.add_input("x", trt.DataType.FLOAT, (-1, 3))
    y = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
    y.name = "y"
    network.mark_output(y)


def numpy_doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"] * 2}


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_the_example_tells_what_is_missing(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["network.py", "--repository", str(tmp_path / "models")])

    with pytest.raises(SystemExit) as ended:
        example.main()

    error, _, hint = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1
    assert error.startswith("error: tensorrt is not installed") or "needs an NVIDIA GPU" in error
    assert hint.endswith("or try another --target")


@rtx
def test_the_example_is_built_and_configured(example: Any, repository: Path) -> None:
    published = add_model(example.convnet, reference=example.numpy_convnet, repository=repository, build=BUILD)
    manifest = published.manifest
    assert published.name == "convnet"
    assert manifest["source"]["definition"] == "convnet_example:convnet"
    assert manifest["source"]["file"] == "network.py"
    assert manifest["engine"]["layers_by_precision"]["FP32"] >= 4
    config = read_config(published.folder / "config.pbtxt")
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (8, [1, 28, 28], [10])
    if not manifest["engine"]["verified_by_running"]:
        assert "its numbers are unverified" in manifest["unverified"]
        assert manifest["verification"] is None


def test_the_examples_reference_computes_what_onnx_runtime_does(example: Any, tmp_path: Path) -> None:
    """The same layers as ONNX, of the same weights: what the engine is held to is right."""
    nodes = [
        node("Conv", ["image", "conv1", "conv1_bias"], ["c1"]),
        node("MaxPool", ["c1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "conv2", "conv2_bias"], ["c2"]),
        node("MaxPool", ["c2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p2"], ["f"]),
        node("Gemm", ["f", "fc1", "fc1_bias"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "fc2", "fc2_bias"], ["scores"]),
    ]
    inputs: Tensors = {"image": (FP32, ["batch", 1, 28, 28])}
    outputs: Tensors = {"scores": (FP32, ["batch", 10])}
    session = open_session(save(model(nodes, inputs, outputs, example.WEIGHTS), tmp_path / "convnet.onnx"))
    image = np.random.default_rng(0).standard_normal((5, 1, 28, 28)).astype(np.float32)
    expected = session.run({"image": image})["scores"]
    np.testing.assert_allclose(example.numpy_convnet({"image": image})["scores"], expected, rtol=1e-4, atol=1e-4)


@rtx
def test_without_a_reference_it_is_loudly_unverified(repository: Path, cli: Cli) -> None:
    with pytest.warns(UserWarning, match="doubled: no reference was given"):
        published = add_model(doubled, repository=repository, build=BUILD)
    assert "no reference was given" in published.manifest["unverified"]
    assert published.hints[0].startswith("UNVERIFIED: no reference was given")
    assert cli("list", "-r", repository).out.splitlines()[1].split()[-1] == "NO"


@rtx
def test_it_is_built_anew_each_time_and_shown(repository: Path, cli: Cli) -> None:
    for version in (1, 2):
        published = add_model(doubled, reference=numpy_doubled, repository=repository, build=BUILD, name="twice")
        assert (published.version, published.unchanged) == (version, False)
    shown = cli("show", "twice", "-r", repository).out
    assert f"network definition {__name__}:doubled in {Path(__file__).name}" in shown


@rtx
@pytest.mark.parametrize(
    ("serving", "build", "size", "reason"),
    [
        (ServingOptions(max_batch_size=3), BUILD, 3, "are free"),
        (ServingOptions(max_batch_size=0), None, 0, "a max_batch_size of 0 was asked for"),
    ],
)
def test_the_batch_axis(
    repository: Path, serving: ServingOptions, build: BuildOptions | None, size: int, reason: str
) -> None:
    if build is None:  # no batch axis, so TensorRT needs a range
        corners = ({"x": (1, 3)}, {"x": (2, 3)}, {"x": (4, 3)})
        build = BuildOptions(target=Target.TENSORRT_RTX, tensorrt=TensorRTOptions(profiles=(Profile(*corners),)))
    manifest = add_model(doubled, reference=numpy_doubled, repository=repository, build=build, serving=serving).manifest
    assert manifest["max_batch_size"] == size
    assert reason in manifest["batching"]["reason"]


@rtx
def test_what_is_wrong_with_a_definition(repository: Path) -> None:
    def nothing(network: Any, trt: Any) -> None:
        network.add_input("x", trt.DataType.FLOAT, (-1, 3))

    def broken(network: Any, trt: Any) -> None:
        raise ZeroDivisionError

    def sized(network: Any, trt: Any) -> None:
        doubled(network, trt)
        sizes = network.add_shape(network.get_input(0)).get_output(0)
        sizes.name = "sizes"
        network.mark_output_for_shapes(sizes)

    half = BuildOptions(target=Target.TENSORRT_RTX, tensorrt=TensorRTOptions(fp16=True))
    with pytest.raises(CompileError, match="has no output"):
        add_model(nothing, repository=repository, build=BUILD, name="net")
    with pytest.raises(CompileError, match="output 'sizes' is marked by mark_output_for_shapes") as caught:
        add_model(sized, repository=repository, build=BUILD)
    assert "network.mark_output(tensor)" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="takes the precision from the network definition"):
        add_model(doubled, repository=repository, build=half)
    with pytest.raises(ModelError, match="gives no 'y', an output of the network"):
        add_model(doubled, reference=lambda _: {"z": np.zeros(1)}, repository=repository, build=BUILD)
    with pytest.raises(ZeroDivisionError):
        add_model(broken, repository=repository, build=BUILD)
    with pytest.raises(UsageError, match="'<lambda>' is not a model name"):
        add_model(lambda _network, _trt: None, repository=repository, build=BUILD)
    assert not repository.exists()


def test_what_can_not_build_a_definition(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(UsageError, match="built by TensorRT only, and asked for"):
        add_model(doubled, repository=repository, build=BuildOptions(target=Target.ONNXRUNTIME))
    with pytest.raises(UsageError, match="is its own reference"):
        add_model(save(linear(), tmp_path / "net.onnx"), reference=numpy_doubled, repository=repository)
    assert not repository.exists()


@rtx
def test_verify_wants_the_function_again(repository: Path) -> None:
    published = add_model(doubled, reference=numpy_doubled, repository=repository, build=BUILD)
    with pytest.raises(UsageError, match=r"made from the network definition .*:doubled"):
        verify_model("doubled", repository=repository)
    if published.manifest["engine"]["verified_by_running"]:
        assert verify_model("doubled", repository=repository, reference=numpy_doubled).verification.outputs
    else:
        with pytest.raises(CompileError, match="there is no GPU here that runs the plan"):
            verify_model("doubled", repository=repository, reference=numpy_doubled)


@rtx
def test_no_verify_is_quiet(repository: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build = BuildOptions(target=Target.TENSORRT_RTX, verify=False)
        assert add_model(doubled, repository=repository, build=build).manifest["verification"] is None
