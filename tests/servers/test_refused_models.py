# ruff: noqa: E501, ISC004  (a table with one model a line)
"""Models that the real server refuses, and the one line that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from repo_builder.errors import ServerError, UsageError
from repo_builder.servers.base import ServerOptions
from repo_builder.servers.load_errors import explain
from repo_builder.servers.local import LocalServer, start
from tests.servers.repositories import ONE_INSTANCE, VECTOR, VECTOR_CONFIG, constant, write_identity, write_model

Write = Callable[[Path, str], object]
CONFIG = VECTOR_CONFIG + ONE_INSTANCE


def with_config(old: str, new: str) -> Write:
    """A good model whose config.pbtxt has ``new`` in place of ``old``."""
    assert old in CONFIG or not old
    return lambda root, name: write_identity(root, name, CONFIG.replace(old, new) if old else CONFIG + new)


def with_file(content: bytes | None) -> Write:
    """A good model whose ONNX file has other content, or is gone."""

    def write(root: Path, name: str) -> None:
        file = write_identity(root, name, CONFIG) / "1/model.onnx"
        file.unlink()
        if content is not None:
            file.write_bytes(content)

    return write


def changed_model(change: Callable[[onnx.ModelProto], object]) -> Write:
    def write(root: Path, name: str) -> None:
        file = write_identity(root, name, CONFIG) / "1/model.onnx"
        model = onnx.load(file)
        change(model)
        file.write_bytes(model.SerializeToString())

    return write


def whole_config(text: str) -> Write:
    return lambda root, name: (write_identity(root, name) / "config.pbtxt").write_text(text)


def unknown_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.acme", "Secret"


def fixed_batch(root: Path, name: str) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    write_model(
        root, name, nodes, [("x", TensorProto.FLOAT, [1, 4])], [("y", TensorProto.FLOAT, [1, 4])], CONFIG
    )  # fmt: skip


def optional_batched(root: Path, name: str) -> None:
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    inputs = [*VECTOR, ("factor", TensorProto.FLOAT, [1, 4])]
    outputs = [("y", TensorProto.FLOAT, ["N", 4])]
    config = CONFIG + 'input [{ name: "factor" data_type: TYPE_FP32 dims: [4] optional: true }]'
    write_model(root, name, nodes, inputs, outputs, config, [constant("factor", np.ones((1, 4), np.float32))])  # type: ignore[arg-type]


def weights_gone(root: Path, name: str) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    outputs = [("y", TensorProto.FLOAT, ["N", 4])]
    weight = constant("w", np.zeros((1, 4), np.float32))
    folder = write_model(root, name, nodes, VECTOR, outputs, CONFIG, [weight])  # type: ignore[arg-type]
    model = onnx.load(folder / "1/model.onnx")
    onnx.save(model, folder / "1/model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "1/w.bin").unlink()


def no_version(root: Path, name: str) -> None:
    (write_identity(root, name, CONFIG) / "1").rename(root / name / "first")


def no_model(root: Path, name: str) -> None:
    (root / name).mkdir()
    (root / name / "notes.txt").write_text("not a model")


WARMUP = """model_warmup [{
  name: "first" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [4] input_data_file: "x.bin" } }
}]"""

REFUSED: dict[str, tuple[Write, str]] = {
    "unknown_field": (whole_config('platfrm: "onnx"\n'), "config.pbtxt line 1, column 8: "),
    "open_string": (whole_config('name: "open\n'), "config.pbtxt line 1, column 12: String literals"),
    "other_name": (whole_config(f'name: "x"\nplatform: "onnxruntime_onnx"\n{CONFIG}'), "for a model named 'x'"),
    "no_version": (no_version, "it has no version that its version_policy takes"),
    "no_model": (no_model, "it has no config.pbtxt that names a platform"),
    "file_gone": (with_file(None), "file_gone/1/model.onnx is missing"),
    "not_onnx": (with_file(b"\x00not onnx" * 99), "the model file is no whole ONNX model"),
    "empty_file": (with_file(b""), "the model file is no whole ONNX model"),
    "new_opset": (changed_model(lambda m: m.opset_import[0].__setattr__("version", 999)), "the model's opset 999 is newer"),
    "new_ir": (changed_model(lambda m: m.__setattr__("ir_version", 999)), "the model's IR version 999 is newer"),
    "unknown_operator": (changed_model(unknown_operator), "ONNX Runtime has no operator 'com.acme:Secret'"),
    "weights_gone": (weights_gone, "weights_gone/1/w.bin is missing, which holds weights"),
    "fixed_batch": (fixed_batch, "the model's batch is fixed: the first dimension of 'x' is not free"),
    "datatype": (with_config('"x" data_type: TYPE_FP32', '"x" data_type: TYPE_INT64'), "has TYPE_INT64 for input 'x', the model"),
    "input_dims": (with_config("TYPE_FP32 dims: [4] }]\noutput", "TYPE_FP32 dims: [5] }]\noutput"), "shape [-1, 5] for input 'x'"),
    "output_rank": (with_config('"y" data_type: TYPE_FP32 dims: [4]', '"y" data_type: TYPE_FP32 dims: [4, 1]'), "[-1, 4, 1] for output 'y'"),
    "output_name": (with_config('"y"', '"z"'), "config.pbtxt has an output 'z', the model has only ['y']"),
    "extra_input": (with_config("", 'input [{ name: "b" data_type: TYPE_FP32 dims: [1] }]'), "config.pbtxt has 2 inputs, the model has 1"),
    "optional_needed": (with_config('"x" ', '"x" optional: true '), "optional: true for input 'x', which the model needs"),
    "optional_batched": (optional_batched, "optional: true for input 'factor', which can't be with batching"),
    "labels_gone": (with_config('"y" ', '"y" label_filename: "labels.txt" '), "labels_gone/labels.txt is missing, which config.pbtxt"),
    "warmup_gone": (with_config("", WARMUP), "warmup_gone/warmup/x.bin is missing, which config.pbtxt"),
    "parameter": (with_config("", 'parameters { key: "intra_op_thread_count" value { string_value: "many" } }'), "'intra_op_thread_count' can't be 'many'"),
    "sequences": (with_config("", "sequence_batching {}"), "asks for sequence_batching, which the local server's onnxruntime"),
    "needs_gpu": (with_config("KIND_CPU", "KIND_GPU"), "its instance_group asks for a GPU and there is none"),
    "plan": (whole_config(f'platform: "tensorrt_plan"\n{VECTOR_CONFIG}'), "a plan runs on GPUs only, and there is none here"),
    "plan_on_cpu": (whole_config(f'platform: "tensorrt_plan"\n{CONFIG}'), "a plan runs on GPUs only, and there is none here"),
    "no_platform": (whole_config(f'platform: "python"\n{CONFIG}'), "has the platform 'python', which Triton does not have"),
    "other_pair": (whole_config(f'platform: "onnx" backend: "onnxruntime"\n{CONFIG}'), "platform 'onnx', which is not one of backend 'onnxruntime'"),
    "no_backend": (whole_config(f'backend: "pytorch"\n{CONFIG}'), "this server has no backend 'pytorch'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    repository = tmp_path_factory.mktemp("models")
    write_identity(repository, "good")
    for name, (write, _) in REFUSED.items():
        write(repository, name)
    with start(repository, ServerOptions(http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield running


def test_each_is_refused_for_its_reason(server: LocalServer) -> None:
    states = {status.name: status for status in server.models}
    assert states.keys() == {"good", *REFUSED}
    assert states.pop("good").ready
    assert {name: status.cause for name, status in states.items() if REFUSED[name][1] not in str(status.cause)} == {}
    assert {name for name, status in states.items() if status.ready or "\n" in str(status.cause)} == set()
    assert {name for name, status in states.items() if not status.hint} == set()


@pytest.mark.parametrize(
    ("reason", "cause", "hint"),
    [
        (
            "Internal: Unable to initialize shared memory key 'k' to requested size (1048576 bytes). If you are running "
            "Triton inside docker, use '--shm-size' flag to control the shared memory region size.",
            "/dev/shm is too small for it",
            "--shm-size",
        ),
        (
            "Internal: TritonModelException: unable to load m.onnx: std::bad_alloc",
            "there is not enough memory",
            "count",
        ),
        ("Internal: Stub process 'm_0' is not healthy.", "its process ended or hung while it was loaded", "log"),
        (
            "Internal: TritonModelException: onnxruntime can't be imported: No module named 'onnxruntime'\n\nAt:\n  m.py",
            "onnxruntime can't be used: No module named 'onnxruntime'",
            "pip install 'repo-builder[server]'",
        ),
        (
            "Invalid argument: unable to load model 'm', configuration expects datatype TYPE_FP16 for input 'x', model "
            "provides TYPE_FP32",
            "config.pbtxt has TYPE_FP16 for input 'x', the model has TYPE_FP32",
            "set data_type: TYPE_FP32",
        ),
        ("Internal: \x1b[31mwhat\nnobody\x07 foresaw", "?[31mwhat nobody? foresaw", None),
    ],
)
def test_reasons_that_are_hard_to_make(reason: str, cause: str, hint: str | None) -> None:
    explanation = explain("m", reason)
    assert cause in explanation.cause
    assert explanation.hint is None if hint is None else hint in str(explanation.hint)


def test_a_link_that_leads_nowhere_is_named_when_triton_reads_no_model_for_it(tmp_path: Path) -> None:
    write_identity(tmp_path / "models", "good")
    with start(tmp_path / "models", ServerOptions(0, 0, 0)) as server:
        (tmp_path / "models/lost").symlink_to("nowhere")
        with pytest.raises(ServerError, match=r"can't tell its models: .* 500: .*/models/lost"):
            _ = server.models
    with pytest.raises(UsageError, match="/lost leads to nowhere, which is not there"):
        start(tmp_path / "models", ServerOptions(0, 0, 0))
