"""``verify --served``: the real server's answers, with its batching, against ONNX Runtime on the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import repo_builder
from repo_builder import BuildOptions, ServingOptions, Target, add_model, verify_model
from repo_builder.errors import ServerError, VerificationError
from repo_builder.model import DataType
from repo_builder.samples import SampleOptions
from tests.conftest import Cli
from tests.models import FP32, INT64, STRING, identity, linear, mean_over_rows, model, node, places, save, weights
from tests.servers.repositories import write_identity

BUILD = BuildOptions(target=Target.ONNXRUNTIME)


def heavy(batch: int | str = "batch") -> onnx.ModelProto:
    """Matrix products that take long enough for other requests to arrive meanwhile."""
    layers = [node("MatMul", [f"h{n}" if n else "x", f"w{n}"], [f"h{n + 1}"]) for n in range(6)]
    nodes = [*layers, node("ReduceMean", ["h6"], ["y"], axes=[1], keepdims=0)]
    constants = {f"w{n}": weights(256, 256, seed=n) / 16 for n in range(6)}
    return model(nodes, {"x": (FP32, [batch, 64, 256])}, {"y": (FP32, [batch, 256])}, constants)


def counts() -> onnx.ModelProto:
    """A scalar a row: how many ids of a row are set."""
    return model(
        [node("ReduceSum", ["ids", "last"], ["count"], keepdims=0)],
        {"ids": (INT64, ["batch", "length"])},
        {"count": (INT64, ["batch"])},
        {"last": np.array([1])},
    )


def scalar() -> onnx.ModelProto:
    return model([node("Neg", ["x"], ["y"])], {"x": (FP32, [])}, {"y": (FP32, [])})


MODELS = {
    "heavy": heavy(1),
    "counts": counts(),
    "scalar": scalar(),
    "text": identity(STRING),
    "half": identity(DataType.FP16),
    "brain": identity(DataType.BF16),
    "unbatched": mean_over_rows(),
    "reshaped": identity(FP32, output=("batch", 4), shape=("batch", 4)),
    "places": places(),
}
RESHAPE = "dims: [ 2, 2 ] reshape { shape: [ 4 ] }"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """All models on one server; the folder holds sources and repository."""
    folder = tmp_path_factory.mktemp("served")
    for name, proto in MODELS.items():
        source = save(proto, folder / "sources" / f"{name}.onnx")
        serving = ServingOptions(max_batch_size=16, max_queue_delay_us=2000) if name == "heavy" else None
        if name == "reshaped":
            (folder / "extra.pbtxt").write_text(f'input {{ name: "x" {RESHAPE} }} output {{ name: "y" {RESHAPE} }}')
            serving = ServingOptions(config=folder / "extra.pbtxt")
        add_model(source, repository=folder / "models", build=BUILD, serving=serving)
    with repo_builder.serve(folder / "models") as server:
        yield folder, server.url


@pytest.mark.parametrize("name", MODELS)
def test_answers_agree(served: tuple[Path, str], name: str) -> None:
    folder, url = served
    source = folder / "sources" / f"{name}.onnx"
    checked = verify_model(name, repository=folder / "models", source=source, served=url)
    assert checked.served == url
    assert all(report.mismatched == 0 for report in checked.verification.outputs)
    assert {report.name for report in checked.verification.outputs} == {o.name for o in MODELS[name].graph.output}


def test_rows_are_really_joined_by_the_server(served: tuple[Path, str]) -> None:
    folder, url = served
    source = folder / "sources" / "heavy.onnx"
    checked = verify_model("heavy", repository=folder / "models", source=source, served=url)
    assert checked.joined is not None
    assert 1 < checked.joined <= 16
    assert checked.hints == ()
    rows = checked.verification.outputs[0].elements // 256
    assert rows >= 1 + 16 + 16  # one alone, the largest batch in one request, its rows in their own


def test_an_output_that_is_always_empty_is_told(served: tuple[Path, str]) -> None:
    folder, url = served
    nothing = SampleOptions(ranges={"x": (0.0, 0.0)})
    checked = verify_model("places", repository=folder / "models", served=url, samples=nothing)
    assert checked.verification.outputs[0].elements == 0
    [hint] = checked.hints
    assert hint.startswith("output 'places' was empty on all inputs, so none of its values were compared")


def test_wrong_answers_are_found(served: tuple[Path, str], tmp_path: Path) -> None:
    """The server has other weights under the same name than the version that is verified."""
    _, url = served
    other = heavy(1)
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights(256, 256, seed=77) / 16, "w0"))
    source = save(other, tmp_path / "heavy.onnx")
    add_model(source, repository=tmp_path / "models", build=BUILD, serving=ServingOptions(max_batch_size=16))
    with pytest.raises(VerificationError, match="output 'y' is not what ONNX Runtime computes"):
        verify_model("heavy", repository=tmp_path / "models", source=source, served=url)


def test_another_model_or_version_on_the_server(served: tuple[Path, str], tmp_path: Path) -> None:
    _, url = served
    models = tmp_path / "models"
    source = save(linear(), tmp_path / "linear.onnx")
    for name in ("counts", "unknown"):
        add_model(source, repository=models, build=BUILD, name=name)
    for classes in (3, 4):
        add_model(save(linear(classes=classes), source), repository=models, build=BUILD, name="scalar")
    with pytest.raises(ServerError, match=r"has the tensors count, ids; version 1 of the repository has x, y"):
        verify_model("counts", repository=models, served=url)
    onnx_file = save(heavy(1), tmp_path / "heavy.onnx")
    add_model(onnx_file, repository=models, build=BUILD)
    engine = models / "heavy" / "1" / "manifest.json"
    engine.write_text(engine.read_text().replace('"platform": "onnxruntime_onnx"', '"platform": "tensorrt_plan"'))
    with pytest.raises(ServerError, match=r"served by the backend onnxruntime; version 1 of .* is for tensorrt"):
        verify_model("heavy", repository=models, source=onnx_file, served=url)
    with pytest.raises(ServerError, match="the server has no model 'unknown'") as caught:
        verify_model("unknown", repository=models, served=url)
    assert "--repository DIR" in str(caught.value.hint)
    with pytest.raises(ServerError, match="no server answers") as caught:
        verify_model("unknown", repository=models, served="http://localhost:1")
    assert "or say where it is with --served" in str(caught.value.hint)
    with pytest.raises(ServerError, match="model 'scalar' has no version 2; it has 1"):
        verify_model("scalar", repository=models, served=url)


def test_a_server_that_does_not_batch_is_told(tmp_path: Path) -> None:
    source = save(identity(FP32, output=("batch", 4), shape=("batch", 4)), tmp_path / "net.onnx")
    add_model(source, repository=tmp_path / "ours", build=BUILD, name="net")
    write_identity(tmp_path / "models", "net")  # its config.pbtxt has no dynamic_batching
    with repo_builder.serve(tmp_path / "models") as server:
        checked = verify_model("net", repository=tmp_path / "ours", served=server.url)
    assert checked.joined == 1
    assert "joined none of the requests" in checked.hints[0]


def test_the_command(served: tuple[Path, str], cli: Cli) -> None:
    folder, url = served
    source = folder / "sources" / "heavy.onnx"
    result = cli("verify", "heavy", "--source", source, "--served", url, "-r", folder / "models")
    assert result.code == 0
    first, joined, *_ = result.out.splitlines()
    assert first == f"heavy@1 on {url} agrees with ONNX Runtime on {source} at batch 1, 16"
    assert joined.startswith("requests of one row were joined into batches of up to ")
    assert cli("verify", "heavy", "--source", source, "--served", url, "-r", folder / "models", "--json").json["joined"]
